"""Turns what the policies report into spans, metrics and logs. The hot path is two methods."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, cast

from opentelemetry import context as otel_context
from opentelemetry.trace import (
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from llmkg_otel.call import current_call
from llmkg_otel.errors import CircuitOpenError, OperationTimeoutError, RejectedError, error_type
from llmkg_otel.events import (
    BreakerTransitioned,
    CheckpointEnded,
    ConnectionWaited,
    Event,
    LifecycleChanged,
    PermitWaited,
    RetryScheduled,
    ShutdownPhaseEnded,
)
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.instruments import Instruments
from llmkg_otel.telemetry.records import Records

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

    from llmkg_otel.call import Call

__all__ = ["TelemetryObserver"]

_log = logging.getLogger("llmkg_otel.call")

MAX_FALLBACKS = 50
"""Names of rungs in telemetry; all further ones are `_OTHER`."""


class TelemetryObserver:
    """Writes every report to OpenTelemetry and to the log; an error in here never reaches a call.

    Per call: one span (or the enrichment of one that is there) and one histogram record. Thread-safe.
    """

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._instruments = Instruments(meter)
        self._records = Records(self._instruments)
        self._duration = self._instruments.operation_duration
        self._attributes = _Attributes()
        self._opened_by: dict[str, SpanContext] = {}
        self._failing: dict[str, tuple[str, float]] = {}
        self._shutdown_span: Span | None = None
        self._failed_hooks: set[tuple[str, str]] = set()
        self._fallbacks: set[str] = set()

    def call_started(self, call: Call) -> None:
        """Open the call's span and make it current, or adopt the span that covers the call already."""
        try:
            if call.span_owner or not (span := get_current_span()).get_span_context().is_valid:
                call.span_owner = True  # nobody else covers the call
                # The context is looked up once: the SDK would do it for each of these, and for the histogram.
                context = otel_context.get_current()
                span = self._tracer.start_span(call.operation, context)
                call.context = context = set_span_in_context(span, context)
                call.scope = otel_context.attach(context)
            else:
                span.set_attributes(self._attributes[call.operation])
            call.span = span
            if call.correlation_id is not None:
                span.set_attribute(semconv.CORRELATION_ID, call.correlation_id)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s started", call.operation)
        except Exception as problem:  # noqa: BLE001 - telemetry must not fail a call
            self._hook_failed("call_started", problem)

    def call_ended(self, call: Call, error: BaseException | None) -> None:
        """Record duration and outcome, and end the span if it is ours."""
        seconds = time.monotonic() - call.started
        try:
            attributes = self._attributes[call.operation]
            if error is None and call.fallback is None:
                self._duration.record(seconds, attributes, call.context)
            elif error is None:
                self._duration.record(seconds, attributes | self._mark_fallback(call), call.context)
            else:
                kind = error_type(error)
                self._duration.record(seconds, {**attributes, semconv.ERROR_TYPE: kind}, call.context)
                self._mark_failed(call, error, kind)
            if call.attempts > 1:
                call.span.set_attribute(semconv.ATTEMPTS, call.attempts)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s ended after %.6f s", call.operation, seconds)
        except Exception as problem:  # noqa: BLE001
            self._hook_failed("call_ended", problem)
        finally:
            self._close(call)

    def attempt_started(self, call: Call) -> object:
        """Open a span for the second or a later attempt and make it current."""
        try:
            span = self._tracer.start_span(
                semconv.ATTEMPT_SPAN,
                attributes={semconv.OPERATION_NAME: call.operation, semconv.ATTEMPTS: call.attempts},
            )
            return span, otel_context.attach(set_span_in_context(span))
        except Exception as problem:  # noqa: BLE001
            self._hook_failed("attempt_started", problem)
            return None

    def attempt_ended(self, token: object, error: BaseException | None) -> None:
        """End an attempt's span."""
        if not isinstance(token, tuple):
            return
        span, scope = token
        try:
            otel_context.detach(scope)
            if error is not None:
                _set_error(span, error, error_type(error))
            span.end()
        except Exception as problem:  # noqa: BLE001
            self._hook_failed("attempt_ended", problem)

    def attempt_timed(self, call: Call, seconds: float, error: BaseException | None) -> None:
        """Record the duration of one attempt."""
        try:
            attributes = self._attributes[call.operation]
            if error is not None:
                attributes = {**attributes, semconv.ERROR_TYPE: error_type(error)}
            self._instruments.attempt_duration.record(seconds, attributes)
        except Exception as problem:  # noqa: BLE001
            self._hook_failed("attempt_timed", problem)

    def on_event(self, event: Event) -> None:
        """Write one event to its metric and to the log."""
        try:
            if isinstance(event, BreakerTransitioned):
                self._note_opening(event)
            elif isinstance(event, LifecycleChanged | ShutdownPhaseEnded):
                self._trace_shutdown(event)
            elif isinstance(event, CheckpointEnded):
                self._trace_ended(semconv.CHECKPOINT_SPAN, event)
            elif isinstance(event, PermitWaited | ConnectionWaited | RetryScheduled):
                _mark_wait(event)
            self._records.write(event)
        except Exception as problem:  # noqa: BLE001
            self._hook_failed("on_event", problem)

    def alerts_evaluated(self, seconds: float) -> None:
        """Record one evaluation of the alert rules."""
        self._instruments.alert_evaluation_duration.record(seconds)

    def alert_told(self, channel: str, kind: str | None) -> None:
        """Count a message about alerts; `kind` is the error.type of one that did not arrive."""
        failed = {} if kind is None else {semconv.ERROR_TYPE: kind}
        self._instruments.alert_notifications.add(1, {"channel": channel} | failed)

    def failing_trace(self, operation: str, since: float) -> str | None:
        """Return the trace id of an operation's latest failed call; None: none, or before `since` (epoch)."""
        trace_id, at = self._failing.get(operation, ("", 0.0))
        return trace_id if trace_id and at >= since else None

    def _mark_failed(self, call: Call, error: BaseException, kind: str) -> None:
        span: Span = call.span
        _set_error(span, error, kind)
        if (context := span.get_span_context()).trace_flags.sampled:
            self._failing[call.operation] = format(context.trace_id, "032x"), time.time()
        if not isinstance(error, RejectedError):
            return
        span.set_attribute(semconv.REJECTION_SCOPE, error.scope)
        if error.retry_after is not None:
            span.set_attribute(semconv.RETRY_AFTER, error.retry_after)
        if isinstance(error, CircuitOpenError) and (opened_by := self._opened_by.get(error.operation)):
            span.add_link(opened_by)
        self._records.rejected(call.operation, error)

    def _note_opening(self, event: BreakerTransitioned) -> None:
        """Keep the span that opened a circuit, for links to it, until an operator or a success ends that."""
        if event.state == "open":
            self._opened_by[event.name] = get_current_span().get_span_context()
        elif event.state != "half_open":
            self._opened_by.pop(event.name, None)

    def _mark_fallback(self, call: Call) -> dict[str, str]:
        """Tell the span what answered and why; return what the metric is told."""
        name = cast("str", call.fallback)
        if name not in self._fallbacks:
            name = name if len(self._fallbacks) < MAX_FALLBACKS else semconv.OTHER
            self._fallbacks.add(name)
        call.span.set_attribute(semconv.FALLBACK_NAME, name)
        if call.failure is not None:
            call.span.set_attribute(semconv.FALLBACK_REASON, error_type(call.failure))
            call.failure = None  # its traceback holds the engine's frames
        return {semconv.FALLBACK_NAME: name}

    def _trace_shutdown(self, event: LifecycleChanged | ShutdownPhaseEnded) -> None:
        """Keep one span over the phases of a shutdown, ended before the flush that sends it."""
        if isinstance(event, LifecycleChanged) and event.state == "lame_duck":
            self._shutdown_span = self._tracer.start_span(semconv.SHUTDOWN_SPAN)
        elif self._shutdown_span is None:
            return
        elif isinstance(event, ShutdownPhaseEnded):
            self._trace_ended(f"{semconv.SHUTDOWN_SPAN}.{event.phase}", event)
        elif event.state == "flushing":
            self._shutdown_span.end()
            self._shutdown_span = None

    def _trace_ended(self, name: str, event: ShutdownPhaseEnded | CheckpointEnded) -> None:
        """Write a span of what is over, in a shutdown as a child of its span."""
        parent = None if self._shutdown_span is None else set_span_in_context(self._shutdown_span)
        span = self._tracer.start_span(name, parent, start_time=time.time_ns() - int(event.seconds * 1e9))
        if event.error is not None:
            span.set_status(Status(StatusCode.ERROR, event.error))
        span.end()

    def _close(self, call: Call) -> None:
        if not call.span_owner or call.span is None:
            return
        try:
            if call.scope is not None:
                otel_context.detach(call.scope)
            call.span.end()
        except Exception as problem:  # noqa: BLE001
            self._hook_failed("call_ended", problem)

    def _hook_failed(self, hook: str, problem: Exception) -> None:
        """Count an error in telemetry, and log the first of its kind: the next call may bring the same."""
        kind = error_type(problem)
        with contextlib.suppress(Exception):  # when counting fails too, only the log is left
            self._instruments.hook_errors.add(1, {"hook": hook, semconv.ERROR_TYPE: kind})
        if (hook, kind) not in self._failed_hooks:
            self._failed_hooks.add((hook, kind))
            _log.warning("telemetry hook %s failed; further ones are counted", hook, exc_info=problem)


class _Attributes(dict[str, dict[str, str]]):
    """The attributes of an operation's metrics, made once for each."""

    def __missing__(self, operation: str) -> dict[str, str]:
        attributes = self[operation] = {semconv.OPERATION_NAME: operation}
        return attributes


def _mark_wait(event: PermitWaited | ConnectionWaited | RetryScheduled) -> None:
    """Tell the call's span where its time went: the first attempt, which has no span, and each wait."""
    if isinstance(event, RetryScheduled):
        name, call = semconv.RETRY_SCHEDULED, current_call()
        attributes: dict[str, str | float] = {
            "attempt": event.attempt,
            "seconds": 0.0 if call is None else call.attempt_seconds,
            "delay": event.delay,
            semconv.ERROR_TYPE: event.error_type,
        }
    else:
        name = semconv.PERMIT_WAITED if isinstance(event, PermitWaited) else semconv.CONNECTION_WAITED
        attributes = {"pool": event.pool, "seconds": event.seconds, "acquired": event.acquired}
    get_current_span().add_event(name, attributes)


def _set_error(span: Span, error: BaseException, kind: str) -> None:
    """Set status and error.type. Only refusals and timeouts are told in words: others may quote data."""
    told = str(error) if isinstance(error, RejectedError | OperationTimeoutError) else kind
    span.set_status(Status(StatusCode.ERROR, told))
    span.set_attribute(semconv.ERROR_TYPE, kind)
