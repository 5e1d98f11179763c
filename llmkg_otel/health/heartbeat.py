"""Whether the event loop runs, seen from outside of it, and what holds it up when it does not."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from llmkg_otel._threads import Periodic
from llmkg_otel.events import LoopBlocked, Observer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Heartbeat", "Watchdog"]

BEAT_SECONDS = 0.5
MAX_AGE_SECONDS = 5.0
LAGS_KEPT = 20
"""Ten seconds of beats: what happened since the last check of the loop, at the default period."""

LOOK_SECONDS = 1.0
STACK_DEPTH = 12


class Heartbeat:
    """Stamps the time every half second on the loop it was started on.

    A loop that is blocked stops stamping, which any thread can see. Before `start` and after `stop`
    there is no loop to watch, and it counts as alive.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._last: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.lags: tuple[float, ...] = ()
        """How many seconds late each of the last 20 beats was; swapped whole."""
        self.thread: int | None = None
        """The identifier of the loop's thread."""

    async def start(self) -> None:
        """Begin to beat on the running loop; does nothing when it already does."""
        if self._task is None:
            self._last, self.thread = self._clock(), threading.get_ident()
            self._task = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Stop beating."""
        task, self._task, self._last = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    @property
    def age(self) -> float:
        """Seconds since the last beat; 0 when nothing is watched."""
        last = self._last
        return 0.0 if last is None else self._clock() - last

    def alive(self, max_age: float = MAX_AGE_SECONDS) -> bool:
        """Say whether the last beat is at most `max_age` seconds old. Any thread."""
        return self.age <= max_age

    async def _beat(self) -> None:
        while True:
            due = self._clock() + BEAT_SECONDS
            await self._sleep(BEAT_SECONDS)
            self._last = now = self._clock()
            self.lags = (*self.lags, max(0.0, now - due))[-LAGS_KEPT:]


class Watchdog:
    """Looks at a heartbeat each second, from a daemon thread, and reports where a blocked loop stands.

    Liveness says that the loop is blocked, and a restart follows; this says by what, once for each time.
    It never changes an answer. Emits LoopBlocked with the innermost calls of the loop's thread: code,
    never values.
    """

    def __init__(self, heartbeat: Heartbeat, observer: Observer) -> None:
        self._heartbeat = heartbeat
        self._observer = observer
        self._reported = False
        looking = Periodic(self.look, LOOK_SECONDS, "llmkg-watchdog")
        self.start, self.stop = looking.start, looking.stop

    def look(self) -> None:
        """Report the loop if it is blocked and was not when last looked at."""
        blocked = not self._heartbeat.alive()
        if blocked and not self._reported:
            self._observer.on_event(LoopBlocked(self._heartbeat.age, stack_of(self._heartbeat.thread)))
        self._reported = blocked


def stack_of(thread: int | None) -> str:
    """Return the innermost 12 calls of a thread, outermost first, as a traceback shows them."""
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - the only way to another thread's stack
    return "".join(traceback.format_stack(frame)[-STACK_DEPTH:]) if frame else "its thread has ended"
