from __future__ import annotations

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.limiting import table as module
from llmkg_otel.limiting.table import FloatTable

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
