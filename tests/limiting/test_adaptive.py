"""The limit that follows an engine: simulated engines of many shapes, below and above what they can do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.overload import SHAPES, Simulation

from llmkg_otel.limiting.adaptive import FIRST_LIMIT, AdaptiveLimit, Began
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from llmkg_otel.errors import OverloadedError
    from llmkg_otel.limiting.waiting import Criticality

WARM_CALLS, CALLS = 4000, 5000
"""What an engine at full work does before it is looked at, and while."""

engines = st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(2, 20), st.integers(0, 2**32))


simulations = settings(max_examples=8, deadline=None, phases=[Phase.generate])  # the others trace, or repeat


def simulated(name: str, workers: int, load: float, seed: int, **options: object) -> Simulation:
    shape = SHAPES[name]
    call = shape.mean / workers
    simulation = Simulation(shape, workers, load, seed, warm=WARM_CALLS * call, **options)  # type: ignore[arg-type]
    return simulation.run((WARM_CALLS + CALLS) * call)


@simulations
@given(engines)
def test_overloaded_an_engine_stays_busy_behind_a_limit_not_far_above_its_workers(
    engine: tuple[str, int, int],
) -> None:
    name, workers, seed = engine
    simulation = simulated(name, workers, 3.0, seed)
    assert simulation.share_worked() >= 0.85
    assert 0.8 * workers <= simulation.mean_limit() <= 3 * workers + 8


@simulations
@given(engines.filter(lambda engine: engine[0] != "cache hits and slow calls" and engine[1] >= 4))
def test_at_half_of_what_an_engine_can_do_nothing_is_shed(engine: tuple[str, int, int]) -> None:
    name, workers, seed = engine
    assert simulated(name, workers, 0.5, seed).share_shed() <= 0.002


@pytest.mark.parametrize("workers", [8, 16])
def test_where_one_call_in_ten_takes_a_hundred_times_as_long_hardly_anything_is_shed_at_half(
    workers: int,
) -> None:
    assert simulated("cache hits and slow calls", workers, 0.5, 1).share_shed() <= 0.03


@pytest.mark.parametrize("name", ["fixed", "lognormal 1.0"])
def test_the_limit_finds_back_to_an_engine_that_grew_slower_and_to_one_that_recovered(name: str) -> None:
    third = 100.0
    simulation = Simulation(
        SHAPES[name], 10, 3.0, 1, slower=lambda now: 2.0 if third <= now < 2 * third else 1.0
    ).run(3 * third)
    for end in (third, 2 * third, 3 * third):
        seen = [limit for when, limit in simulation.limits if end - third / 3 < when <= end]
        assert 10 <= sum(seen) / len(seen) <= 20


def test_failures_that_come_early_do_not_lower_the_limit() -> None:
    assert simulated("fixed", 10, 3.0, 1, failures=0.7).mean_limit() >= 11


@pytest.mark.parametrize("name", ["fixed", "slow"])
def test_an_engine_that_is_always_busy_is_measured_for_a_small_share_of_the_time(name: str) -> None:
    simulation = simulated(name, 10, 3.0, 1)
    assert simulation.share_worked() >= 0.97


def test_a_shadow_is_never_relieved_and_finds_the_same_limit_where_load_comes_and_goes() -> None:
    for mode in ("on", "shadow"):
        simulation = Simulation(SHAPES["fixed"], 10, 0.7, 1, mode=mode)
        simulation.slower = lambda now: 1.0 if now % 40 < 30 else 1.6
        simulation.run(200)
        assert mode == "on" or simulation.pool.limit == 1000
        assert 10 <= simulation.mean_limit(100) <= 24


def test_a_call_that_never_ends_does_not_keep_the_limit_from_being_measured() -> None:
    simulation = Simulation(SHAPES["fixed"], 10, 3.0, 1, warm=40)
    simulation.shedding.begin(simulation.pool)
    assert 10 <= simulation.run(80).mean_limit() <= 16


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 2000), st.floats(0, 1e4), st.booleans()),
        max_size=300,
    ),
    st.integers(1, 50),
    st.integers(50, 500),
)
def test_the_limit_never_leaves_its_bounds(
    calls: list[tuple[str, int, float, bool]], minimum: int, maximum: int
) -> None:
    clock = FakeClock()
    limit = AdaptiveLimit(minimum, maximum, clock)
    running: list[tuple[Began, str, bool]] = []
    assert limit.limit == min(maximum, max(minimum, FIRST_LIMIT))
    for operation, in_flight, pause, counts in calls:
        running.append((limit.begin(in_flight), operation, counts))
        clock.advance(pause)
        if len(running) > 3:
            ended, which, counted = running.pop(0)
            limit.end(ended, which, counts=counted)
        assert minimum <= limit.permits <= limit.limit <= maximum


@pytest.mark.parametrize("name", ["fixed", "cache hits and slow calls", "slow"])
def test_while_a_critical_call_waits_or_is_refused_no_call_that_matters_less_gets_what_it_needs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a permit nor, if it meets a full queue, a place in it."""
    shape = SHAPES[name]
    simulation = Simulation(shape, 10, 8.0, 1)
    pool, queue = simulation.pool, simulation.pool._queue
    pool.max_queued = 3
    take, refuse = pool._take, pool._refusal
    refused: Counter[tuple[str, str]] = Counter()

    def taking(criticality: Criticality) -> None:
        assert criticality == "critical" or not queue._waiting["critical"]
        take(criticality)

    def refusing(
        operation: str, criticality: Criticality, reason: str, seconds: float = 0.0
    ) -> OverloadedError:
        refused[reason, criticality] += 1
        if criticality == "critical":
            assert not queue._waiting["default"]
            assert not queue._waiting["sheddable"]
        return refuse(operation, criticality, reason, seconds)

    monkeypatch.setattr(pool, "_take", taking)
    monkeypatch.setattr(pool, "_refusal", refusing)
    make_room = queue.make_room_for

    def making_room(criticality: Criticality) -> bool:
        made = make_room(criticality)
        refused["made_room", criticality] += made
        return made

    monkeypatch.setattr(queue, "make_room_for", making_room)
    simulation.run(400 * shape.mean)
    assert refused["queue_full", "critical"] > 0
    assert refused["made_room", "critical"] > 0
