"""A clock that moves only when a test moves it."""

from __future__ import annotations

import asyncio
import threading

__all__ = ["FakeClock"]


class FakeClock:
    """Stand in for `time.monotonic`, `asyncio.sleep` and `time.sleep` at once.

    Call it to read the time: `FakeClock(100.0)() == 100.0`. Sleeping advances it at once and is noted
    in `slept`, so that a test can hold a back-off to its formula. May be read and advanced from any
    thread; `start` is in seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def __call__(self) -> float:
        """Return the time in seconds."""
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        """Move the time on by `seconds`; raise ValueError for a negative number."""
        if seconds < 0:
            raise ValueError(f"seconds = {seconds!r}: a monotonic clock never goes back")
        with self._lock:
            self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Advance instead of waiting, and let other tasks run once, as `asyncio.sleep` would."""
        self.sleep_sync(seconds)
        await asyncio.sleep(0)

    def sleep_sync(self, seconds: float) -> None:
        """Advance instead of blocking the thread."""
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))
