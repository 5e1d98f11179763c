"""What became of the latest attempts: failure rate and slow-call rate over a sliding window."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkg_otel.config import CircuitBreakerConfig

__all__ = ["CallWindow", "make_window"]

PARTS = 10
"""A window of seconds is kept as so many sums; its oldest tenth is forgotten as a whole."""

FAILED, SLOW = 1, 2


class CallWindow:
    """The last `calls` attempts, or those of the last `seconds`. Not locked: its owner does that.

    Each attempt costs the same whatever the window's size. A window of seconds covers between nine
    tenths of its length and all of it.
    Source: resilience4j, "CircuitBreaker", count-based and time-based sliding window.
    """

    def __init__(self, calls: int, seconds: float | None) -> None:
        self._capacity = calls if seconds is None else 0
        self._part_seconds = None if seconds is None else seconds / PARTS
        self._parts: deque[list[int]] = deque()
        self._last: deque[int] = deque()
        self.total = self.failed = self.slow = 0

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add an attempt that ended at `now` (of the monotonic clock), and forget what is too old."""
        if self._part_seconds is None:
            self._last.append(FAILED * failed + SLOW * slow)
            self._count(1, failed, slow)
            if len(self._last) > self._capacity:
                oldest = self._last.popleft()
                self._count(-1, -(oldest & FAILED), -(oldest // SLOW))
            return
        part = int(now / self._part_seconds)
        while self._parts and self._parts[0][0] <= part - PARTS:
            _, total, failures, slows = self._parts.popleft()
            self._count(-total, -failures, -slows)
        if not self._parts or self._parts[-1][0] < part:
            self._parts.append([part, 0, 0, 0])
        newest = self._parts[-1]
        newest[1] += 1
        newest[2] += failed
        newest[3] += slow
        self._count(1, failed, slow)

    def clear(self) -> None:
        """Forget everything."""
        self._parts.clear()
        self._last.clear()
        self.total = self.failed = self.slow = 0

    def _count(self, total: int, failed: int, slow: int) -> None:
        self.total += total
        self.failed += failed
        self.slow += slow


def make_window(config: CircuitBreakerConfig) -> CallWindow | None:
    """Return the window that a configuration's rates need, or None if it has no rates."""
    if config.failure_rate_threshold is None and config.slow_call_rate_threshold is None:
        return None
    return CallWindow(config.window_calls, config.sliding_window_seconds)
