"""What an orchestrator's probes read: never a check itself, only what is already known."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkg_otel.health.status import ComponentHealth, HealthStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["Heartbeat", "ProbeResult", "Probes"]

BEAT_SECONDS = 0.5
MAX_AGE_SECONDS = 5.0


class Heartbeat:
    """Stamps the time every half second on the loop it was started on.

    A loop that is blocked stops stamping, which any thread can see. Before `start` and after `stop`
    there is no loop to watch, and it counts as alive.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._last: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to beat on the running loop; does nothing when it already does."""
        if self._task is None:
            self._last = self._clock()
            self._task = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Stop beating."""
        task, self._task, self._last = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    @property
    def age(self) -> float:
        """Seconds since the last beat; 0 when nothing is watched."""
        last = self._last
        return 0.0 if last is None else self._clock() - last

    def alive(self, max_age: float = MAX_AGE_SECONDS) -> bool:
        """Say whether the last beat is at most `max_age` seconds old. Any thread."""
        return self.age <= max_age

    async def _beat(self) -> None:
        while True:
            await self._sleep(BEAT_SECONDS)
            self._last = self._clock()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A probe's answer; `reasons` says why it is not ok, and is empty when it is."""

    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the probe succeeds."""
        return not self.reasons


class Probes:
    """Liveness, readiness and startup, from any thread, in microseconds.

    `state` returns the lifecycle's state and `components` the health monitor's snapshot. A component
    that is not essential never changes an answer.
    Source: Kubernetes, "Liveness, Readiness, and Startup Probes": a restart must be able to help, so
    liveness watches the event loop and nothing else.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        state: Callable[[], str],
        components: Callable[[], Iterable[ComponentHealth]],
    ) -> None:
        self._heartbeat = heartbeat
        self._state = state
        self._components = components
        self._started = False

    def liveness(self) -> ProbeResult:
        """Answer whether the event loop runs: a beat in the last 5 s, or nothing to watch yet."""
        if self._heartbeat.alive():
            return ProbeResult()
        return ProbeResult((f"the event loop has been blocked for {self._heartbeat.age:.1f} s",))

    def readiness(self) -> ProbeResult:
        """Answer whether to send calls here: serving, and no essential component is fail or unknown."""
        state = self._state()
        reasons = [] if state == "serving" else [f"lifecycle: {state}"]
        reasons += [
            _reason(each)
            for each in self._components()
            if each.essential and each.status in (HealthStatus.CRITICAL, HealthStatus.UNKNOWN)
        ]
        return ProbeResult(tuple(reasons))

    def startup(self) -> ProbeResult:
        """Answer whether the start is over and every essential component's last check succeeded.

        Once ok it is ok for good.
        """
        if self._started:
            return ProbeResult()
        reasons = ["lifecycle: starting"] if self._state() == "starting" else []
        reasons += [
            _reason(each)
            for each in self._components()
            if each.essential and (each.status is HealthStatus.UNKNOWN or each.consecutive_failures)
        ]
        self._started = not reasons
        return ProbeResult(tuple(reasons))


def _reason(health: ComponentHealth) -> str:
    return f"{health.name}: {health.status}" + (f": {health.message}" if health.message else "")
