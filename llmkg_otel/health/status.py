"""What a health check says, and how a component's health follows from it: values and pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CheckResult", "ComponentHealth", "HealthStatus", "Observation", "Trend"]


class HealthStatus(StrEnum):
    """The seed document's names; the values are those of application/health+json."""

    HEALTHY = "pass"
    WARNING = "warn"
    CRITICAL = "fail"
    UNKNOWN = "unknown"


class Trend(StrEnum):
    """Where a component's health is going; `health.trend.trend_of` says how that is found."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"
    FLAPPING = "flapping"
    UNKNOWN = "unknown"


SEVERITY = {
    HealthStatus.HEALTHY: 0.0,
    HealthStatus.UNKNOWN: 0.0,
    HealthStatus.WARNING: 0.5,
    HealthStatus.CRITICAL: 1.0,
}
STALE_WARN_INTERVALS = 3
STALE_FAIL_INTERVALS = 6
"""Ages of a result, in check intervals, beyond which it reads as warn and as fail."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found. `data` is a few numbers or words for the report, never for a metric.

    Raises ValueError for a status that is none.
    """

    status: HealthStatus
    message: str = ""
    data: Mapping[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Made plain once: what probes read from any thread, and write as JSON, comes from users' checks.
        object.__setattr__(self, "status", HealthStatus(self.status))
        object.__setattr__(self, "message", str(self.message))
        object.__setattr__(self, "data", {str(key): _plain(value) for key, value in self.data.items()})

    @classmethod
    def of(cls, answer: object) -> CheckResult:
        """Return what a check answered as a result: None means pass; raise TypeError for a stranger."""
        if answer is None:
            return cls(HealthStatus.HEALTHY)
        if isinstance(answer, HealthStatus):
            return cls(answer)
        if isinstance(answer, cls):
            return answer
        raise TypeError(f"a check returns None, a HealthStatus or a CheckResult, not {type(answer).__name__}")


def _plain(value: object) -> float | str:
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


@dataclass(frozen=True, slots=True)
class Observation:
    """One check in a component's history: unix time of its end, what it found itself, seconds it took."""

    time: float
    status: HealthStatus
    duration: float


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """A component's health at one moment. Immutable: safe to hand to any thread.

    `checked_at` is unix time; `age` (since the last check ended) and `duration` (of that check) are
    seconds. The three are None before the first check.
    """

    name: str
    essential: bool
    status: HealthStatus = HealthStatus.UNKNOWN
    message: str = ""
    checked_at: float | None = None
    age: float | None = None
    duration: float | None = None
    consecutive_failures: int = 0
    trend: Trend = Trend.UNKNOWN
    data: Mapping[str, float | str] = field(default_factory=dict)

    def after(self, result: CheckResult, observation: Observation, threshold: int) -> ComponentHealth:
        """Return the health after one more check.

        A failure reads as warn until `threshold` of them came in a row; any other finding ends the row
        and stands as it is, so that one success is enough for pass.
        """
        failed = result.status is HealthStatus.CRITICAL
        failures = self.consecutive_failures + 1 if failed else 0
        return replace(
            self,
            status=HealthStatus.WARNING if 0 < failures < threshold else result.status,
            message=result.message,
            checked_at=observation.time,
            age=0.0,
            duration=observation.duration,
            consecutive_failures=failures,
            data=result.data,
        )

    def aged(self, age: float, interval: float) -> ComponentHealth:
        """Return this health as it reads `age` seconds after the check, checks being due each `interval`.

        Older than 3 intervals it is at least warn, older than 6 it is fail: nobody is checking any more.
        """
        stale = HealthStatus.HEALTHY
        if age > STALE_FAIL_INTERVALS * interval:
            stale = HealthStatus.CRITICAL
        elif age > STALE_WARN_INTERVALS * interval:
            stale = HealthStatus.WARNING
        if SEVERITY[stale] <= SEVERITY[self.status]:
            return replace(self, age=age)
        words = [f"stale, last checked {age:.0f} s ago", self.message]
        return replace(self, age=age, status=stale, message="; ".join(filter(None, words)))
