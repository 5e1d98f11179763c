"""The health of the whole system, and its form as application/health+json."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmkg_otel.health.status import ComponentHealth, HealthStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SystemHealthReport", "aggregate"]


def aggregate(components: Iterable[ComponentHealth]) -> HealthStatus:
    """Return the system's status: the first of these that holds.

    fail, if an essential component fails; warn, if any component warns or another one fails; unknown, if
    an essential component is unknown; pass.
    """
    seen = {(each.status, each.essential) for each in components}
    if (HealthStatus.CRITICAL, True) in seen:
        return HealthStatus.CRITICAL
    if any(status in (HealthStatus.WARNING, HealthStatus.CRITICAL) for status, _ in seen):
        return HealthStatus.WARNING
    if (HealthStatus.UNKNOWN, True) in seen:
        return HealthStatus.UNKNOWN
    return HealthStatus.HEALTHY


@dataclass(frozen=True, slots=True)
class SystemHealthReport:
    """What an operator asks for first. `generated_at` is unix time; `status` comes from `aggregate`."""

    status: HealthStatus
    components: tuple[ComponentHealth, ...]
    generated_at: float
    version: str
    lifecycle: str

    def to_health_json(self) -> dict[str, Any]:
        """Return the body of an application/health+json response.

        "unknown", which that format does not have, reads as warn; `essential`, `trend` and `data` are
        additional keys, which it allows.
        Source: draft-inadarei-api-health-check-06, sections 3 and 4.
        """
        return {
            "status": _health_json_status(self.status),
            "version": self.version,
            "notes": [f"lifecycle: {self.lifecycle}", f"generated: {_iso(self.generated_at)}"],
            "checks": {each.name: [_entry(each)] for each in self.components},
        }


def _entry(health: ComponentHealth) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "status": _health_json_status(health.status),
        "componentType": "component",
        "essential": health.essential,
        "trend": health.trend.value,
    }
    if health.checked_at is None:
        return entry | {"output": "not checked yet"}
    if health.duration is not None:
        entry |= {"observedValue": round(health.duration * 1000, 3), "observedUnit": "ms"}
    entry["time"] = _iso(health.checked_at)
    if health.message:
        entry["output"] = health.message
    if health.data:
        entry["data"] = dict(health.data)
    return entry


def _health_json_status(status: HealthStatus) -> str:
    return HealthStatus.WARNING.value if status is HealthStatus.UNKNOWN else status.value


def _iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
