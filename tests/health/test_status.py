from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.health.status import CheckResult, ComponentHealth, HealthStatus, Observation

PASS, WARN, FAIL, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.WARNING,
    HealthStatus.CRITICAL,
    HealthStatus.UNKNOWN,
)


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


def test_a_status_may_be_its_word_and_another_word_is_an_error() -> None:
    assert CheckResult("fail").status is FAIL  # type: ignore[arg-type] # by those who have no type checker
    with pytest.raises(ValueError, match="'sick' is not a valid HealthStatus"):
        CheckResult("sick")  # type: ignore[arg-type]


def test_whatever_a_check_says_becomes_what_json_can_say() -> None:
    data: Any = {"load": math.nan, "since": date(2026, 1, 2), 7: 1.5, "full": True, "path": "/data"}
    result = CheckResult(WARN, ConnectionError("no route"), data)  # type: ignore[arg-type]
    assert result.message == "no route"
    assert result.data == {"load": "nan", "since": "2026-01-02", "7": 1.5, "full": True, "path": "/data"}
    json.dumps(result.data, allow_nan=False)


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
