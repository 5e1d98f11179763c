"""Retrying on tenacity, entered only after the first attempt has failed.

tenacity costs 17 to 36 us a call, so a call that succeeds at once never meets it. Its first "attempt"
here replays the failure that already happened; attempt numbers then agree with what really ran.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_result

from llmkg_otel.errors import CircuitOpenError, OperationTimeoutError, error_type
from llmkg_otel.events import Observer, RetryScheduled
from llmkg_otel.recovery.backoff import backoff_seconds
from llmkg_otel.recovery.failures import any_is, every_is, is_retryable, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.call import Call
    from llmkg_otel.config import RetryConfig
    from llmkg_otel.recovery.budget import RetryBudget

__all__ = ["Retry"]

T = TypeVar("T")


class _Failed(Enum):
    """What tenacity sees of an attempt that failed."""

    FAILED = auto()


_FAILED = _Failed.FAILED


class Retry:
    """One operation's retry policy. Shared by all its calls; thread-safe.

    `calls` counts calls whose first attempt failed, by how retrying ended: recovered, exhausted,
    not_retryable, budget_exhausted, deadline. Emits RetryScheduled before each wait.
    """

    def __init__(
        self,
        name: str,
        config: RetryConfig,
        *,
        idempotent: bool,
        budget: RetryBudget,
        observer: Observer,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        sleep_sync: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.config = config
        self.idempotent = idempotent
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.budget = budget
        self.observer = observer
        self._sleep = sleep
        self._sleep_sync = sleep_sync
        self._random = random

    def configure(self, config: RetryConfig, *, idempotent: bool) -> None:
        """Apply a new policy to calls that fail from now on; the counts stay."""
        self.config = config
        self.idempotent = idempotent

    def count(self, outcome: str) -> None:
        """Note how one call's retrying ended."""
        with self._lock:
            self.calls[outcome] += 1

    async def resume(
        self,
        call: Call,
        failure: Exception,
        attempt: Callable[[], Awaitable[T]],
        final: tuple[type[Exception], ...] = (),
    ) -> T:
        """Go on after a first failed attempt; raise the last failure itself when it is over.

        Failures of the classes in `final` are never retried. A circuit that opened between two attempts
        is no refusal of this call, which has reached the engine: it raises the engine's last failure.
        """
        run = _Run(self, call, failure, final)
        try:
            if run.goes_on():
                retrying = AsyncRetrying(sleep=self._sleep, **run.rules())
                answer: T | _Failed = await retrying(run.replay_async, attempt)
                if answer is not _FAILED:
                    return run.done(answer)
        finally:
            failure = run.close()
        try:
            raise failure
        finally:
            del failure  # it refers to this frame

    def resume_sync(
        self,
        call: Call,
        failure: Exception,
        attempt: Callable[[], T],
        final: tuple[type[Exception], ...] = (),
    ) -> T:
        """Do the same in a thread of its own; waits block the thread."""
        run = _Run(self, call, failure, final)
        try:
            if run.goes_on():
                retrying = Retrying(sleep=self._sleep_sync, **run.rules())
                answer: T | _Failed = retrying(run.replay, attempt)
                if answer is not _FAILED:
                    return run.done(answer)
        finally:
            failure = run.close()
        try:
            raise failure
        finally:
            del failure  # it refers to this frame

    def is_retryable(self, error: BaseException) -> bool:
        """Say whether the same call may succeed, and may be repeated, after this failure."""
        config = self.config
        return (
            every_is(error, config.retryable_exceptions)
            and not any_is(error, config.excluded_exceptions)
            and is_retryable(error, idempotent=self.idempotent)
        )

    def wait_seconds(self, retry: int, error: BaseException) -> float:
        """Return the back-off before a retry, or what the failed service asked for if that is more.

        Never less than it asked for, and up to `jitter_factor` more: it has asked everybody for the same.
        """
        asked = retry_after_seconds(error)
        backoff = backoff_seconds(self.config, retry, self._random)
        return backoff if backoff > asked else asked * (1 + self.config.jitter_factor * self._random())


class _Run:
    """The retries of one call: tenacity's questions, answered for this call, and the outcome.

    Failures do not pass through tenacity, which would keep each in a cycle of a hundred objects: an attempt
    that fails leaves its error here and returns `_FAILED`. The first question is answered before tenacity is
    entered.
    """

    def __init__(
        self, policy: Retry, call: Call, failure: Exception, final: tuple[type[Exception], ...]
    ) -> None:
        self._policy = policy
        self._call = call
        self._final = final
        self._failure = failure
        self._replays, self._refused = True, False
        self._first_wait = 0.0
        self._outcome = "cancelled"
        self._in_budget = False

    def rules(self) -> dict[str, Any]:
        """Return tenacity's options."""
        return {
            "retry": retry_if_result(lambda answer: answer is _FAILED),
            "wait": self._wait,
            "stop": self._must_stop,
            "before_sleep": self._announce,
            "retry_error_callback": lambda _: _FAILED,
        }

    def goes_on(self) -> bool:
        """Say whether the first failure is to be followed by a second attempt."""
        if not self._is_worth_it():
            return False
        self._first_wait = self._policy.wait_seconds(1, self._failure)
        return not self._is_over(1, self._first_wait)

    def replay(self, attempt: Callable[[], T]) -> T | _Failed:
        if self._replays:
            self._replays = False
            return _FAILED
        before = self._call.attempts
        try:
            return attempt()
        except Exception as error:  # noqa: BLE001 - it is raised when the retries are over
            return self._failed(error, before)

    async def replay_async(self, attempt: Callable[[], Awaitable[T]]) -> T | _Failed:
        if self._replays:
            self._replays = False
            return _FAILED
        before = self._call.attempts
        try:
            return await attempt()
        except Exception as error:  # noqa: BLE001 - it is raised when the retries are over
            return self._failed(error, before)

    def _failed(self, error: Exception, before: int) -> _Failed:
        """Keep an attempt's error, unless it is a refusal of ours: the engine was not called since."""
        self._refused = isinstance(error, CircuitOpenError) and self._call.attempts == before
        if not self._refused:
            self._failure = error
        return _FAILED

    def done(self, result: T) -> T:
        self._outcome = "recovered"
        return result

    def close(self) -> Exception:
        """Give back what was taken, count the outcome, and let the last failure go: it refers to this."""
        if self._in_budget:
            self._policy.budget.release()
        if self._outcome != "cancelled":
            self._policy.count(self._outcome)
        try:
            return self._failure
        finally:
            del self._failure

    def _is_worth_it(self) -> bool:
        error, call = self._failure, self._call
        # What became of an attempt that our timer cut short is unknown, whatever the engine raised then.
        unknown = call.cut_short and not self._policy.idempotent
        stopped = self._refused or call.cancelled or unknown
        one_attempt = call.parent is not None or call.left_a_thread
        mistake = any_is(error, self._final)
        if not (mistake or stopped or one_attempt) and self._policy.is_retryable(error):
            return True
        out_of_time = isinstance(error, OperationTimeoutError) and error.kind == "deadline"
        self._outcome = "deadline" if out_of_time and not mistake else "not_retryable"
        return False

    def _wait(self, state: RetryCallState) -> float:
        number = state.attempt_number
        return self._first_wait if number == 1 else self._policy.wait_seconds(number, self._failure)

    def _must_stop(self, state: RetryCallState) -> bool:
        return state.attempt_number > 1 and (
            not self._is_worth_it() or self._is_over(state.attempt_number, state.upcoming_sleep)
        )

    def _is_over(self, attempts: int, wait: float) -> bool:
        if attempts > self._policy.config.max_retries:
            self._outcome = "exhausted"
        elif wait + self._call.attempt_seconds >= self._call.remaining():
            self._outcome = "deadline"
        elif not self._has_place():
            self._outcome = "budget_exhausted"
        else:
            return False
        return True

    def _has_place(self) -> bool:
        budget = self._policy.budget
        self._in_budget = budget.keep() if self._in_budget else budget.try_acquire()
        return self._in_budget

    def _announce(self, state: RetryCallState) -> None:
        kind = error_type(self._failure)
        event = RetryScheduled(self._policy.name, state.attempt_number, state.upcoming_sleep, kind)
        self._policy.observer.on_event(event)
