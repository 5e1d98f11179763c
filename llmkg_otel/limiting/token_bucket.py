"""A token bucket as one number per key: the generic cell rate algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.limiting.table import FloatTable

if TYPE_CHECKING:
    from llmkg_otel.config import RateLimitRule

__all__ = ["SLACK", "TokenBucket", "TokenBuckets"]

SLACK = 1e-6
"""Seconds by which rounding may make a wait miss zero and still count as none: after months of
uptime each addition to a time may be off by 1e-9, and a burst is as many additions as it has calls."""


class TokenBucket:
    """`requests_per_second` on average, `burst` at once. Not locked: its owner does that.

    Keeps the time at which the bucket will be full again, so a decision is one comparison and
    refilling needs no timer. All times are seconds of one monotonic clock. A cost is whole tokens, and
    at most the burst. There is one bucket for all: keys are not looked at.
    Source: ITU-T I.371, generic cell rate algorithm (virtual scheduling).
    """

    __slots__ = ("_capacity", "_full_at", "_interval", "rule")

    def __init__(self, rule: RateLimitRule) -> None:
        self.rule = rule
        self._interval = 1.0 / rule.requests_per_second
        self._capacity = rule.burst * self._interval + SLACK
        self._full_at = 0.0

    def take(self, now: float, cost: int = 1, _key: int = 0) -> float:
        """Take tokens and return 0.0, or take none and return the seconds until there are enough."""
        full_at = self._full_at
        due = self._interval * cost
        if full_at < now:
            full_at = now
        elif full_at - now > self._capacity - due:
            return full_at - now - self._capacity + due + SLACK
        self._full_at = full_at + due
        return 0.0

    def wait(self, now: float, cost: int = 1, _key: int = 0) -> float:
        """Return what `take` would, and take nothing."""
        missing = self._full_at - now - self._capacity + self._interval * cost
        return missing + SLACK if self._full_at >= now and missing > 0 else 0.0

    def put_back(self, cost: int = 1, _key: int = 0) -> None:
        """Undo a `take` that took some, because another limit refused the same call."""
        self._full_at -= self._interval * cost


class TokenBuckets:
    """A bucket per key, forgotten only once it is full again: nobody gains by being forgotten.

    Two generations of a table: what was not touched for as long as an empty bucket takes to fill is
    dropped as a whole. Keys are hashes; the names behind them are not kept. Nobody is evicted early:
    a new key comes in only with a call that the global limit has let through, so there are at most as
    many as that lets through in two such times. Not locked.
    """

    __slots__ = ("_capacity", "_generation_ends", "_interval", "_new", "_old", "rule")

    def __init__(self, rule: RateLimitRule) -> None:
        self.rule = rule
        self._interval = 1.0 / rule.requests_per_second
        self._capacity = rule.burst * self._interval + SLACK
        self._new, self._old = FloatTable(), FloatTable()
        self._generation_ends = 0.0

    def __len__(self) -> int:
        return self._new.size() + self._old.size()

    def take(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Take tokens of this key and return 0.0, or none and return the seconds until there are enough."""
        if now >= self._generation_ends:
            self._old, self._new = self._new, FloatTable()
            self._generation_ends = now + self._capacity
        full_at = self._new[key] or self._old[key]
        due = self._interval * cost
        if full_at < now:
            full_at = now
        elif full_at - now > self._capacity - due:
            return full_at - now - self._capacity + due + SLACK
        self._new.put(key, full_at + due)
        return 0.0

    def wait(self, now: float, cost: int = 1, key: int = 0) -> float:
        """Return what `take` would, and take nothing."""
        full_at = self._new[key] or self._old[key]
        missing = full_at - now - self._capacity + self._interval * cost
        return missing + SLACK if full_at >= now and missing > 0 else 0.0

    def put_back(self, cost: int = 1, key: int = 0) -> None:
        """Undo a `take` that took some."""
        self._new.put(key, self._new[key] - self._interval * cost)
