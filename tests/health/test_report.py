from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.health.report import SystemHealthReport, aggregate
from llmkg_otel.health.status import ComponentHealth, HealthStatus, Trend

if TYPE_CHECKING:
    from random import Random

PASS, WARN, FAIL, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.WARNING,
    HealthStatus.CRITICAL,
    HealthStatus.UNKNOWN,
)
systems = st.lists(
    st.builds(
        ComponentHealth, name=st.just("c"), essential=st.booleans(), status=st.sampled_from(HealthStatus)
    )
)


@given(systems)
def test_the_system_fails_exactly_when_an_essential_component_does(system: list[ComponentHealth]) -> None:
    failing = any(each.essential and each.status is FAIL for each in system)
    assert (aggregate(system) is FAIL) == failing


@given(systems)
def test_the_system_passes_exactly_when_nothing_warns_or_fails_and_all_essentials_are_known(
    system: list[ComponentHealth],
) -> None:
    fine = all(each.status is PASS or (each.status is UNKNOWN and not each.essential) for each in system)
    assert (aggregate(system) is PASS) == fine


@given(systems)
def test_a_component_that_is_not_essential_can_at_most_make_the_system_warn(
    system: list[ComponentHealth],
) -> None:
    assert aggregate([replace(each, essential=False) for each in system]) in (PASS, WARN)


@given(st.randoms(), systems)
def test_the_order_of_components_does_not_matter(random: Random, system: list[ComponentHealth]) -> None:
    shuffled = random.sample(system, len(system))
    assert aggregate(shuffled) is aggregate(system)


def test_an_essential_component_that_was_never_checked_leaves_the_system_unknown() -> None:
    unchecked = ComponentHealth("engine", essential=True)
    assert aggregate([unchecked, ComponentHealth("cache", essential=False, status=PASS)]) is UNKNOWN
    assert aggregate([unchecked, ComponentHealth("cache", essential=False, status=FAIL)]) is WARN


def test_the_report_reads_as_health_json() -> None:
    engine = ComponentHealth(
        "engine",
        essential=True,
        status=FAIL,
        message="ConnectionError: refused",
        checked_at=1_700_000_000.25,
        age=1.0,
        duration=0.0123456,
        consecutive_failures=3,
        trend=Trend.DEGRADING,
        data={"free_bytes": 12},
    )
    report = SystemHealthReport(FAIL, (engine,), 1_700_000_001.0, "1.2.3", "serving")
    body = json.loads(json.dumps(report.to_health_json()))
    assert body == {
        "status": "fail",
        "version": "1.2.3",
        "notes": ["lifecycle: serving", "generated: 2023-11-14T22:13:21.000Z"],
        "checks": {
            "engine": [
                {
                    "status": "fail",
                    "componentType": "component",
                    "essential": True,
                    "trend": "degrading",
                    "observedValue": 12.346,
                    "observedUnit": "ms",
                    "time": "2023-11-14T22:13:20.250Z",
                    "output": "ConnectionError: refused",
                    "data": {"free_bytes": 12},
                }
            ]
        },
    }


def test_unknown_reads_as_warn_with_the_reason_since_the_format_has_no_such_status() -> None:
    report = SystemHealthReport(UNKNOWN, (ComponentHealth("engine", essential=True),), 0.0, "1", "starting")
    body = report.to_health_json()
    assert body["status"] == "warn"
    assert body["checks"]["engine"] == [
        {
            "status": "warn",
            "componentType": "component",
            "essential": True,
            "trend": "unknown",
            "output": "not checked yet",
        }
    ]
