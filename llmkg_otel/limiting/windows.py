"""The three windows of the `limits` library, counted in process on a monotonic clock.

`limits` has them on its MemoryStorage too, but there they do not hold what is promised here
(tests/limiting/test_windows.py shows each): they read the wall clock, so an hour's step back refuses
for an hour; a refused call of weight 5 still adds 5 to a fixed window; and the reset time of a sliding
window is not when the call would be admitted. What they admit is the same where those do not matter,
and a test compares them call by call.
"""

from __future__ import annotations

from array import array
from itertools import repeat
from typing import TYPE_CHECKING

from llmkg_otel.limiting.table import CallTable, FloatTable
from llmkg_otel.limiting.token_bucket import SLACK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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


FEW_KEYS = 1 << 12
"""Keys up to here have a log of their own: ten times the memory of a few calls in a table, and faster."""

FEW_CALLS = 16
"""A key with more calls than this has one in any case: a search for each of them would take too long."""


class _Log:
    """The calls of the last period, the newest last, and the sum of their costs."""

    __slots__ = ("_calls", "_first", "used")

    def __init__(self, times: Iterable[float] = ()) -> None:
        self._calls = array("d")  # time, cost, time, cost...
        self._first = 0
        self.used = 0
        for at in times:
            self.add(at, 1)

    def add(self, now: float, cost: int) -> None:
        self._calls.extend((now, cost))
        self.used += cost

    def pop(self) -> None:
        self.used -= int(self._calls.pop())
        self._calls.pop()

    def clear(self, now: float, period: float) -> None:
        """Drop the calls that no longer count; their memory goes when it is half of what there is."""
        calls, first = self._calls, self._first
        while first < len(calls) and calls[first] + period <= now:
            self.used -= int(calls[first + 1])
            first += 2
        if 2 * first > len(calls):
            del calls[:first]
            first = 0
        self._first = first

    def __iter__(self) -> Iterator[tuple[float, float]]:
        """Give each call's time and cost."""
        for at in range(self._first, len(self._calls), 2):
            yield self._calls[at], self._calls[at + 1]


class MovingWindow:
    """At most the burst in any stretch [t, t + period), by key: every call's time is kept. Not locked.

    18 bytes for each call of the period. The first FEW_KEYS, and keys with more than FEW_CALLS calls, have
    logs of their own, at 16 bytes a call and 300 around it; such a log lasts up to two periods longer than
    its last call.
    """

    __slots__ = ("_amount", "_few", "_generation_ends", "_mask", "_new", "_old", "_period", "rule")

    def __init__(self, rule: RateLimitRule, *, keyed: bool = True) -> None:
        self.rule = rule
        self._mask = -1 if keyed else 0  # for one window that all share, every key is 0
        self._amount, self._period = int(rule.burst), rule.period
        self._few = CallTable(self._period)
        self._new: dict[int, _Log] = {}
        self._old: dict[int, _Log] = {}
        self._generation_ends = 0.0

    def take(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Take room in the window and return 0.0, or none and return the seconds until there is enough."""
        key &= self._mask
        log = self._log_of(key, now)
        if log is None:
            times = self._few.times(key, now)
            calls = len(times) + cost
            if calls > self._amount:
                return self._wait(zip(times, repeat(1)), calls - self._amount, now)
            if times or len(self._new) >= FEW_KEYS:
                if calls <= FEW_CALLS:
                    self._few.add(key, now, cost)
                    return 0.0
                self._few.forget(key, len(times))
            log = self._new[key] = _Log(times)
        log.clear(now, self._period)
        if log.used + cost > self._amount:
            return self._wait(log, log.used + cost - self._amount, now)
        log.add(now, cost)
        return 0.0

    def wait(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Return what `take` would, and take nothing."""
        key &= self._mask
        log = self._new.get(key) or self._old.get(key)
        if log is not None:
            return self._wait(log, log.used + cost - self._amount, now)
        times = self._few.times(key, now)
        return self._wait(zip(times, repeat(1)), len(times) + cost - self._amount, now)

    def put_back(self, cost: int = 1, key: int = 0) -> None:
        """Undo the last `take` that took some."""
        key &= self._mask
        if (log := self._new.get(key)) is not None:
            log.pop()
        else:
            self._few.forget(key, cost)

    def _log_of(self, key: int, now: float) -> _Log | None:
        """Return a key's own log, if it has one: two generations of them, so that the unused leave."""
        if now >= self._generation_ends:
            self._old, self._new = self._new, {}
            self._generation_ends = now + self._period
        log = self._new.get(key)
        if log is None and key in self._old:
            log = self._new[key] = self._old.pop(key)
        return log

    def _wait(self, calls: Iterable[tuple[float, float]], excess: float, now: float) -> float:
        """Return the seconds until calls of that cost in all have left, the oldest first."""
        leaves = 0.0
        for at, cost in calls:
            if excess <= 0:
                break
            excess -= cost
            leaves = at + self._period - now
        return leaves + SLACK if leaves > 0 else 0.0
