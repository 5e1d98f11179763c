"""Permits: how many calls may run at once, and how many may wait for their turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from llmkg_otel.errors import OverloadedError
from llmkg_otel.events import Observer, PermitWaited

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PermitPool"]


class PermitPool:
    """At most `limit` permits in use, at most `max_queued` calls waiting, first come first served.

    Tasks and threads share one pool. A permit that comes free goes straight to the first in the queue,
    so newcomers cannot overtake. Pair each acquisition with exactly one `release`; a call that is
    cancelled while it waits holds nothing. Emits PermitWaited for calls that had to wait.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        max_queued: int,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.limit = limit
        self.max_queued = max_queued
        self.usage = 0
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[Future[None]] = deque()

    @property
    def pending(self) -> int:
        """Calls that wait now."""
        return len(self._queue)

    def resize(self, limit: int) -> None:
        """Change how many permits exist; permits in use stay valid until released."""
        with self._lock:
            self.limit = limit
            while self._queue and self.usage < limit:
                self._grant_next()

    def try_acquire(self) -> bool:
        """Take a permit if one is free and nobody waits for it; never waits."""
        with self._lock:
            if self.usage >= self.limit or self._queue:
                return False
            self.usage += 1
            return True

    async def acquire(self, operation: str, seconds: float) -> None:
        """Wait up to `seconds` for a permit; raise OverloadedError if none came, or queue full."""
        ticket = self._enqueue(operation)
        started = self._clock()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wrap_future(ticket)
        except TimeoutError:
            if not self._gave_up(ticket):
                self._waited(started, acquired=True)
                return
            self._waited(started, acquired=False)
            raise self._refusal(operation, f"no permit came free within {seconds:.3g} s") from None
        except BaseException:
            if not self._gave_up(ticket):
                self.release()
            raise
        self._waited(started, acquired=True)

    def acquire_sync(self, operation: str, seconds: float) -> None:
        """Do the same in a thread of its own."""
        ticket = self._enqueue(operation)
        started = self._clock()
        try:
            ticket.result(seconds)
        except FutureTimeoutError:
            if self._gave_up(ticket):
                self._waited(started, acquired=False)
                raise self._refusal(operation, f"no permit came free within {seconds:.3g} s") from None
        except BaseException:
            if not self._gave_up(ticket):
                self.release()
            raise
        self._waited(started, acquired=True)

    def release(self) -> None:
        """Give a permit back: to the first that waits, if any."""
        with self._lock:
            self.usage -= 1
            while self._queue and self.usage < self.limit:
                self._grant_next()

    def _grant_next(self) -> None:
        ticket = self._queue.popleft()
        if ticket.set_running_or_notify_cancel():
            self.usage += 1
            ticket.set_result(None)

    def _enqueue(self, operation: str) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            if self.usage >= self.limit and len(self._queue) >= self.max_queued:
                raise self._refusal(operation, f"{len(self._queue)} calls wait already")
            self._queue.append(ticket)
            if self.usage < self.limit:
                self._grant_next()
        return ticket

    def _gave_up(self, ticket: Future[None]) -> bool:
        """Leave the queue; False if the permit had been granted meanwhile and is ours."""
        with self._lock:
            granted = ticket.done() and not ticket.cancelled()
            if not granted and ticket in self._queue:
                self._queue.remove(ticket)
            return not granted

    def _waited(self, started: float, *, acquired: bool) -> None:
        self._observer.on_event(PermitWaited(self.name, self._clock() - started, acquired))

    def _refusal(self, operation: str, why: str) -> OverloadedError:
        return OverloadedError(
            f"{operation}: all {self.limit} permits of {self.name} are in use and {why}",
            operation=operation,
            scope=self.name,
            limit=f"{self.limit} at once, {self.max_queued} waiting",
            retry_after=1.0,
        )
