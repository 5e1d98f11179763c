from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.health.status import CheckResult, ComponentHealth, HealthStatus, Observation, Trend, trend_of

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


def checked(*statuses: HealthStatus, threshold: int = 3) -> ComponentHealth:
    health = ComponentHealth("engine", essential=True)
    for status in statuses:
        health = health.after(CheckResult(status, "words"), Observation(5.0, status, 0.2), threshold)
    return health


@pytest.mark.parametrize(
    ("answer", "status"),
    [(None, PASS), (WARN, WARN), (CheckResult(FAIL, "full"), FAIL)],
)
def test_a_check_may_answer_nothing_a_status_or_a_result(answer: object, status: HealthStatus) -> None:
    assert CheckResult.of(answer).status is status


def test_an_answer_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="not bool"):
        CheckResult.of(True)


@given(st.lists(st.sampled_from([PASS, WARN, FAIL]), min_size=1), st.integers(1, 5))
def test_it_fails_exactly_when_the_threshold_of_failures_in_a_row_is_reached(
    statuses: list[HealthStatus], threshold: int
) -> None:
    row = 0
    for status in reversed(statuses):
        if status is not FAIL:
            break
        row += 1
    health = checked(*statuses, threshold=threshold)
    assert health.consecutive_failures == row
    assert health.status is (statuses[-1] if row == 0 else FAIL if row >= threshold else WARN)


def test_one_success_after_a_failure_is_enough() -> None:
    assert checked(FAIL, FAIL, FAIL, PASS).status is PASS


@pytest.mark.parametrize(
    ("age", "status"),
    [(0, PASS), (30, PASS), (30.1, WARN), (60, WARN), (60.1, FAIL)],
)
def test_a_result_older_than_three_intervals_warns_and_older_than_six_fails(
    age: float, status: HealthStatus
) -> None:
    health = checked(PASS).aged(age, interval=10)
    assert (health.status, health.age) == (status, age)
    assert health.message.startswith("stale") == (status is not PASS)


def test_age_never_makes_a_failed_component_look_better() -> None:
    assert checked(FAIL, FAIL, FAIL).aged(31, interval=10).status is FAIL


def test_fewer_than_four_checks_have_no_trend() -> None:
    assert trend_of(seen(PASS, FAIL, FAIL)) is Trend.STABLE


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


@given(st.sampled_from(HealthStatus), st.floats(0, 10), st.integers(0, 50))
def test_a_history_of_equal_checks_is_stable(status: HealthStatus, duration: float, length: int) -> None:
    assert trend_of(seen(*[status] * length, duration=duration)) is Trend.STABLE
