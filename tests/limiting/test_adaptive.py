"""The limit that follows an engine: found from above and below, kept while nothing is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.limiting.adaptive import MEASURE_EVERY_SECONDS, WINDOW_CALLS, WINDOW_SECONDS, AdaptiveLimit
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE_SECONDS = 0.05


def seconds_of(capacity: int, in_flight: int) -> float:
    """Return how long a call takes in an engine that works on so many at once and queues the others."""
    return SERVICE_SECONDS * max(1.0, in_flight / capacity)


def drive(
    limit: AdaptiveLimit, clock: FakeClock, seconds: float, demand: int, takes: Callable[[int], float]
) -> list[int]:
    """Complete calls, as many at once as limit and demand allow, for so long; return the limits seen."""
    end, seen = clock() + seconds, []
    while clock() < end:
        in_flight = min(limit.limit, demand)
        each = takes(in_flight)
        clock.advance(each / in_flight)
        limit.sample("ask", each, in_flight)
        seen.append(limit.limit)
    return seen


@pytest.mark.parametrize("capacity", [4, 10, 40, 150])
def test_an_overload_leaves_a_queue_in_the_engine_but_not_a_long_one(capacity: int) -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(2, 1000, clock)
    drive(limit, clock, 20, 10_000, lambda n: seconds_of(capacity, n))
    settled = drive(limit, clock, 25, 10_000, lambda n: seconds_of(capacity, n))
    assert sum(each >= capacity for each in settled) > 0.9 * len(settled)
    assert max(settled) <= 2 * capacity + 4


def test_an_engine_that_grows_slower_for_good_is_found_out_and_one_that_recovers_too() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(2, 1000, clock)
    drive(limit, clock, 60, 10_000, lambda n: seconds_of(20, n))
    assert 20 <= limit.limit <= 44
    drive(limit, clock, 60, 10_000, lambda n: seconds_of(5, n))
    assert 4 <= limit.limit <= 16
    drive(limit, clock, 120, 10_000, lambda n: seconds_of(20, n))
    assert 18 <= limit.limit <= 44


def test_while_little_is_asked_the_limit_stays() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(2, 1000, clock)
    drive(limit, clock, 1, 3, lambda _: SERVICE_SECONDS)
    assert set(drive(limit, clock, 100, 3, lambda _: SERVICE_SECONDS)) == {20}


def test_so_often_a_window_is_run_well_below_the_limit_to_measure_anew() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(2, 1000, clock)
    seen = drive(limit, clock, MEASURE_EVERY_SECONDS * 1.5, 10_000, lambda n: seconds_of(10, n))
    low = [each for each in seen[WINDOW_CALLS * 20 :] if each < 0.6 * max(seen)]
    assert WINDOW_CALLS <= len(low) < 0.05 * len(seen)


def test_calls_that_began_before_the_measurement_say_nothing_of_it() -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(2, 1000, clock)
    clock.advance(WINDOW_SECONDS)
    assert not any(limit.sample("ask", 10.0, 5) for _ in range(5 * WINDOW_CALLS))
    assert any(limit.sample("ask", 0.05, 5) for _ in range(2 * WINDOW_CALLS))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0, 1e4), st.integers(0, 2000), st.floats(0, 5)),
        max_size=300,
    ),
    st.integers(1, 50),
    st.integers(50, 500),
)
def test_the_limit_never_leaves_its_bounds(
    samples: list[tuple[str, float, int, float]], minimum: int, maximum: int
) -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(minimum, maximum, clock)
    for operation, seconds, in_flight, pause in samples:
        clock.advance(pause)
        limit.sample(operation, seconds, in_flight)
        assert minimum <= limit.limit <= maximum
