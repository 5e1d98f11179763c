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


class CountWindow:
    """The last `calls` attempts. Not locked: its owner does that.

    Source: resilience4j, "CircuitBreaker", count-based sliding window.
    """

    steady_until = math.inf
    """Until then `succeeded` is all there is to do for a quick success; seconds of the monotonic clock."""

    def __init__(self, calls: int) -> None:
        self._capacity = calls
        self._number = 0
        self._bad: deque[tuple[int, bool, bool]] = deque()
        self.total = self.failed = self.slow = 0

    def succeeded(self, calls: int) -> None:
        """Add so many quick successes, and forget what is too old."""
        self._number += calls
        self.total = min(self._number, self._capacity)
        while self._bad and self._bad[0][0] <= self._number - self._capacity:
            _, failed, slow = self._bad.popleft()
            self.failed -= failed
            self.slow -= slow

    def record(self, _now: float, *, failed: bool, slow: bool) -> None:
        """Add an attempt, and forget what is too old."""
        self.succeeded(1)
        if failed or slow:
            self._bad.append((self._number, failed, slow))
            self.failed += failed
            self.slow += slow

    def forget(self, _now: float) -> None:
        """Forget what is too old: nothing is, however late."""

    def clear(self) -> None:
        """Forget everything."""
        self._bad.clear()
        self._number = self.total = self.failed = self.slow = 0


class TimeWindow:
    """The attempts of the last `seconds`: of nine tenths of that time to all of it. Not locked either.

    Source: resilience4j, "CircuitBreaker", time-based sliding window.
    """

    def __init__(self, seconds: float) -> None:
        self._part_seconds = seconds / PARTS
        self._past: deque[tuple[int, int, int, int]] = deque()
        self._part, self.steady_until = 0, -math.inf
        self.total = self.failed = self.slow = 0

    def succeeded(self, calls: int) -> None:
        """Add so many quick successes that ended before `steady_until`."""
        self.total += calls

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add an attempt that ended at `now` (of the monotonic clock), and forget what is too old."""
        if now >= self.steady_until:
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
        self.steady_until = (self._part + 1) * self._part_seconds

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
