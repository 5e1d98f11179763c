"""Permits: how many calls may run at once, and how many may wait for their turn."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from llmkg_otel.errors import LoadShedError, OverloadedError
from llmkg_otel.events import Observer, PermitWaited
from llmkg_otel.limiting.waiting import Criticality, Shed, Waiter, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.limiting.shedding import LoadShedding

__all__ = ["PermitPool"]


class PermitPool:
    """At most `limit` permits in use, at most `max_queued` calls waiting, first come first served.

    Tasks and threads share one pool. A permit that comes free goes straight to the first in the queue,
    so newcomers cannot overtake; with `shedding` the more important ones can, and in an overload the
    newest (see WaitQueue). `shedding` also sets the limit, unless the pool is not `adaptive`. Pair each
    acquisition with exactly one `release`; a call that is cancelled while it waits holds nothing.

    Emits PermitWaited for calls that had to wait.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        max_queued: int,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
        *,
        shedding: LoadShedding | None = None,
        adaptive: bool = True,
    ) -> None:
        self.name = name
        self.limit = limit
        self.max_queued = max_queued
        self.usage = 0
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._shedding = shedding if adaptive else None
        self._refusing = shedding if shedding is not None and shedding.config.mode == "on" else None
        if adaptive and self._refusing is not None:
            self.limit = self._refusing.limit
        self._queue = WaitQueue(shedding.config if shedding is not None else None, clock)

    @property
    def pending(self) -> int:
        """Calls that wait now."""
        return self._queue.length

    def resize(self, limit: int) -> None:
        """Change how many permits exist; permits in use stay valid until released."""
        with self._lock:
            self.limit = limit
            while self._queue.length and self.usage < limit:
                self._grant_next()

    def try_acquire(self, criticality: Criticality = "default") -> bool:
        """Take a permit if one is free and nobody waits for it; never waits."""
        with self._lock:
            if self.usage >= self.limit or self._queue.length:
                return False
            self._take(criticality)
            return True

    async def acquire(self, operation: str, seconds: float, criticality: Criticality = "default") -> None:
        """Wait up to `seconds` for a permit; raise OverloadedError if none came, or queue full."""
        waiter, patience = self._enqueue(operation, seconds, criticality)
        started = self._clock()
        try:
            async with asyncio.timeout(patience):
                await asyncio.wrap_future(waiter)
        except TimeoutError:
            self._timed_out(operation, waiter, started, patience)
        except Shed as shed:
            self._waited(started, acquired=False)
            raise self._refusal(operation, waiter.criticality, shed.reason, patience) from None
        except BaseException:
            if not self._gave_up(waiter):
                self.release()
            raise
        else:
            self._waited(started, acquired=True)

    def acquire_sync(self, operation: str, seconds: float, criticality: Criticality = "default") -> None:
        """Do the same in a thread of its own."""
        waiter, patience = self._enqueue(operation, seconds, criticality)
        started = self._clock()
        try:
            waiter.result(patience)
        except FutureTimeoutError:
            self._timed_out(operation, waiter, started, patience)
        except Shed as shed:
            self._waited(started, acquired=False)
            raise self._refusal(operation, waiter.criticality, shed.reason, patience) from None
        except BaseException:
            if not self._gave_up(waiter):
                self.release()
            raise
        else:
            self._waited(started, acquired=True)

    def _timed_out(self, operation: str, waiter: Waiter, started: float, patience: float) -> None:
        """Raise OverloadedError, unless the permit came at the last moment."""
        acquired = not self._gave_up(waiter)
        self._waited(started, acquired=acquired)
        if not acquired:
            raise self._refusal(operation, waiter.criticality, "waited", patience) from None

    def release(self) -> None:
        """Give a permit back: to the first that waits, if any."""
        with self._lock:
            self.usage -= 1
            while self._queue.length and self.usage < self.limit:
                self._grant_next()

    def _take(self, criticality: Criticality) -> None:
        self.usage += 1
        if self._shedding is not None:
            self._shedding.accepted(criticality, self.usage)

    def _grant_next(self) -> None:
        waiter = self._queue.pop()
        if waiter.set_running_or_notify_cancel():
            self._take(waiter.criticality)
            waiter.set_result(None)

    def _enqueue(self, operation: str, seconds: float, criticality: Criticality) -> tuple[Waiter, float]:
        waiter = Waiter(criticality)
        with self._lock:
            full = self.usage >= self.limit and self._queue.length >= self.max_queued
            if full and not (self._queue.length and self._queue.make_room_for(criticality)):
                raise self._refusal(operation, criticality, "queue_full")
            patience = self._queue.patience(criticality, seconds)
            self._queue.push(waiter)
            if self.usage < self.limit:
                self._grant_next()
        return waiter, patience

    def _gave_up(self, waiter: Waiter) -> bool:
        """Leave the queue; False if the permit had been granted meanwhile and is ours."""
        with self._lock:
            granted = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if not granted:
                self._queue.remove(waiter)
            return not granted

    def _waited(self, started: float, *, acquired: bool) -> None:
        self._observer.on_event(PermitWaited(self.name, self._clock() - started, acquired))

    def _refusal(
        self, operation: str, criticality: Criticality, reason: str, seconds: float = 0.0
    ) -> OverloadedError:
        why = {
            "queue_full": f"{self._queue.length} calls wait already",
            "waited": f"no permit came free within {seconds:.3g} s",
            "made_room": "a call that matters more took its place in the queue",
        }[reason]
        error = OverloadedError
        if self._refusing is not None:
            self._refusing.shed(reason, criticality)
            error = LoadShedError
        return error(
            f"{operation}: all {self.limit} permits of {self.name} are in use and {why}",
            operation=operation,
            scope=self.name,
            limit=f"{self.limit} at once, {self.max_queued} waiting",
            retry_after=1.0,
        )
