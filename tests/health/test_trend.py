from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.health.status import HealthStatus, Observation, Trend
from llmkg_otel.health.trend import mann_kendall, trend_of
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Sequence

PASS, WARN, FAIL, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.WARNING,
    HealthStatus.CRITICAL,
    HealthStatus.UNKNOWN,
)
OPPOSITE = {Trend.IMPROVING: Trend.DEGRADING, Trend.DEGRADING: Trend.IMPROVING}

observations = st.lists(
    st.builds(
        Observation,
        time=st.just(0.0),
        status=st.sampled_from(HealthStatus),
        duration=st.floats(0, 10, allow_nan=False),
    ),
    max_size=20,
)


def seen(*statuses: HealthStatus, duration: float = 0.01) -> list[Observation]:
    return [Observation(0.0, status, duration) for status in statuses]


@given(st.lists(st.sampled_from([PASS, WARN, FAIL]), max_size=3), st.integers(0, 20))
def test_the_trend_of_fewer_than_four_checks_is_unknown(
    statuses: list[HealthStatus], did_not_know: int
) -> None:
    assert trend_of(seen(*statuses, *[UNKNOWN] * did_not_know)) is Trend.UNKNOWN


def test_failures_that_become_more_are_degrading_and_fewer_are_improving() -> None:
    assert trend_of(seen(PASS, PASS, PASS, FAIL, FAIL)) is Trend.DEGRADING
    assert trend_of(seen(FAIL, FAIL, PASS, PASS, PASS)) is Trend.IMPROVING


def test_checks_that_become_half_as_slow_again_are_degrading_before_any_fails() -> None:
    assert trend_of(seen(*[PASS] * 5) + seen(*[PASS] * 5, duration=0.015)) is Trend.DEGRADING
    assert trend_of(seen(*[PASS] * 5) + seen(*[PASS] * 5, duration=0.014)) is Trend.STABLE


def test_less_than_a_millisecond_is_no_trend_however_large_the_ratio() -> None:
    assert trend_of(seen(*[PASS] * 5, duration=1e-5) + seen(*[PASS] * 5, duration=9e-4)) is Trend.STABLE


def test_a_status_that_keeps_changing_is_flapping() -> None:
    assert trend_of(seen(*[PASS, FAIL] * 4)) is Trend.FLAPPING


def test_what_lies_more_than_twenty_checks_back_is_forgotten() -> None:
    assert trend_of(seen(*[PASS, FAIL] * 10, *[PASS] * 20)) is Trend.STABLE


@given(observations)
def test_a_history_read_backwards_has_the_opposite_trend(history: list[Observation]) -> None:
    trend = trend_of(history)
    assert trend_of(history[::-1]) is OPPOSITE.get(trend, trend)


@given(observations, st.integers(0, 20))
def test_a_check_that_did_not_know_does_not_bear_on_the_trend(history: list[Observation], at: int) -> None:
    known = [each for each in history if each.status is not UNKNOWN][:19]
    assert trend_of([*known[:at], *seen(UNKNOWN), *known[at:]]) is trend_of(known)


@given(st.sampled_from([PASS, WARN, FAIL]), st.floats(0, 10), st.integers(4, 50))
def test_a_history_of_equal_checks_is_stable(status: HealthStatus, duration: float, length: int) -> None:
    assert trend_of(seen(*[status] * length, duration=duration)) is Trend.STABLE


def noise(seed: int, checks: int, *, sigma: float = 0.7, step: float = 1.0) -> list[Observation]:
    """Return checks of 10 ms, lognormal around it; the second half takes `step` times as long."""
    draw = random.Random(seed)
    times = [
        0.01 * (step if at * 2 >= checks else 1) * math.exp(draw.gauss(0, sigma)) for at in range(checks)
    ]
    return [Observation(0.0, PASS, each) for each in times]


def test_durations_that_only_scatter_rarely_read_as_degrading() -> None:
    history = noise(seed=1, checks=8640)  # a day
    trends = [trend_of(history[max(0, end - 20) : end]) for end in range(20, len(history))]
    assert trends.count(Trend.DEGRADING) < 0.03 * len(trends)


@pytest.mark.parametrize("seed", range(20))
def test_a_threefold_step_is_seen_while_half_of_the_last_twenty_checks_have_it(seed: int) -> None:
    assert trend_of(noise(seed, 20, sigma=0.3, step=3)) is Trend.DEGRADING


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_the_test_for_a_trend_turns_with_the_values(values: list[int]) -> None:
    z = mann_kendall(values)
    assert mann_kendall(values[::-1]) == -z == mann_kendall([-each for each in values])
    assert mann_kendall([2 * each + 1 for each in values]) == z


@pytest.mark.parametrize(
    ("values", "rises", "variance"),
    [
        (range(10), 45, 10 * 9 * 25 / 18),
        ([5.0] * 10, 0, 1),
        (
            [23, 24, 29, 6, 29, 24, 24, 29, 23],
            3,
            (9 * 8 * 23 - 2 * 1 * 9 - 2 * 3 * 2 * 11) / 18,
        ),  # ties: 2, 3, 3
    ],
)
def test_the_test_for_a_trend_gives_what_counting_by_hand_does(
    values: Sequence[float], rises: int, variance: float
) -> None:
    assert mann_kendall(values) == pytest.approx(rises / math.sqrt(variance))


def test_trends_have_the_names_of_the_telemetry_contract() -> None:
    assert tuple(Trend) == semconv.TRENDS
