"""The windows against their definitions, and against the strategies of `limits` that they stand in for."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from llmkg_otel.config import RateLimitRule
from llmkg_otel.limiting import windows
from llmkg_otel.limiting.windows import FixedWindow, MovingWindow, SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Iterator

Window = FixedWindow | MovingWindow | SlidingWindow
WINDOWS: list[type[Window]] = [FixedWindow, MovingWindow, SlidingWindow]
THEIRS: dict[type[Window], type[RateLimiter]] = {
    FixedWindow: FixedWindowRateLimiter,
    MovingWindow: MovingWindowRateLimiter,
    SlidingWindow: SlidingWindowCounterRateLimiter,
}
EACH = pytest.mark.parametrize("window", WINDOWS)


@pytest.fixture(scope="module", autouse=True, params=[(1 << 12, 16), (0, 16), (0, 3)], ids=str)
def crowd(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the calls of moving windows as those of few keys, of many, and of busy ones among many."""
    keys, calls = request.param
    with mock.patch.object(windows, "FEW_KEYS", keys), mock.patch.object(windows, "FEW_CALLS", calls):
        yield


RULES = st.builds(RateLimitRule, requests_per_second=st.floats(0.01, 1000), burst_capacity=st.integers(1, 12))
CALLS = st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(0, 1.2)), st.integers(1, 12)), max_size=60)
"""(pause in periods, cost)"""
TOLERANCE = 1e-5  # seconds

Admitted = list[tuple[float, int]]


def fixed(rule: RateLimitRule, admitted: Admitted, now: float) -> float:
    return sum(cost for at, cost in admitted if at // rule.period == now // rule.period)


def moving(rule: RateLimitRule, admitted: Admitted, now: float) -> float:
    return sum(cost for at, cost in admitted if at + rule.period > now)


def sliding(rule: RateLimitRule, admitted: Admitted, now: float) -> float:
    index = now // rule.period
    before = sum(cost for at, cost in admitted if at // rule.period == index - 1)
    return fixed(rule, admitted, now) + before * (1 - (now - index * rule.period) / rule.period)


DEFINITIONS = {FixedWindow: fixed, MovingWindow: moving, SlidingWindow: sliding}


@EACH
@given(RULES, st.floats(0, 1e6), CALLS)
def test_a_call_is_admitted_exactly_if_the_definition_has_room_for_its_cost(
    window: type[Window], rule: RateLimitRule, start: float, calls: list[tuple[float, int]]
) -> None:
    limiter, count, now = window(rule), DEFINITIONS[window], start
    admitted: Admitted = []
    for pause, whole in calls:
        now += pause * rule.period
        cost = min(whole, int(rule.burst))
        used = count(rule, admitted, now)
        foretold = limiter.wait(now, cost)
        wait = limiter.take(now, cost)
        assert foretold == wait
        if abs(used + cost - rule.burst) > 1e-6 or used == int(used):
            assert (wait == 0) is (used + cost <= rule.burst)
        if not wait:
            admitted.append((now, cost))


@EACH
@given(RULES, st.floats(0, 1e6), CALLS)
def test_whoever_waits_as_long_as_told_is_admitted_and_not_a_moment_sooner(
    window: type[Window], rule: RateLimitRule, start: float, calls: list[tuple[float, int]]
) -> None:
    limiter, now = window(rule), start
    for pause, whole in calls:
        now += pause * rule.period
        cost = min(whole, int(rule.burst))
        if wait := limiter.take(now, cost):
            sooner = now + wait - TOLERANCE * max(1, rule.period)
            assert sooner <= now or limiter.wait(sooner, cost) > 0
            now += wait
            assert limiter.take(now, cost) == 0


@EACH
@given(RULES, st.floats(0, 1e6), CALLS)
def test_what_is_put_back_leaves_no_trace(
    window: type[Window], rule: RateLimitRule, start: float, calls: list[tuple[float, int]]
) -> None:
    limiter, other, now = window(rule), window(rule), start
    for pause, whole in calls:
        now += pause * rule.period
        cost = min(whole, int(rule.burst))
        if not limiter.take(now, cost):
            limiter.put_back(cost)
        assert limiter.take(now, cost) == other.take(now, cost)


@EACH
def test_keys_do_not_share_unless_the_window_is_for_all(window: type[Window]) -> None:
    rule = RateLimitRule(requests_per_second=1, burst_capacity=1)
    apart, together = window(rule), window(rule, keyed=False)
    assert [apart.take(50.0, 1, key) > 0 for key in (7, 7, -8)] == [False, True, False]
    assert [together.take(50.0, 1, key) > 0 for key in (7, 7, -8)] == [False, True, True]


@EACH
def test_keys_are_forgotten_once_their_calls_no_longer_count(window: type[Window]) -> None:
    limiter: Any = window(RateLimitRule(requests_per_second=1, burst_capacity=10))
    kept = []
    for number in range(2000):
        limiter.take(number / 10, 1, number << 14)  # of one shard
        tables = [getattr(limiter, name, ()) for name in ("_counts", "_before", "_new", "_old")]
        calls = limiter._few.size() if window is MovingWindow else 0
        kept.append(sum(map(len, tables)) + calls)  # few enough for FloatTable's dictionary
    assert max(kept) <= 2 * 101


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.4), st.integers(1, 4), st.booleans()), max_size=80)
)
def test_keys_of_a_moving_window_fare_as_each_would_alone(
    calls: list[tuple[int, float, int, bool]],
) -> None:
    rule = RateLimitRule(requests_per_second=9, burst_capacity=9)
    together, alone, now = MovingWindow(rule), [MovingWindow(rule, keyed=False) for _ in range(4)], 5.0
    for number, pause, cost, back in calls:
        now += pause
        key = number << 14  # of one shard
        assert together.wait(now, cost, key) == alone[number].wait(now, cost)
        took = together.take(now, cost, key)
        assert took == alone[number].take(now, cost)
        if back and not took:
            together.put_back(cost, key)
            alone[number].put_back(cost)


def with_wall_clock(at: list[float]) -> Any:
    return mock.patch.object(time, "time", side_effect=lambda: at[0])


@EACH
@given(st.integers(1, 9), st.lists(st.floats(0, 1.5), max_size=40))
def test_calls_fare_as_with_the_strategies_of_limits(
    window: type[Window], amount: int, gaps: list[float]
) -> None:
    """In one fixed window, since theirs begin with a call; and but for sums that limits rounds down.

    And but for the very moment at which a call leaves a moving window: here it has left then, so that who
    waits `retry_after` out is admitted, in limits a moment later.
    """
    moments = list(accumulate(gaps, initial=1000.0))
    leaves = any(one - 1.0 == other or other + 1.0 == one for one in moments for other in moments)
    assume(window is not MovingWindow or not leaves)
    ours = window(RateLimitRule(requests_per_second=amount, burst_capacity=amount))
    item, at = RateLimitItemPerSecond(amount), [1000.0]
    with with_wall_clock(at):
        theirs = THEIRS[window](MemoryStorage())
        for moment in moments:
            at[0] = moment if window is not FixedWindow else 1000 + (moment - 1000) / 61
            rounded = window is SlidingWindow and _between(ours, at[0], amount)
            admitted = ours.take(at[0]) == 0
            if not rounded:
                assert theirs.hit(item) is admitted
            elif admitted:
                theirs.hit(item)


def _between(ours: Any, now: float, amount: int) -> bool:
    """Say whether the sum lies between amount - 1 and amount: limits admits one more there."""
    index = int(now // 1)
    turned = index - ours._index
    current = ours._counts[0] if turned == 0 else 0.0
    before = (ours._before, ours._counts)[turned][0] if turned < 2 else 0.0
    return bool(amount - 1 - 1e-6 < before * (1 - now % 1) + current < amount + 1e-6)


@EACH
def test_an_hour_back_on_the_wall_clock_refuses_for_an_hour_in_limits_memory(window: type[Window]) -> None:
    """Why the windows are counted here: their owner gives them the monotonic clock, which does not step."""
    item, at = RateLimitItemPerSecond(1), [100_000.0]
    with with_wall_clock(at):
        theirs = THEIRS[window](MemoryStorage())
        assert theirs.hit(item)
        at[0] -= 3600 - 2
        later = theirs.hit(item)
    assert later is (window is SlidingWindow)  # which looks for counts under another name, and so mints


def test_a_refused_call_of_some_weight_uses_up_a_fixed_window_of_limits() -> None:
    item, at = RateLimitItemPerSecond(5), [1000.0]
    with with_wall_clock(at):
        theirs = FixedWindowRateLimiter(MemoryStorage())
        assert [theirs.hit(item, cost=cost) for cost in (3, 5, 1)] == [True, False, False]
    ours = FixedWindow(RateLimitRule(requests_per_second=5, burst_capacity=5))
    assert [ours.take(1000.0, cost) == 0 for cost in (3, 5, 1)] == [True, False, True]
