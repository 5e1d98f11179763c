"""What a health check says, and how a component's health follows from it: values and pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CheckResult", "ComponentHealth", "HealthStatus", "Observation", "Trend", "trend_of"]


class HealthStatus(StrEnum):
    """The seed document's names; the values are those of application/health+json."""

    HEALTHY = "pass"
    WARNING = "warn"
    CRITICAL = "fail"
    UNKNOWN = "unknown"


class Trend(StrEnum):
    """Where a component's health is going; see `trend_of`."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"
    FLAPPING = "flapping"


SEVERITY = {
    HealthStatus.HEALTHY: 0.0,
    HealthStatus.UNKNOWN: 0.0,
    HealthStatus.WARNING: 0.5,
    HealthStatus.CRITICAL: 1.0,
}
STALE_WARN_INTERVALS = 3
STALE_FAIL_INTERVALS = 6
"""Ages of a result, in check intervals, beyond which it reads as warn and as fail."""

TREND_WINDOW = 20
TREND_MIN = 4
FLAP_CHANGES = 3
FLAP_RATIO = 0.3
SEVERITY_STEP = 0.25
LATENCY_RATIO = 1.5
LATENCY_FLOOR = 0.001


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found. `data` is a few numbers or words for the report, never for a metric."""

    status: HealthStatus
    message: str = ""
    data: Mapping[str, float | str] = field(default_factory=dict)

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
    trend: Trend = Trend.STABLE
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


def trend_of(history: Sequence[Observation]) -> Trend:
    """Return the trend of a component's checks, oldest first.

    Looks at the last 20, without those that found "unknown"; fewer than 4 are stable. In this order:
    flapping, if the status changed at least 3 times and in 30 % or more of the steps; degrading or
    improving, if mean severity (pass 0, warn 0.5, fail 1) of the newer half is 0.25 or more above or
    below that of the older half (an odd one in the middle is in neither); the same, if the median
    duration of checks that did not fail differs 1.5-fold and by 1 ms or more; else stable.
    A history read backwards gives the opposite trend.

    Source: flapping as the share of state changes among recent checks is Nagios's method; the thresholds
    are judgement, not measurement.
    """
    recent = [seen for seen in history[-TREND_WINDOW:] if seen.status is not HealthStatus.UNKNOWN]
    if len(recent) < TREND_MIN:
        return Trend.STABLE
    changes = sum(a.status is not b.status for a, b in pairwise(recent))
    if changes >= FLAP_CHANGES and changes >= FLAP_RATIO * (len(recent) - 1):
        return Trend.FLAPPING
    half = len(recent) // 2
    older, newer = recent[:half], recent[-half:]
    step = _severity(newer) - _severity(older)
    if abs(step) < SEVERITY_STEP:
        step = _latency_step(older, newer)
    if step == 0:
        return Trend.STABLE
    return Trend.DEGRADING if step > 0 else Trend.IMPROVING


def _severity(part: Sequence[Observation]) -> float:
    return fmean(SEVERITY[seen.status] for seen in part)


def _latency_step(older: Sequence[Observation], newer: Sequence[Observation]) -> float:
    """Return how many seconds slower the newer half is, or 0 if that is too little to matter."""
    before, after = (
        [seen.duration for seen in part if seen.status is not HealthStatus.CRITICAL]
        for part in (older, newer)
    )
    if not before or not after:
        return 0.0
    low, high = sorted((median(before), median(after)))
    if high - low < LATENCY_FLOOR or high < LATENCY_RATIO * low:
        return 0.0
    return median(after) - median(before)
