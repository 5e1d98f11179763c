"""One attempt: the circuit is asked, the engine is called within its time, and its breaker told how it went.

Async and sync are twins: they share every decision, but only a task can be cancelled at its time limit.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llmkg_otel._bodies import synchronous
from llmkg_otel._watch import GRACE_SECONDS, Watch, Watches
from llmkg_otel.errors import EngineCancelledError, InvalidInputError, OperationTimeoutError
from llmkg_otel.events import TimeLimitIgnored
from llmkg_otel.recovery.failures import blames_engine, was_cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.call import Call
    from llmkg_otel.events import CallObserver
    from llmkg_otel.limiting.adaptive import Began
    from llmkg_otel.limiting.permits import PermitPool
    from llmkg_otel.limiting.shedding import LoadShedding
    from llmkg_otel.operation import Operation
    from llmkg_otel.recovery.breaker import Ticket

__all__ = ["Attempts"]

T = TypeVar("T")


class Attempts:
    """Makes the attempts of calls. For tasks and threads alike; holds no state of its own.

    `caller_errors` are exceptions that blame the caller: never retried, never held against the engine.
    `times_attempts` has the observer told how long each one took.
    """

    def __init__(
        self,
        *,
        permits: PermitPool,
        shedding: LoadShedding | None,
        observer: CallObserver,
        times_attempts: bool,
    ) -> None:
        self._permits = permits
        self._shedding = shedding
        self._observer = observer
        self._times_attempts = times_attempts
        self._measures = times_attempts or shedding is not None
        self._watches = Watches(self._tell_of_late)
        self._watch: Watch | None = None
        self.caller_errors: tuple[type[Exception], ...] = (InvalidInputError,)

    async def make(
        self, op: Operation, call: Call, task: asyncio.Task[Any], body: Callable[[], Awaitable[T]]
    ) -> T:
        """Call the engine once, in the call's own task, which is cancelled when the time is up.

        Raises CircuitOpenError or, without any time left, OperationTimeoutError before the engine is called.
        """
        started, watch, loop = time.monotonic(), self._watch, task.get_loop()
        if watch is None or watch.loop is not loop:
            watch = self._watch = self._watches.of(loop)
        if (left := call.deadline - started) <= 0:
            raise _deadline_passed(op, call)
        if (ticket := op.breaker.door) is None:
            ticket = await op.breaker.admit(left)
            started = time.monotonic()
            left = _left(op, call, ticket, started)
        seconds = left if left < op.attempt_timeout else op.attempt_timeout  # noqa: FURB136 - 0.1 us a call
        call.attempts += 1
        span = self._observer.attempt_started(call) if call.attempts > 1 else None
        cancelling = task.cancelling()
        began = None if self._shedding is None else self._begin(call, self._shedding)
        call.ends_at = ends_at = started + seconds
        watch.start(call, ends_at)
        try:
            result = await body()
        except BaseException as raised:
            late = call.cut_short = watch.stop(call) and task.uncancel() <= cancelling
            call.cancelled = was_cancelled(task, cancelling, raised)
            cancelled = isinstance(raised, asyncio.CancelledError) and not call.cancelled
            other = _made_of(op, call, seconds, late=late) if cancelled else None
            self._report(op, call, ticket, other or raised, started, cut_after=seconds if late else 0.0)
            self._learn(op, began, counts=isinstance(other, OperationTimeoutError) and not call.hurried)
            if span is not None:
                self._observer.attempt_ended(span, other or raised)
            if other is None:
                raise
            try:
                raise other from (None if late else raised)
            finally:
                del other  # it refers to this frame, which would refer to it
        if watch.stop(call):
            task.uncancel()
            self._tell_of_late(call, returned=True)
        op.breaker.succeeded(ticket, first=call.attempts == 1, started=started)
        if self._measures or span is not None:
            self._tell_of_success(op, call, began, span, started)
        return result

    def make_sync(self, op: Operation, call: Call, body: Callable[[], T]) -> T:
        """Do the same in the calling thread, where nothing interrupts the engine: it is told of if late."""
        if (left := call.remaining()) <= 0:
            raise _deadline_passed(op, call)
        if (ticket := op.breaker.door) is None:
            ticket = op.breaker.admit_sync(left)
            _left(op, call, ticket, time.monotonic())
        call.attempts += 1
        span = self._observer.attempt_started(call) if call.attempts > 1 else None
        began = None if self._shedding is None else self._begin(call, self._shedding)
        started = time.monotonic()
        try:
            result = synchronous(op.name, body())
        except BaseException as raised:
            # No task runs in here that somebody could have cancelled.
            own = EngineCancelledError(op.name) if isinstance(raised, asyncio.CancelledError) else None
            self._report(op, call, ticket, own or raised, started)
            self._learn(op, began, counts=False)
            self._tell_if_late(op, started)
            if span is not None:
                self._observer.attempt_ended(span, own or raised)
            if own is None:
                raise
            try:
                raise own from raised
            finally:
                del own  # it refers to this frame, which would refer to it
        self._tell_if_late(op, started)
        op.breaker.succeeded(ticket, first=call.attempts == 1, started=started)
        if self._measures or span is not None:
            self._tell_of_success(op, call, began, span, started)
        return result

    def blames_engine(self, error: BaseException, call: Call) -> bool:
        """Say whether a call's failure is held against the engine."""
        if isinstance(error, OperationTimeoutError) and error.kind == "deadline" and call.hurried:
            return False  # it had less time than it is allowed
        return not call.cancelled and blames_engine(error, self.caller_errors)

    def _report(
        self,
        op: Operation,
        call: Call,
        ticket: Ticket,
        error: BaseException,
        started: float,
        *,
        cut_after: float = 0.0,
    ) -> None:
        """Let the breaker know of a failed attempt, which was cancelled after some seconds (0: was not)."""
        call.attempt_seconds = time.monotonic() - started
        if self._times_attempts:
            self._observer.attempt_timed(call, call.attempt_seconds, error)
        if cut_after and call.attempt_seconds > cut_after + GRACE_SECONDS:
            self._tell_of_late(call, returned=True)
        if overdue := call.cancelled and call.is_overdue_around():
            # A timer of a call around this one rang first; on a hung engine its limit always does, if equal.
            cut_after, error = call.attempt_seconds, _deadline_passed(op, call)
        if cut_after:
            # Waits of ours, for a permit or before a retry, are no fault of the engine's either.
            call.hurried = cut_after < op.breaker.patience(min(op.attempt_timeout, op.timeout))
        failed = (overdue or self.blames_engine(error, call)) and not (cut_after and call.hurried)
        if failed:
            op.breaker.failed(ticket, cast("Exception", error), started=started)
        else:
            op.breaker.ignored(ticket)

    def _tell_of_success(
        self, op: Operation, call: Call, began: Began | None, span: object, started: float
    ) -> None:
        """Tell whoever wants to know of a successful attempt, and how long it took."""
        if self._times_attempts:
            self._observer.attempt_timed(call, time.monotonic() - started, None)
        self._learn(op, began, counts=True)
        if span is not None:
            self._observer.attempt_ended(span, None)

    def _tell_of_late(self, call: Call, *, returned: bool = False) -> None:
        """Report a call that goes on, or has gone on, after its attempt was cancelled."""
        seconds = time.monotonic() - call.started
        self._observer.on_event(TimeLimitIgnored(call.operation, seconds, returned=returned))

    def _tell_if_late(self, op: Operation, started: float) -> None:
        if (seconds := time.monotonic() - started) > op.attempt_timeout:
            self._observer.on_event(TimeLimitIgnored(op.name, seconds, returned=True))

    def _begin(self, call: Call, shedding: LoadShedding) -> Began | None:
        """Let load shedding know that the engine is called; a call within a call is part of its time."""
        return None if call.nested else shedding.begin(self._permits)

    def _learn(self, op: Operation, began: Began | None, *, counts: bool) -> None:
        """Let load shedding know that the engine is done, and whether that says how fast it is."""
        if began is not None and self._shedding is not None:
            self._shedding.end(began, op.name, self._permits, counts=counts)


def _deadline_passed(op: Operation, call: Call) -> OperationTimeoutError:
    return OperationTimeoutError(op.name, "deadline", call.timeout)


def _left(op: Operation, call: Call, ticket: Ticket, now: float) -> float:
    """Return the seconds left after a circuit was asked; without any, give the ticket back and raise."""
    if (left := call.deadline - now) > 0:
        return left
    op.breaker.ignored(ticket)
    raise _deadline_passed(op, call)


def _made_of(op: Operation, call: Call, seconds: float, *, late: bool) -> Exception:
    """Return what a cancellation was that did not come from outside: our own timer's, or the engine's."""
    if not late:
        return EngineCancelledError(op.name)
    if seconds < op.attempt_timeout:
        return _deadline_passed(op, call)
    return OperationTimeoutError(op.name, "attempt", seconds)
