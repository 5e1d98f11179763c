"""What each event becomes: a metric, a log record with an event name, or both."""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import RateLimitedError, RejectedError
from llmkg_otel.events import (
    AlertChanged,
    BreakerTransitioned,
    CheckpointEnded,
    ConnectionCreated,
    ConnectionUsed,
    ConnectionWaited,
    Event,
    FallbackFailed,
    HealthChanged,
    HealthChecked,
    LifecycleChanged,
    LoopBlocked,
    PermitWaited,
    RetryScheduled,
    SheddingLimitChanged,
    ShutdownCounted,
    ShutdownPhaseEnded,
    TimeLimitIgnored,
)
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from llmkg_otel.telemetry.instruments import Instruments

__all__ = ["EVENT_NAME", "Records"]

EVENT_NAME = "otel.event.name"
"""The record attribute that OpenTelemetry's logging handler promotes to the event's name."""

REJECTIONS_LOGGED_PER_SECOND = 1.0

_log = logging.getLogger("llmkg_otel.events")


def _emit(level: int, event_name: str, message: str, **attributes: Any) -> None:
    extra = {EVENT_NAME: event_name} | {key: value for key, value in attributes.items() if value is not None}
    _log.log(level, message, extra=extra)


class Records:
    """Writes events; one method per kind of event. Thread-safe."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._sample_lock = threading.Lock()
        self._next_rejection = 0.0
        self._rejections_left_out = 0

    @functools.singledispatchmethod
    def write(self, event: Event) -> None:
        """Write an event to where its kind goes."""
        raise TypeError(f"no record is defined for {type(event).__name__}")

    @write.register
    def _(self, event: RetryScheduled) -> None:
        attributes = {"name": event.operation}
        self._instruments.retry_attempts.add(1, attributes)
        self._instruments.retry_delay.record(event.delay, attributes)
        message = f"{event.operation}: attempt {event.attempt} failed, next in {event.delay:.3f} s"
        _emit(
            logging.INFO,
            semconv.RETRY_SCHEDULED,
            message,
            operation=event.operation,
            attempt=event.attempt,
            delay=event.delay,
            **{semconv.ERROR_TYPE: event.error_type},
        )

    @write.register
    def _(self, event: BreakerTransitioned) -> None:
        attributes = {"name": event.name, "state": event.state, "previous_state": event.previous}
        self._instruments.breaker_transitions.add(1, attributes)
        _emit(
            logging.INFO if event.state == "closed" else logging.WARNING,
            semconv.BREAKER_STATE_CHANGED,
            f"circuit breaker {event.name}: {event.previous} -> {event.state}",
            breaker=event.name,
            state=event.state,
            previous_state=event.previous,
            **{semconv.ERROR_TYPE: event.error_type},
        )

    @write.register
    def _(self, event: PermitWaited) -> None:
        self._instruments.permit_wait_time.record(event.seconds, {"pool": event.pool})

    @write.register
    def _(self, event: SheddingLimitChanged) -> None:
        _emit(
            logging.INFO,
            semconv.LOAD_SHEDDING_LIMIT_CHANGED,
            f"load shedding: {event.previous} -> {event.limit} calls at once",
            limit=event.limit,
            previous_limit=event.previous,
        )

    @write.register
    def _(self, event: TimeLimitIgnored) -> None:
        what = "returned" if event.returned else "still ran"
        _emit(
            logging.WARNING,
            semconv.TIME_LIMIT_IGNORED,
            f"{event.operation}: an operation that ignored its time limit {what} after {event.seconds:.3f} s",
            operation=event.operation,
            seconds=event.seconds,
            returned=event.returned,
        )

    @write.register
    def _(self, event: FallbackFailed) -> None:
        _emit(
            logging.WARNING,
            semconv.FALLBACK_FAILED,
            f"{event.operation}: the fallback {event.fallback} failed too",
            operation=event.operation,
            fallback=event.fallback,
            **{semconv.ERROR_TYPE: event.error_type},
        )

    @write.register
    def _(self, event: ConnectionCreated) -> None:
        attributes = {semconv.CONNECTION_POOL: event.pool}
        self._instruments.connection_create_time.record(event.seconds, attributes)

    @write.register
    def _(self, event: ConnectionWaited) -> None:
        attributes = {semconv.CONNECTION_POOL: event.pool}
        self._instruments.connection_wait_time.record(event.seconds, attributes)
        if not event.acquired:
            self._instruments.connection_timeouts.add(1, attributes)

    @write.register
    def _(self, event: ConnectionUsed) -> None:
        attributes = {semconv.CONNECTION_POOL: event.pool}
        self._instruments.connection_use_time.record(event.seconds, attributes)

    @write.register
    def _(self, event: HealthChecked) -> None:
        attributes = {"component": event.component}
        if event.error_type is not None:
            attributes[semconv.ERROR_TYPE] = event.error_type
        self._instruments.health_check_duration.record(event.seconds, attributes)

    @write.register
    def _(self, event: HealthChanged) -> None:
        calm = event.status == "pass"
        _emit(
            logging.INFO if calm else logging.WARNING,
            semconv.HEALTH_STATE_CHANGED,
            f"health of {event.component}: {event.previous} -> {event.status}",
            component=event.component,
            state=event.status,
            previous_state=event.previous,
            detail=event.message or None,
        )

    @write.register
    def _(self, event: LoopBlocked) -> None:
        _emit(
            logging.ERROR,
            semconv.LOOP_BLOCKED,
            f"the event loop has been blocked for {event.seconds:.1f} s",
            seconds=event.seconds,
            stack=event.stack,
        )

    @write.register
    def _(self, event: LifecycleChanged) -> None:
        names = {"lame_duck": semconv.SHUTDOWN_STARTED, "stopped": semconv.SHUTDOWN_COMPLETED}
        message = f"lifecycle: {event.previous} -> {event.state}"
        if event.state in names:
            _emit(logging.INFO, names[event.state], message, state=event.state)
        else:
            _log.info(message)

    @write.register
    def _(self, event: ShutdownPhaseEnded) -> None:
        self._instruments.shutdown_phase_duration.record(event.seconds, {"phase": event.phase})
        if event.error is not None:
            _log.error("shutdown phase %s: %s", event.phase, event.error)

    @write.register
    def _(self, event: ShutdownCounted) -> None:
        for outcome, count in event.operations.items():
            self._instruments.shutdown_operations.add(count, {"outcome": outcome})

    @write.register
    def _(self, event: CheckpointEnded) -> None:
        if event.error is None:
            _log.info("%s saved in %.3f s", event.name, event.seconds)
        else:
            _log.error("no checkpoint saved: %s", event.error)

    @write.register
    def _(self, event: AlertChanged) -> None:
        _emit(
            logging.WARNING if event.firing else logging.INFO,
            semconv.ALERT_FIRED if event.firing else semconv.ALERT_RESOLVED,
            f"alert {event.alert} {'fires' if event.firing else 'is resolved'}: {event.summary}",
            alert=event.alert,
            severity=event.severity,
            value=event.value,
        )

    def rejected(self, operation: str, error: RejectedError) -> None:
        """Log a rate-limit refusal, at most one a second, with how many were left out since."""
        if not isinstance(error, RateLimitedError):
            return
        now = time.monotonic()
        with self._sample_lock:
            if now < self._next_rejection:
                self._rejections_left_out += 1
                return
            self._next_rejection = now + 1 / REJECTIONS_LOGGED_PER_SECOND
            left_out, self._rejections_left_out = self._rejections_left_out, 0
        _emit(
            logging.WARNING,
            semconv.RATE_LIMIT_REJECTED,
            str(error),
            operation=operation,
            policy=error.scope,
            not_logged=left_out,
        )
