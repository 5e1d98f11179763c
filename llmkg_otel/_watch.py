"""One timer for all deadlines of a loop, so that a call which ends in time pays for none."""

from __future__ import annotations

import math
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from llmkg_otel.call import Call

__all__ = ["GRACE_SECONDS", "Watch", "Watches"]


GRACE_SECONDS = 1.0
"""How long a cancelled call may take to clean up before it is told of."""


class Watch:
    """Cancels the tasks of calls whose time is up. Belongs to one event loop.

    A call that has not ended GRACE_SECONDS later is given to `ignored`: it does not heed its cancellation.

    A timer for each call would copy the call's context, and tie call, timer and span into a reference
    cycle of 19 objects (benchmarks/parts.py): with one timer for all, the ratio to the bare span and
    histogram went from 1.32 to 1.20. It rings at the earliest deadline, whose call has mostly ended by
    then, and moves on to the next.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ignored: Callable[[Call], None]) -> None:
        self.loop = loop
        self._ignored = ignored
        self._late: dict[Call, float] = {}
        self._ends: dict[Call, float] = {}
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def start(self, call: Call, end: float) -> None:
        """Cancel the call's task at `end` (of the monotonic clock), unless `stop` comes first."""
        self._ends[call] = end
        if end < self._rings_at:
            self._ring_at(end)

    def stop(self, call: Call) -> bool:
        """End the watch over a call; True if its time was up and its task was cancelled for that."""
        if self._ends.pop(call, None) is not None:
            return False
        self._late.pop(call, None)
        return True

    def _ring_at(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = end
        self._timer = self.loop.call_later(end - time.monotonic(), self._ring, context=Context())

    def _ring(self) -> None:
        self._rings_at, self._timer = math.inf, None
        now = time.monotonic()
        over = [call for call, end in self._ends.items() if end <= now]
        for call in sorted(over, key=self._ends.__getitem__):
            self._late[call] = end = self._ends.pop(call)
            if call.task is not None:
                call.task.cancel()
            self.loop.call_later(GRACE_SECONDS, self._look_again, call, end, context=Context())
        if self._ends:
            self._ring_at(min(self._ends.values()))

    def _look_again(self, call: Call, end: float) -> None:
        if self._late.get(call) == end:  # else it has ended, and may be in another attempt
            self._ignored(call)


class Watches:
    """The watch of each event loop that calls come from; those of closed loops are let go.

    A new one for each call that comes from another loop than the last would leave a timer behind, until
    the call's time is up.
    """

    def __init__(self, ignored: Callable[[Call], None]) -> None:
        self._ignored = ignored
        self._by_loop: dict[asyncio.AbstractEventLoop, Watch] = {}
        self._lock = threading.Lock()

    def of(self, loop: asyncio.AbstractEventLoop) -> Watch:
        """Return a loop's watch. Thread-safe."""
        with self._lock:
            if loop not in self._by_loop:
                for closed in [each for each in self._by_loop if each.is_closed()]:
                    del self._by_loop[closed]
                self._by_loop[loop] = Watch(loop, self._ignored)
            return self._by_loop[loop]
