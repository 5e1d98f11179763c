"""The limit that follows an engine: simulated engines of many shapes, below and above what they can do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.overload import SHAPES, Shape, Simulation

WARM_CALLS, CALLS = 4000, 8000
"""So many calls of an engine at full work, before and while it is looked at."""

engines = st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(2, 40), st.integers(0, 2**32))


def simulated(shape: Shape, workers: int, load: float, seed: int, **options: object) -> Simulation:
    call = shape.mean / workers
    simulation = Simulation(shape, workers, load, seed, warm=WARM_CALLS * call, **options)  # type: ignore[arg-type]
    return simulation.run((WARM_CALLS + CALLS) * call)


@settings(max_examples=12, deadline=None)
@given(engines)
def test_overloaded_an_engine_stays_busy_behind_a_limit_not_far_above_its_workers(
    engine: tuple[str, int, int],
) -> None:
    name, workers, seed = engine
    simulation = simulated(SHAPES[name], workers, 3.0, seed)
    assert simulation.share_worked() >= 0.85
    assert 0.8 * workers <= simulation.mean_limit() <= 3 * workers + 4


@settings(max_examples=12, deadline=None)
@given(engines)
def test_at_half_of_what_an_engine_can_do_nothing_is_shed(engine: tuple[str, int, int]) -> None:
    name, workers, seed = engine
    simulation = simulated(SHAPES[name], workers, 0.5, seed)
    assert simulation.share_shed() <= 0.01
