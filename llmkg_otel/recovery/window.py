"""What became of the latest attempts: failure rate and slow-call rate over a sliding window."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkg_otel.config import CircuitBreakerConfig

__all__ = ["CountWindow", "TimeWindow", "Window", "make_window"]

PARTS = 10
"""A window of seconds is kept as so many sums; its oldest tenth is forgotten as a whole."""

FAILED, SLOW = 1, 2


class CountWindow:
    """The last `calls` attempts. Not locked: its owner does that.

    Source: resilience4j, "CircuitBreaker", count-based sliding window.
    """

    def __init__(self, calls: int) -> None:
        self._capacity = calls
        self._last: deque[int] = deque()
        self.total = self.failed = self.slow = 0

    def record(self, _now: float, *, failed: bool, slow: bool) -> None:
        """Add an attempt, and forget the oldest if the window is full."""
        if self.total < self._capacity:
            self.total += 1
        elif oldest := self._last.popleft():
            self.failed -= oldest & FAILED
            self.slow -= oldest // SLOW
        self._last.append(FAILED * failed + SLOW * slow)
        self.failed += failed
        self.slow += slow

    def forget(self, _now: float) -> None:
        """Forget what is too old: nothing is, however late."""

    def clear(self) -> None:
        """Forget everything."""
        self._last.clear()
        self.total = self.failed = self.slow = 0


class TimeWindow:
    """The attempts of the last `seconds`: of nine tenths of that time to all of it. Not locked either.

    Source: resilience4j, "CircuitBreaker", time-based sliding window.
    """

    def __init__(self, seconds: float) -> None:
        self._part_seconds = seconds / PARTS
        self._past: deque[tuple[int, int, int, int]] = deque()
        self._part, self._part_ends = 0, -math.inf
        self.total = self.failed = self.slow = 0

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add an attempt that ended at `now` (of the monotonic clock), and forget what is too old."""
        if now >= self._part_ends:
            self.forget(now)
        self.total += 1
        self.failed += failed
        self.slow += slow

    def forget(self, now: float) -> None:
        """Begin the part that `now` lies in, if it is another one, and forget parts that are too old."""
        part, past = int(now / self._part_seconds), self._past
        if part > self._part:
            total, failed, slow = (sum(each[i] for each in past) for i in (1, 2, 3))
            past.append((self._part, self.total - total, self.failed - failed, self.slow - slow))
            self._part = part
        while past and past[0][0] <= part - PARTS:
            _, total, failed, slow = past.popleft()
            self.total -= total
            self.failed -= failed
            self.slow -= slow
        self._part_ends = (self._part + 1) * self._part_seconds

    def clear(self) -> None:
        """Forget everything."""
        self._past.clear()
        self.total = self.failed = self.slow = 0


Window = CountWindow | TimeWindow
"""`total` attempts, of which `failed` and `slow`; an attempt costs the same whatever the window's size."""


def make_window(config: CircuitBreakerConfig) -> Window | None:
    """Return the window that a configuration's rates need, or None if it has no rates."""
    if config.failure_rate_threshold is None and config.slow_call_rate_threshold is None:
        return None
    if config.sliding_window_seconds is not None:
        return TimeWindow(config.sliding_window_seconds)
    return CountWindow(config.window_calls)
