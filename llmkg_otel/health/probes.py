"""What an orchestrator's probes read: never a check itself, only what is already known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkg_otel.health.status import ComponentHealth, HealthStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmkg_otel.health.heartbeat import Heartbeat

__all__ = ["ProbeResult", "Probes"]


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
