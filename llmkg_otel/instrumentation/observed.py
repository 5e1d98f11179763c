"""One operation of an engine as telemetry sees it, and one call of it."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sized
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from llmkg_otel._forks import in_child
from llmkg_otel.engine.profiles import protected_name
from llmkg_otel.errors import FailureReturnedError, error_type
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.metrics import Histogram

    from llmkg_otel.engine.profiles import Method, Profile
    from llmkg_otel.instrumentation.protection import Protection

__all__ = ["Observation", "Observed", "Recorder", "TextOf"]

TextOf = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
"""Finds the text of a query among a call's arguments."""

MAX_TEXT = 2000
"""Characters of a query's text that go on a span."""

_log = logging.getLogger(__name__)


class Recorder:
    """Where observations are written."""

    def __init__(self, tracer: Tracer, duration: Histogram, *, capture_text: bool) -> None:
        self.tracer = tracer
        self.duration = duration
        self.capture_text = capture_text


class Observed:
    """An instrumented method: its names, and what is done about its calls. `active` False: nothing."""

    def __init__(
        self, profile: Profile, name: str, how: Method, recorder: Recorder, protection: Protection | None
    ) -> None:
        self.engine = profile.name
        self.operation = how.operation or name
        self.protected_name = protected_name(profile, name, how)
        self.attributes = {
            semconv.DB_SYSTEM: profile.system or profile.name,
            semconv.DB_OPERATION: self.operation,
        }
        self.how = how
        self.recorder = recorder
        self.protection = protection
        self.active = True

    def quiet(self) -> bool:
        """Say whether a call goes untold and unprotected.

        So it is after uninstrumenting, inside another call of the engine, and where OpenTelemetry says
        that nothing is to be instrumented: in exporters, whose calls would be told of by more exports.
        """
        if not self.active:
            return True
        around = _innermost.get()
        while around is not None:
            if around.observed.engine == self.engine and not around.ended:
                return True
            around = around.outer
        return bool(otel_context.get_value(_SUPPRESS_INSTRUMENTATION_KEY))

    def checked(self, result: Any) -> Any:
        """Return a result; raise FailureReturnedError, with the result in it, if it stands for a failure."""
        for failure in self.how.failures:
            if _is(result, failure):
                raise FailureReturnedError(self.operation, result)
        return result

    def text_of(self, function: Any, *, skip: int = 0) -> TextOf:
        """Return what finds the query's text among a call's arguments; it finds None where not wanted.

        `skip` is how many of the function's parameters the arguments come without.
        """
        name = self.how.text
        if name is None or not self.recorder.capture_text:
            return lambda _args, _kwargs: None
        try:
            parameters = list(inspect.signature(function).parameters)[skip:]
        except (TypeError, ValueError):  # a function of C code that does not tell
            parameters = []
        at = parameters.index(name) if name in parameters else len(parameters)
        return lambda args, kwargs: kwargs.get(name, args[at] if at < len(args) else None)


class Observation:
    """One call: a span, current while the engine works, and a duration recorded once.

    As a context manager it is one piece of work, after which it has ended, unless that is `deferred` to
    the iteration of a result; `enter` and `leave` surround each piece of such work. The duration is the
    engine's: what a consumer does between two items is part of the span only.
    """

    __slots__ = (
        "_context",
        "_inner",
        "_scope",
        "_since",
        "busy",
        "deferred",
        "ended",
        "observed",
        "outer",
        "rows",
        "span",
    )

    def __init__(self, observed: Observed, text: object = None) -> None:
        self.observed = observed
        outer: Observation | None = _innermost.get()
        while outer is not None and outer.ended:  # what outlives its call must not keep a chain of them
            outer = outer.outer
        self.outer: Observation | None = outer
        self.busy = 0.0
        self.rows: int | None = None
        self.deferred = False
        self.ended: bool = False
        if observed.protection is not None:
            observed.protection.begin()
        try:
            self.span: Span = observed.recorder.tracer.start_span(
                observed.operation, kind=SpanKind.CLIENT, attributes=observed.attributes
            )
            if isinstance(text, str):
                self.span.set_attribute(semconv.DB_QUERY_TEXT, text[:MAX_TEXT])
        except Exception:  # noqa: BLE001 - telemetry must not fail a call
            self.span = INVALID_SPAN
            _failed()
        self._context = set_span_in_context(self.span)

    def enter(self) -> None:
        """Make the span current: the engine works now."""
        self._scope = otel_context.attach(self._context)
        self._inner = _innermost.set(self)
        self._since = time.monotonic()

    def leave(self) -> None:
        """Give the context back."""
        self.busy += time.monotonic() - self._since
        with suppress(ValueError):  # a dropped coroutine is closed in another context than it began in
            _innermost.reset(self._inner)
        otel_context.detach(self._scope)

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.leave()
        if not self.deferred:
            self.end(error)

    def count(self, result: object) -> None:
        """Note how many rows a result has, if the method says where they are."""
        if (where := self.observed.how.rows) is None:
            return
        try:
            rows = result if where == "self" else getattr(result, where, None)
            self.rows = len(rows) if isinstance(rows, Sized) else None
        except Exception:  # noqa: BLE001 - whatever a result does when it is measured, its caller gets it
            _failed()

    def end(self, error: BaseException | None = None) -> None:
        """Record the duration and end the span; only the first time counts."""
        if self.ended:
            return
        self.ended = True
        attributes = self.observed.attributes
        try:
            if self.rows is not None:
                self.span.set_attribute(semconv.DB_RETURNED_ROWS, self.rows)
            if error is not None:
                kind = error_type(error)
                self.span.set_status(Status(StatusCode.ERROR, kind))
                self.span.set_attribute(semconv.ERROR_TYPE, kind)
                attributes = {**attributes, semconv.ERROR_TYPE: kind}
            self.observed.recorder.duration.record(self.busy, attributes, self._context)
            self.span.end()
        except Exception:  # noqa: BLE001
            _failed()


def _is(result: object, failure: object) -> bool:
    if isinstance(failure, Mapping):
        parts = failure.items()
        return isinstance(result, Mapping) and all(k in result and result[k] == v for k, v in parts)
    return type(result) is type(failure) and result == failure


_innermost: ContextVar[Observation | None] = ContextVar("llmkg_observation", default=None)


def _forget() -> None:
    """Leave the call in which a fork was made to the process that made it."""
    _innermost.set(None)


in_child(_forget)


def _failed() -> None:
    _log.warning("telemetry of an engine operation failed", exc_info=True)
