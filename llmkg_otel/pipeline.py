"""The protected call: the order of the policies, and its fast path.

    draining? -> track -> rate limits -> resources -> shed, permits   admission: cheap, in process
      -> total deadline -> fallback -> retry -> breaker -> attempt timeout -> the engine's operation

Each step either lets the call pass or raises; whatever was taken is given back in a `finally`.
Cancellation and exits pass through, recorded, and count against nobody. The first attempt runs
directly; tenacity is entered only after it has failed. Async and sync share every decision.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from llmkg_otel import call as current
from llmkg_otel._bodies import check_ladder, check_sync, in_thread, is_async
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.recovery.fallback import fall_back, fall_back_sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.attempt import Attempts
    from llmkg_otel.call import Call
    from llmkg_otel.events import CallObserver
    from llmkg_otel.limiting.rates import RateLimits
    from llmkg_otel.limiting.resources import Resources
    from llmkg_otel.operation import Operation
    from llmkg_otel.recovery.fallback import Ladder
    from llmkg_otel.shutdown.calls import ActiveCalls

__all__ = ["Pipeline"]

T = TypeVar("T")


class Pipeline:
    """Runs calls through the policies of their operation and those of the whole system.

    For tasks and threads alike; holds no state of its own.
    """

    def __init__(
        self,
        *,
        calls: ActiveCalls,
        rates: RateLimits,
        resources: Resources,
        attempts: Attempts,
        max_wait: float,
        observer: CallObserver,
    ) -> None:
        self._calls = calls
        self._rates = rates
        self._resources = resources
        self._attempts = attempts
        self._max_wait = max_wait
        self._observer = observer

    async def run(
        self, op: Operation, call: Call, body: Callable[[], Awaitable[T] | T], ladder: Ladder[T] | None = None
    ) -> T:
        """Run a call of `op`; `body` is a coroutine function, or a sync one, which gets a thread.

        `ladder` names what may answer instead when the engine fails, in order.
        """
        target = body if is_async(body) else in_thread(call, body)
        if ladder:
            check_ladder(op.name, ladder)
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
                    return await self._attempts.make(op, call, task, target)
                except Exception as raised:  # noqa: BLE001 - it is raised again unless something answers
                    failure = raised
                # Outside of the handler, or what is raised next would get this failure as its context.
                again = partial(self._attempts.make, op, call, task, target)
                try:
                    return await self._recover(op, call, failure, again, ladder)
                finally:
                    del failure
            finally:
                call.ended = True
                op.give_back(pools[:held], call)
                self._calls.leave(call)
                call.parent = None  # or work that starts its successor would make an endless chain
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
        check_sync(op.name, body)
        if ladder:
            check_ladder(op.name, ladder, is_sync=True)
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
                    return self._attempts.make_sync(op, call, body)
                except Exception as raised:  # noqa: BLE001 - it is raised again unless something answers
                    failure = raised
                again = partial(self._attempts.make_sync, op, call, body)
                try:
                    return self._recover_sync(op, call, failure, again, ladder)
                finally:
                    del failure
            finally:
                call.ended = True
                op.give_back(pools[:held], call)
                self._calls.leave(call)
                call.parent = None  # or work that starts its successor would make an endless chain
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
            if call.attempts == 0 or call.cancelled:  # the engine was not reached, or the caller has left
                raise failure  # noqa: TRY301 - so that both ways in share what follows
            return await op.retry.resume(call, failure, again, self._attempts.caller_errors)
        except Exception as raised:
            if not ladder or not self._may_fall_back(raised, call):
                raise
            last = raised
        finally:
            del failure, again
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
            if call.attempts == 0 or call.cancelled:  # the engine was not reached, or the caller has left
                raise failure  # noqa: TRY301 - so that both ways in share what follows
            return op.retry.resume_sync(call, failure, again, self._attempts.caller_errors)
        except Exception as raised:
            if not ladder or not self._may_fall_back(raised, call):
                raise
            last = raised
        finally:
            del failure, again
        try:
            return fall_back_sync(call, last, ladder, self._observer)
        finally:
            del last

    def _may_fall_back(self, error: Exception, call: Call) -> bool:
        """Say whether another answer may stand in: the engine fails, or its circuit is open."""
        return isinstance(error, CircuitOpenError) or self._attempts.blames_engine(error, call)
