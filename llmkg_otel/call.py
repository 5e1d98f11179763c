"""One protected call, from admission to outcome, and what the code inside it may ask about it."""

from __future__ import annotations

import math
import re
import threading
import time
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, cast

from llmkg_otel.errors import InvalidInputError
from llmkg_otel.limiting.waiting import CRITICALITIES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from concurrent.futures import Future

    from llmkg_otel.limiting.waiting import Criticality

__all__ = ["Call", "CallOptions", "current_call", "is_correlation_id", "remaining_time"]

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def is_correlation_id(text: object) -> TypeGuard[str]:
    """Say whether a caller's id may go on spans and logs: 8 to 64 letters, digits, `.`, `_`, `-`."""
    return isinstance(text, str) and _CORRELATION_ID.fullmatch(text) is not None


class CallOptions(TypedDict, total=False):
    """What a caller may say of one call.

    `user_id` is who the per-user rate limit counts; it never reaches telemetry. `correlation_id` goes on
    spans and logs. `cost` is how many calls this one counts as for the rate limits: 1 or more, and at most
    each rule's burst, else it is an InvalidInputError. `timeout_seconds` is what the caller allows, if that
    is less than the operation's own deadline. `criticality` is how much the call matters when load is shed
    (None: as its operation is configured).
    """

    user_id: str | None
    correlation_id: str | None
    cost: int
    timeout_seconds: float | None
    criticality: Criticality | None


class Call:
    """The state of one protected call; made by the pipeline, seen by policies and the observer.

    `started` and `deadline` are seconds of the monotonic clock; `hurried` is True if the caller, or waits
    of ours, left the engine less time than the operation may take. `cost` is how many calls it counts as
    for the rate limits. `attempts` counts times the engine was called, and `attempt_seconds` is what the
    last failed one took. `ended` is True once the outcome is decided: what the call started and still
    runs is on its own.
    `cut_short` and `cancelled` say of the last failed attempt that our timer, or somebody outside, cancelled
    it, whatever the engine made of that.
    `system` is whose call it is, and `parent` the call around it, of this system or another; `nested` says
    that one around it is of the same system, and was admitted for both. `ends_at` is when the time of the
    present attempt, or rung, is up, on the monotonic clock. `task` is the task it runs in, None in a thread;
    `threads` are those that run sync operations for it, or were left by a call within it. `fallback` is the
    rung of the fallback ladder that answered, and `failure` what it stood in for. `span_owner` False means
    that an MCP or database span around the call is enriched instead of opening one. `span`, `scope` and
    `context` are the observer's.
    """

    __slots__ = (
        "attempt_seconds",
        "attempts",
        "cancelled",
        "context",
        "correlation_id",
        "cost",
        "criticality",
        "cut_short",
        "deadline",
        "ended",
        "ends_at",
        "failure",
        "fallback",
        "hurried",
        "nested",
        "operation",
        "parent",
        "scope",
        "span",
        "span_owner",
        "started",
        "system",
        "task",
        "threads",
        "timeout",
        "user_id",
    )

    def __init__(
        self,
        operation: str,
        timeout: float,
        usual_criticality: Criticality = "default",
        span_owner: bool = True,
        system: object = None,
        *,
        user_id: str | None = None,
        correlation_id: str | None = None,
        cost: int = 1,
        timeout_seconds: float | None = None,
        criticality: Criticality | None = None,
    ) -> None:
        if timeout_seconds is not None:
            _check_seconds(timeout_seconds)
        if user_id is not None and not isinstance(user_id, str):
            raise InvalidInputError(f"user_id is of type {type(user_id).__name__}: should be text")
        if criticality is None:
            criticality = usual_criticality
        elif criticality not in CRITICALITIES:
            raise InvalidInputError(
                f"criticality = {criticality!r}: should be one of {', '.join(CRITICALITIES)}"
            )
        if type(cost) is not int or cost < 1:
            raise InvalidInputError(f"cost = {cost!r}: should be a whole number from 1")
        if correlation_id is not None and not is_correlation_id(correlation_id):
            raise InvalidInputError("a correlation id has 8 to 64 letters, digits, dots, dashes, underscores")
        parent = _current.get()
        if parent is not None and parent.ended:
            parent = None
        self.operation = operation
        self.hurried = timeout_seconds is not None and timeout_seconds < timeout
        self.timeout = timeout = min(timeout, timeout_seconds) if timeout_seconds is not None else timeout
        self.started = now = time.monotonic()
        self.deadline = now + timeout
        self.parent = parent
        self.nested = parent is not None and self.is_within(system)
        self.user_id = user_id
        self.cost = cost
        self.correlation_id = correlation_id
        if parent is not None:
            if parent.deadline < self.deadline:
                self.deadline, self.hurried = parent.deadline, True
                self.timeout = max(0.0, self.deadline - now)
            self.user_id = user_id or parent.user_id
            self.correlation_id = correlation_id or parent.correlation_id
        self.criticality = criticality
        self.span_owner = span_owner
        self.attempts = 0
        self.attempt_seconds = 0.0
        self.cut_short = self.cancelled = False
        self.ended: bool = False
        self.ends_at = math.inf
        self.system = system
        self.span: Any = None
        self.scope: Any = None
        self.context: Any = None
        self.task: asyncio.Task[Any] | None = None
        self.threads: set[Future[Any]] | None = None
        self.fallback: str | None = None
        self.failure: Exception | None = None

    def remaining(self) -> float:
        """Return the seconds until the deadline; none or less once it, or the end of the call, has passed."""
        left = self.deadline - time.monotonic()
        return min(left, 0.0) if self.ended else left

    def around(self) -> Iterator[Call]:
        """Give the calls around this one that go on, from the inside out."""
        call = self.parent
        while call is not None:
            if not call.ended:
                yield call
            call = call.parent

    def is_within(self, system: object, operation: str | None = None) -> bool:
        """Say whether a call around this one is of a system (and operation)."""
        return any(call.system is system and operation in (None, call.operation) for call in self.around())

    def is_overdue_around(self) -> bool:
        """Say whether the time of a call around this one is up, which its timer cancels both for."""
        now = time.monotonic()
        return any(call.ends_at <= now for call in self.around())

    def add_thread(self, thread: Future[Any]) -> None:
        """Note that a thread runs for this call, until it has ended."""
        with _lock:  # threads make calls too
            if self.threads is None:
                self.threads = set()
            self.threads.add(thread)
        thread.add_done_callback(self.threads.discard)

    def give_up_threads(self) -> list[Future[Any]]:
        """Return the threads that still run as the call ends; the calls around it are charged with them.

        They hold the permits, and must not retry meanwhile.
        """
        left = list(self.threads) if self.threads else []
        for thread in left:
            for call in self.around():
                call.add_thread(thread)
        return left

    @property
    def left_a_thread(self) -> bool:
        """Whether a sync operation that was given up (timed out, cancelled) still runs in its thread."""
        return bool(self.threads)


def _check_seconds(seconds: object) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not (is_number and 0 < cast("float", seconds) < math.inf):
        raise InvalidInputError(f"timeout_seconds = {seconds!r}: should be a number of seconds above 0")


_lock = threading.Lock()
_current: ContextVar[Call | None] = ContextVar("llmkg_call", default=None)
enter = _current.set


def leave(token: Token[Call | None]) -> None:
    """Take back what `enter` did."""
    try:
        _current.reset(token)
    except ValueError:
        return  # a coroutine that is closed from another context, where there is nothing to take back


def current_call() -> Call | None:
    """Return the protected call that this code runs in, or that started it; None outside of any.

    Threads and tasks that a call leaves behind still see it, `ended`.
    """
    return _current.get()


def remaining_time() -> float | None:
    """Return the seconds an operation has left before its deadline, or None outside a protected call.

    Zero or less once nobody waits for it any more.
    """
    call = _current.get()
    return None if call is None else call.remaining()
