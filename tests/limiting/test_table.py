from __future__ import annotations

import gc
import tracemalloc
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import RateLimitRule
from llmkg_otel.limiting import table as module
from llmkg_otel.limiting.table import CallTable, FloatTable
from llmkg_otel.limiting.windows import FEW_KEYS, MovingWindow

NEAR = st.integers(-3, 3).map(lambda n: n * (1 << 14))  # keys of one shard
STRADDLING = st.sampled_from([int.from_bytes(b"\x00\x40" * 4, "little"), 0x4000])
KEYS = NEAR | STRADDLING | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(KEYS, st.floats(allow_nan=False))), st.sampled_from([0, 3, 1000]))
def test_it_keeps_what_a_dictionary_would(writes: list[tuple[int, float]], few: int) -> None:
    table, expected = FloatTable(), dict[int, float]()
    with mock.patch.object(module, "FEW", few):
        for key, value in writes:
            assert table[key] == expected.get(key, 0.0)
            table.put(key, value)
            expected[key] = value
    assert {key: table[key] for key in expected} == expected
    assert table.size() == len(expected)
    assert len(table) <= few


@given(KEYS)
def test_looking_adds_nothing(key: int) -> None:
    table = FloatTable()
    assert table[key] == 0.0
    assert table.size() == 0


@given(st.lists(st.tuples(KEYS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 4))))
def test_it_keeps_the_calls_of_the_last_period(steps: list[tuple[int, int, int, int]]) -> None:
    table, expected, now = CallTable(5.0), dict[int, list[float]](), 0.0
    for key, pause, calls, forgotten in steps:
        now += pause
        for each, times in expected.items():
            expected[each] = [at for at in times if at + 5.0 > now]
        table.add(key, now, calls)
        expected.setdefault(key, []).extend([now] * calls)
        table.forget(key, forgotten)
        expected[key] = expected[key][: max(0, len(expected[key]) - forgotten)]
        assert {each: table.times(each, now) for each in expected} == expected


def test_calls_of_keys_that_never_come_again_leave_as_others_come() -> None:
    table = CallTable(5.0)
    for key in range(1000):
        table.add(key, 0.0, 3)
    assert table.size() == 3000
    for _ in range(1 << 14):
        table.times(-1, 6.0)
    assert table.size() == 0


def test_three_calls_each_of_many_users_take_64_bytes_in_a_moving_window() -> None:
    def taken(users: int) -> int:
        window = MovingWindow(RateLimitRule(requests_per_second=0.01, burst_capacity=10))
        gc.collect()
        tracemalloc.start()
        for number in range(3 * users):
            window.take(number / 1000, 1, hash((number % users, "user")))
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    few, many = FEW_KEYS + 4096, FEW_KEYS + 3 * 4096
    with mock.patch.object(module, "_SHARDS", 128):
        assert taken(many) - taken(few) <= 64 * (many - few)
