from __future__ import annotations

import pytest

from llmkg_otel.health.heartbeat import Heartbeat
from llmkg_otel.health.probes import Probes
from llmkg_otel.health.status import ComponentHealth, HealthStatus
from llmkg_otel.telemetry import semconv

PASS, WARN, FAIL, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.WARNING,
    HealthStatus.CRITICAL,
    HealthStatus.UNKNOWN,
)


class World:
    """What the probes read."""

    def __init__(self, *components: ComponentHealth, state: str = "serving") -> None:
        self.components = components
        self.state = state
        self.probes = Probes(Heartbeat(), lambda: self.state, lambda: self.components)


def component(
    status: HealthStatus, *, essential: bool = True, failures: int = 0, message: str = ""
) -> ComponentHealth:
    return ComponentHealth(
        "engine", essential=essential, status=status, message=message, consecutive_failures=failures
    )


def test_liveness_is_ok_before_the_start_and_whatever_the_components_say() -> None:
    assert World(component(FAIL), state="stopped").probes.liveness().ok


@pytest.mark.parametrize("state", [each for each in semconv.LIFECYCLE_STATES if each != "serving"])
def test_only_a_serving_system_is_ready(state: str) -> None:
    assert World(component(PASS), state=state).probes.readiness().reasons == (f"lifecycle: {state}",)
    assert World(component(PASS)).probes.readiness().ok


@pytest.mark.parametrize("status", [FAIL, UNKNOWN])
def test_an_essential_component_that_fails_or_was_never_checked_makes_it_not_ready(
    status: HealthStatus,
) -> None:
    answer = World(component(status, message="why")).probes.readiness()
    assert not answer.ok
    assert answer.reasons == (f"engine: {status}: why",)


def test_a_warning_keeps_it_ready() -> None:
    assert World(component(WARN)).probes.readiness().ok


@pytest.mark.parametrize("status", list(HealthStatus))
def test_a_component_that_is_not_essential_never_changes_a_probe(status: HealthStatus) -> None:
    probes = World(component(status, essential=False, failures=9)).probes
    assert (probes.readiness().ok, probes.startup().ok, probes.liveness().ok) == (True, True, True)


def test_the_start_is_over_once_every_essential_component_succeeded_and_stays_over() -> None:
    world = World(component(UNKNOWN))
    assert not world.probes.startup().ok
    world.components = (component(WARN, failures=1),)
    assert not world.probes.startup().ok
    world.components = (component(PASS),)
    assert world.probes.startup().ok
    world.components = (component(FAIL, failures=3),)
    assert world.probes.startup().ok


def test_a_starting_system_without_components_has_not_started() -> None:
    world = World(state="starting")
    assert world.probes.startup().reasons == ("lifecycle: starting",)
    world.state = "serving"
    assert world.probes.startup().ok


def test_states_have_the_names_of_the_telemetry_contract() -> None:
    assert tuple(HealthStatus) == semconv.HEALTH_STATES
