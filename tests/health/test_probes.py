from __future__ import annotations

import asyncio
import threading

import pytest

from llmkg_otel.health.probes import Heartbeat, Probes
from llmkg_otel.health.status import ComponentHealth, HealthStatus
from llmkg_otel.telemetry import semconv

PASS, WARN, FAIL, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.WARNING,
    HealthStatus.CRITICAL,
    HealthStatus.UNKNOWN,
)


class Loop:
    """The heartbeat's clock and sleep: it beats when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.turn = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.turn.wait()
        self.turn.clear()

    async def beat(self) -> None:
        self.turn.set()
        for _ in range(3):
            await asyncio.sleep(0)


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


async def test_the_heart_beats_each_half_second_until_it_is_stopped() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    await heartbeat.start()
    await loop.beat()
    loop.now += 4
    assert heartbeat.age == 4
    await loop.beat()
    assert heartbeat.age == 0
    assert set(loop.slept) == {0.5}
    await heartbeat.stop()
    loop.now += 60
    assert heartbeat.alive()


async def test_a_blocked_loop_is_seen_from_another_thread() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    probes = Probes(heartbeat, lambda: "serving", tuple)
    await heartbeat.start()
    loop.now += 5.1  # no beat: the loop does not get to it
    answers = []
    reader = threading.Thread(target=lambda: answers.append(probes.liveness()))
    reader.start()
    reader.join()
    assert answers[0].reasons == ("the event loop has been blocked for 5.1 s",)
    assert heartbeat.alive(max_age=6)
    await heartbeat.stop()


async def test_starting_the_heart_twice_starts_one() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    await heartbeat.start()
    await heartbeat.start()
    await loop.beat()
    assert len(loop.slept) == 2
    await heartbeat.stop()


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
