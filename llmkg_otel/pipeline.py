"""The protected call: the order of the policies, and its fast path.

    draining? -> track -> rate limits -> resources -> shed, permits   admission: cheap, in process
      -> total deadline -> fallback -> retry -> breaker -> attempt timeout -> the engine's operation

Each step either lets the call pass or raises; whatever was taken is given back in a `finally`.
Cancellation and exits pass through, recorded, and count against nobody. The first attempt runs
directly; tenacity is entered only after it has failed. Async and sync share every decision.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llmkg_otel import call as current
from llmkg_otel._bodies import check_sync, in_thread, is_async, synchronous
from llmkg_otel._watch import Watch, Watches
from llmkg_otel.errors import (
    CircuitOpenError,
    EngineCancelledError,
    InvalidInputError,
    LlmkgOtelError,
    OperationTimeoutError,
)
from llmkg_otel.events import TimeLimitIgnored
from llmkg_otel.recovery.fallback import fall_back, fall_back_sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.call import Call
    from llmkg_otel.events import CallObserver
    from llmkg_otel.limiting.adaptive import Began
    from llmkg_otel.limiting.permits import PermitPool
    from llmkg_otel.limiting.rates import RateLimits
    from llmkg_otel.limiting.resources import Resources
    from llmkg_otel.limiting.shedding import LoadShedding
    from llmkg_otel.operation import Operation
    from llmkg_otel.recovery.breaker import Ticket
    from llmkg_otel.recovery.fallback import Ladder
    from llmkg_otel.shutdown.calls import ActiveCalls

__all__ = ["Pipeline"]

T = TypeVar("T")


class Pipeline:
    """Runs calls through the policies of their operation and those of the whole system.

    `caller_errors` are exceptions that blame the caller: never retried, never held against the engine.
    For tasks and threads alike; holds no state of its own.
    """

    def __init__(
        self,
        *,
        calls: ActiveCalls,
        rates: RateLimits,
        resources: Resources,
        permits: PermitPool,
        shedding: LoadShedding | None,
        max_wait: float,
        observer: CallObserver,
        times_attempts: bool,
    ) -> None:
        self._calls = calls
        self._rates = rates
        self._resources = resources
        self._permits = permits
        self._shedding = shedding
        self._max_wait = max_wait
        self._observer = observer
        self._times_attempts = times_attempts
        self._measures = times_attempts or shedding is not None
        self._watches = Watches(self._tell_of_late)
        self._watch: Watch | None = None
        self.caller_errors: tuple[type[Exception], ...] = (InvalidInputError,)

    async def run(
        self, op: Operation, call: Call, body: Callable[[], Awaitable[T] | T], ladder: Ladder[T] | None = None
    ) -> T:
        """Run a call of `op`; `body` is a coroutine function, or a sync one, which gets a thread.

        `ladder` names what may answer instead when the engine fails, in order.
        """
        target = body if is_async(body) else in_thread(call, body)
        call.task = task = asyncio.current_task()
        assert task is not None  # noqa: S101 - whoever awaits is in one; a cast would be a call
        error: BaseException | None = None
        token = current.enter(call)
        self._observer.call_started(call)
        try:
            self._calls.enter(call)
            pools, held = op.pools_within(call) if call.nested else op.pools, 0
            try:
                levels = op.levels_within if call.nested else op.levels
                if levels is not None:
                    pending = self._rates.check(op.name, levels, call.user_id, call.started, call.cost)
                    if pending is not None:
                        await pending.settle()
                if not call.nested:
                    self._resources.check(op.name)
                for pool in pools:
                    if not pool.try_acquire(call.criticality):
                        seconds = min(self._max_wait, call.remaining())
                        await pool.acquire(op.name, seconds, call.criticality)
                    held += 1
                try:
                    return await self._attempt(op, call, task, target)
                except Exception as raised:  # noqa: BLE001 - it is raised again unless something answers
                    failure = raised
                # Outside of the handler, or what is raised next would get this failure as its context.
                again = partial(self._attempt, op, call, task, target)
                try:
                    return await self._recover(op, call, failure, again, ladder)
                finally:
                    del failure
            finally:
                call.ended = True
                op.give_back(pools[:held], call)
                self._calls.leave(call)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._observer.call_ended(call, error)
            current.leave(token)
            error = None  # it refers to this frame, which would refer to it

    def run_sync(
        self, op: Operation, call: Call, body: Callable[[], T], ladder: Ladder[T] | None = None
    ) -> T:
        """Do the same in the calling thread. A deadline cannot interrupt `body`; it stops retries."""
        check_sync(op.name, body, ladder or {})
        error: BaseException | None = None
        token = current.enter(call)
        self._observer.call_started(call)
        try:
            self._calls.enter(call)
            pools, held = op.pools_within(call) if call.nested else op.pools, 0
            try:
                levels = op.levels_within if call.nested else op.levels
                if levels is not None:
                    pending = self._rates.check(op.name, levels, call.user_id, call.started, call.cost)
                    if pending is not None:
                        pending.settle_sync()
                if not call.nested:
                    self._resources.check(op.name)
                for pool in pools:
                    if not pool.try_acquire(call.criticality):
                        seconds = min(self._max_wait, call.remaining())
                        pool.acquire_sync(op.name, seconds, call.criticality)
                    held += 1
                try:
                    return self._attempt_sync(op, call, body)
                except Exception as raised:  # noqa: BLE001 - it is raised again unless something answers
                    failure = raised
                again = partial(self._attempt_sync, op, call, body)
                try:
                    return self._recover_sync(op, call, failure, again, ladder)
                finally:
                    del failure
            finally:
                call.ended = True
                op.give_back(pools[:held], call)
                self._calls.leave(call)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._observer.call_ended(call, error)
            current.leave(token)
            error = None  # it refers to this frame, which would refer to it

    async def _recover(
        self,
        op: Operation,
        call: Call,
        failure: Exception,
        again: Callable[[], Awaitable[T]],
        ladder: Ladder[T] | None,
    ) -> T:
        """Try again, then go down the ladder; when nothing answers, raise the last failure itself."""
        try:
            if self._is_final(op, call, failure):
                raise failure  # noqa: TRY301 - so that both ways in share what follows
            return await op.retry.resume(call, failure, again, self.caller_errors)
        except Exception as raised:
            if not ladder or not self._may_fall_back(raised, call):
                raise
            last = raised
        try:
            return await fall_back(call, last, ladder, self._observer, op.attempt_timeout)
        finally:
            del last

    def _recover_sync(
        self,
        op: Operation,
        call: Call,
        failure: Exception,
        again: Callable[[], T],
        ladder: Ladder[T] | None,
    ) -> T:
        try:
            if self._is_final(op, call, failure):
                raise failure  # noqa: TRY301 - so that both ways in share what follows
            return op.retry.resume_sync(call, failure, again, self.caller_errors)
        except Exception as raised:
            if not ladder or not self._may_fall_back(raised, call):
                raise
            last = raised
        try:
            return fall_back_sync(call, last, ladder, self._observer)
        finally:
            del last

    def _is_final(self, op: Operation, call: Call, failure: Exception) -> bool:
        """Say whether a first failure is not for tenacity: not reached, cancelled, the caller's mistake."""
        if call.attempts == 0 or call.cancelled:
            return True
        if isinstance(failure, self.caller_errors):
            op.retry.count("not_retryable")
            return True
        return False

    async def _attempt(
        self, op: Operation, call: Call, task: asyncio.Task[Any], body: Callable[[], Awaitable[T]]
    ) -> T:
        started, watch, loop = time.monotonic(), self._watch, task.get_loop()
        if watch is None or watch.loop is not loop:
            watch = self._watch = self._watches.of(loop)
        if (left := call.deadline - started) <= 0:
            raise OperationTimeoutError(op.name, "deadline", call.timeout)
        seconds = left if left < op.attempt_timeout else op.attempt_timeout  # noqa: FURB136 - 0.1 us a call
        if (ticket := op.breaker.door) is None:
            ticket = await op.breaker.admit()
            started = time.monotonic()
        call.attempts += 1
        span = self._observer.attempt_started(call) if call.attempts > 1 else None
        cancelling = task.cancelling()
        began = None if self._shedding is None else self._begin(call, self._shedding)
        watch.start(call, started + seconds)
        try:
            result = await body()
        except BaseException as raised:
            late = call.cut_short = watch.stop(call) and task.uncancel() <= cancelling
            call.cancelled = task.cancelling() > cancelling
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
        if self._measures:
            self._measure(op, call, began, started)
        if span is not None:
            self._observer.attempt_ended(span, None)
        return result

    def _attempt_sync(self, op: Operation, call: Call, body: Callable[[], T]) -> T:
        if call.remaining() <= 0:
            raise OperationTimeoutError(op.name, "deadline", call.timeout)
        ticket = op.breaker.door or op.breaker.admit_sync()
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
            raise own from raised
        self._tell_if_late(op, started)
        op.breaker.succeeded(ticket, first=call.attempts == 1, started=started)
        if self._measures:
            self._measure(op, call, began, started)
        if span is not None:
            self._observer.attempt_ended(span, None)
        return result

    def _measure(self, op: Operation, call: Call, began: Began | None, started: float) -> None:
        """Take note of how long a successful attempt took, for whoever wants to know."""
        if self._times_attempts:
            self._observer.attempt_timed(call, time.monotonic() - started, None)
        self._learn(op, began, counts=True)

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
        if cut_after:
            # Waits of ours, for a permit or before a retry, are no fault of the engine's either.
            call.hurried = cut_after < op.breaker.patience(min(op.attempt_timeout, op.timeout))
            if not isinstance(error, OperationTimeoutError):
                self._tell_of_late(call, returned=True)
        if self._blames_engine(error, call) and not (cut_after and call.hurried):
            op.breaker.failed(ticket, cast("Exception", error), started=started)
        else:
            op.breaker.ignored(ticket)

    def _may_fall_back(self, error: Exception, call: Call) -> bool:
        """Say whether another answer may stand in: the engine fails, or its circuit is open."""
        return isinstance(error, CircuitOpenError) or self._blames_engine(error, call)

    def _blames_engine(self, error: BaseException, call: Call) -> bool:
        if not isinstance(error, Exception) or isinstance(error, self.caller_errors) or call.cancelled:
            return False
        if isinstance(error, OperationTimeoutError) and error.kind == "deadline" and call.hurried:
            return False  # it had less time than it is allowed
        return not isinstance(error, LlmkgOtelError) or error.blames_engine


def _made_of(op: Operation, call: Call, seconds: float, *, late: bool) -> Exception:
    """Return what a cancellation was that did not come from outside: our own timer's, or the engine's."""
    if not late:
        return EngineCancelledError(op.name)
    if seconds < op.attempt_timeout:
        return OperationTimeoutError(op.name, "deadline", call.timeout)
    return OperationTimeoutError(op.name, "attempt", seconds)
