"""What policies report: rare happenings as frozen events, and each call's beginning and end.

A policy imports this module and no OpenTelemetry. `telemetry.observer` turns what is reported here
into spans, metrics and logs; a test can stand in with a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.call import Call

__all__ = [
    "AlertChanged",
    "BreakerTransitioned",
    "CallObserver",
    "CheckpointEnded",
    "ConnectionCreated",
    "ConnectionUsed",
    "ConnectionWaited",
    "Event",
    "FallbackFailed",
    "HealthChanged",
    "HealthChecked",
    "LifecycleChanged",
    "LoopBlocked",
    "Observer",
    "PermitWaited",
    "RetryScheduled",
    "SheddingLimitChanged",
    "ShutdownCounted",
    "ShutdownPhaseEnded",
    "TimeLimitIgnored",
]


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """An attempt failed and another follows. `attempt` is the failed one, 1-based; `delay` in seconds."""

    operation: str
    attempt: int
    delay: float
    error_type: str


@dataclass(frozen=True, slots=True)
class BreakerTransitioned:
    """A circuit breaker changed state; `error_type` is of the failure that did it, if one did."""

    name: str
    previous: str
    state: str
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class PermitWaited:
    """A call waited `seconds` for a permit of `pool`, and got it or not."""

    pool: str
    seconds: float
    acquired: bool


@dataclass(frozen=True, slots=True)
class ConnectionCreated:
    """A connection pool made a connection in `seconds`."""

    pool: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionWaited:
    """Somebody waited `seconds` for a connection of `pool`, and got it or not."""

    pool: str
    seconds: float
    acquired: bool


@dataclass(frozen=True, slots=True)
class ConnectionUsed:
    """A connection was lent for `seconds`."""

    pool: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SheddingLimitChanged:
    """The adaptive limit on calls at once has moved."""

    previous: int
    limit: int


@dataclass(frozen=True, slots=True)
class TimeLimitIgnored:
    """An operation ran past its time limit, for `seconds` in all: it has returned now, or goes on."""

    operation: str
    seconds: float
    returned: bool


@dataclass(frozen=True, slots=True)
class FallbackFailed:
    """A rung of an operation's fallback ladder failed; the next one follows, if there is one."""

    operation: str
    fallback: str
    error_type: str


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """A health check ran for `seconds`."""

    component: str
    seconds: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """A component's status changed; `message` is the check's own words."""

    component: str
    previous: str
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class LoopBlocked:
    """The event loop has not run for `seconds`; `stack` is where its thread stands, as a traceback."""

    seconds: float
    stack: str


@dataclass(frozen=True, slots=True)
class LifecycleChanged:
    """The system moved to another state of its life."""

    previous: str
    state: str


@dataclass(frozen=True, slots=True)
class ShutdownPhaseEnded:
    """A phase of the shutdown took `seconds`; `error` says what went wrong in it, if anything did."""

    phase: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ShutdownCounted:
    """What became of the calls that met the shutdown: drained, cancelled, refused; as in its report."""

    operations: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CheckpointEnded:
    """Saving a checkpoint took `seconds`; `name` is what it is called, or `error` why there is none."""

    seconds: float
    name: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class AlertChanged:
    """An alert fired or was resolved."""

    alert: str
    severity: str
    firing: bool
    labels: tuple[tuple[str, str], ...]
    summary: str
    value: float


Event = (
    RetryScheduled
    | BreakerTransitioned
    | PermitWaited
    | ConnectionCreated
    | ConnectionWaited
    | ConnectionUsed
    | SheddingLimitChanged
    | TimeLimitIgnored
    | FallbackFailed
    | HealthChecked
    | HealthChanged
    | LoopBlocked
    | LifecycleChanged
    | ShutdownPhaseEnded
    | ShutdownCounted
    | CheckpointEnded
    | AlertChanged
)


class Observer(Protocol):
    """Receives what happened. Must be quick, thread-safe, and must not raise."""

    def on_event(self, event: Event) -> None:
        """Take note of one event."""
        ...


class CallObserver(Observer, Protocol):
    """Also sees every protected call begin and end: the hot path's two reports."""

    def call_started(self, call: Call) -> None:
        """Open the call's span and make it current; may keep what it needs on `call.span`."""
        ...

    def attempt_started(self, call: Call) -> object:
        """Open a span for the second or a later attempt; what it returns goes to `attempt_ended`."""
        ...

    def attempt_ended(self, token: object, error: BaseException | None) -> None:
        """Close an attempt's span."""
        ...

    def attempt_timed(self, call: Call, seconds: float, error: BaseException | None) -> None:
        """Record how long the engine took for one attempt; only asked if performance is tracked."""
        ...

    def call_ended(self, call: Call, error: BaseException | None) -> None:
        """Record duration and outcome, and end the span, exactly once for each call started."""
        ...
