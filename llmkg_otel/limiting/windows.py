"""The three windows of the `limits` library, counted in process on a monotonic clock.

`limits` has them on its MemoryStorage too, but there they do not hold what is promised here
(tests/limiting/test_windows.py shows each): they read the wall clock, so an hour's step back refuses
for an hour; a refused call of weight 5 still adds 5 to a fixed window; and the reset time of a sliding
window is not when the call would be admitted. What they admit is the same where those do not matter,
and a test compares them call by call.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from llmkg_otel.limiting.table import FloatTable
from llmkg_otel.limiting.token_bucket import SLACK

if TYPE_CHECKING:
    from llmkg_otel.config import RateLimitRule

__all__ = ["FixedWindow", "MovingWindow", "SlidingWindow"]


class FixedWindow:
    """At most the burst in each stretch [n * period, (n + 1) * period) of the clock, by key. Not locked."""

    __slots__ = ("_amount", "_counts", "_index", "_mask", "_period", "rule")

    def __init__(self, rule: RateLimitRule, *, keyed: bool = True) -> None:
        self.rule = rule
        self._mask = -1 if keyed else 0  # for one window that all share, every key is 0
        self._amount, self._period = int(rule.burst), rule.period
        self._index = 0
        self._counts = FloatTable()

    def take(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Take room in the window and return 0.0, or none and return the seconds until there is enough."""
        index = int(now // self._period)
        if index > self._index:  # a clock that goes back stays in the window
            self._index, self._counts = index, FloatTable()
        key &= self._mask
        count = self._counts[key] + cost
        if count > self._amount:
            return (self._index + 1) * self._period - now + SLACK
        self._counts.put(key, count)
        return 0.0

    def wait(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Return what `take` would, and take nothing."""
        if int(now // self._period) > self._index or self._counts[key & self._mask] + cost <= self._amount:
            return 0.0
        return (self._index + 1) * self._period - now + SLACK

    def put_back(self, cost: int = 1, key: int = 0) -> None:
        """Undo a `take` that took some."""
        key &= self._mask
        self._counts.put(key, self._counts[key] - cost)


class SlidingWindow:
    """The calls of this stretch, and of the one before by the share that the last period overlaps.

    That sum is at most the burst. Two numbers a key, where a moving window keeps every call. Not locked.
    Source: limits' SlidingWindowCounterRateLimiter, which rounds the sum down.
    """

    __slots__ = ("_amount", "_before", "_counts", "_index", "_mask", "_period", "rule")

    def __init__(self, rule: RateLimitRule, *, keyed: bool = True) -> None:
        self.rule = rule
        self._mask = -1 if keyed else 0  # for one window that all share, every key is 0
        self._amount, self._period = int(rule.burst), rule.period
        self._index = 0
        self._counts, self._before = FloatTable(), FloatTable()

    def take(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Take room in the window and return 0.0, or none and return the seconds until there is enough."""
        index = int(now // self._period)
        if index > self._index:
            self._before = self._counts if index == self._index + 1 else FloatTable()
            self._index, self._counts = index, FloatTable()
        if wait := self.wait(now, cost, key):
            return wait
        key &= self._mask
        self._counts.put(key, self._counts[key] + cost)
        return 0.0

    def wait(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Return what `take` would, and take nothing."""
        key &= self._mask
        turned = max(0, int(now // self._period) - self._index)
        current = self._counts[key] if turned == 0 else 0.0
        before = (self._before, self._counts)[turned][key] if turned < 2 else 0.0
        start = (self._index + turned) * self._period
        if current + cost > self._amount:  # not before this stretch is the one before
            before, current, start = current, 0.0, start + self._period
        room = self._amount - current - cost
        if before * (1 - (now - start) / self._period) <= room and start <= now:
            return 0.0
        share = 1 - room / before if before > room else 0.0
        return max(start + share * self._period - now, 0.0) + SLACK

    def put_back(self, cost: int = 1, key: int = 0) -> None:
        """Undo a `take` that took some."""
        key &= self._mask
        self._counts.put(key, self._counts[key] - cost)


class _Log:
    """The calls of the last period: (time, cost), the newest last, and the sum of the costs."""

    __slots__ = ("calls", "used")

    def __init__(self) -> None:
        self.calls: deque[tuple[float, int]] = deque()
        self.used = 0


class MovingWindow:
    """At most the burst in any stretch [t, t + period), by key: every call's time is kept. Not locked.

    A key takes as much memory as it has calls in the period; it is forgotten once it has none.
    """

    __slots__ = ("_amount", "_generation_ends", "_mask", "_new", "_old", "_period", "rule")

    def __init__(self, rule: RateLimitRule, *, keyed: bool = True) -> None:
        self.rule = rule
        self._mask = -1 if keyed else 0  # for one window that all share, every key is 0
        self._amount, self._period = int(rule.burst), rule.period
        self._new: dict[int, _Log] = {}
        self._old: dict[int, _Log] = {}
        self._generation_ends = 0.0

    def take(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Take room in the window and return 0.0, or none and return the seconds until there is enough."""
        if now >= self._generation_ends:
            self._old, self._new = self._new, {}
            self._generation_ends = now + self._period
        key &= self._mask
        log = self._new.get(key)
        if log is None:
            log = self._new[key] = self._old.pop(key) if key in self._old else _Log()
        calls = log.calls
        while calls and calls[0][0] + self._period <= now:
            log.used -= calls.popleft()[1]
        if log.used + cost > self._amount:
            return self._wait(log, now, cost)
        calls.append((now, cost))
        log.used += cost
        return 0.0

    def wait(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Return what `take` would, and take nothing."""
        key &= self._mask
        log = self._new.get(key) or self._old.get(key)
        return self._wait(log, now, cost) if log is not None else 0.0

    def put_back(self, cost: int = 1, key: int = 0) -> None:  # noqa: ARG002 - what was taken last knows it
        """Undo the last `take` that took some."""
        log = self._new[key & self._mask]
        log.used -= log.calls.pop()[1]

    def _wait(self, log: _Log, now: float, cost: int) -> float:
        excess, leaves = log.used + cost - self._amount, 0.0
        for at, taken in log.calls:
            if excess <= 0:
                break
            excess -= taken
            leaves = at + self._period - now
        return leaves + SLACK if leaves > 0 else 0.0
