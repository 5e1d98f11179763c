"""A token bucket as one number per key: the generic cell rate algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkg_otel.config import RateLimitRule

__all__ = ["TokenBucket", "TokenBuckets"]

_SLACK = 1e-6
"""Seconds by which rounding may make a wait miss zero and still count as none: after months of
uptime each addition to a time may be off by 1e-9, and a burst is as many additions as it has calls."""


class TokenBucket:
    """`requests_per_second` on average, `burst` at once. Not locked: its owner does that.

    Keeps the time at which the bucket will be full again, so a decision is one comparison and
    refilling needs no timer. All times are seconds of one monotonic clock.
    Source: ITU-T I.371, generic cell rate algorithm (virtual scheduling).
    """

    __slots__ = ("_full_at", "_interval", "_tolerance", "rule")

    def __init__(self, rule: RateLimitRule) -> None:
        self.rule = rule
        self._interval = 1.0 / rule.requests_per_second
        self._tolerance = (rule.burst - 1) * self._interval + _SLACK
        self._full_at = 0.0

    def take(self, now: float) -> float:
        """Take a token and return 0.0, or take none and return the seconds until there is one."""
        full_at = self._full_at
        if full_at < now:
            full_at = now
        elif full_at - now > self._tolerance:
            return full_at - now - self._tolerance + _SLACK
        self._full_at = full_at + self._interval
        return 0.0

    def put_back(self) -> None:
        """Undo a `take` that took one, because another limit refused the same call."""
        self._full_at -= self._interval


class TokenBuckets:
    """A bucket per key, forgotten only once it is full again: nobody gains by being forgotten.

    Two generations of a dictionary: what was not touched for as long as an empty bucket takes to
    fill is dropped as a whole. Keys are hashes; the names behind them are not kept. Not locked.
    """

    __slots__ = ("_generation_ends", "_interval", "_lifetime", "_new", "_old", "_tolerance", "rule")

    def __init__(self, rule: RateLimitRule) -> None:
        self.rule = rule
        self._interval = 1.0 / rule.requests_per_second
        self._tolerance = (rule.burst - 1) * self._interval + _SLACK
        self._lifetime = rule.burst * self._interval + _SLACK
        self._new: dict[int, float] = {}
        self._old: dict[int, float] = {}
        self._generation_ends = 0.0

    def __len__(self) -> int:
        return len(self._new.keys() | self._old.keys())

    def take(self, key: str, now: float) -> float:
        """Take a token of this key and return 0.0, or none and return the seconds until there is one."""
        if now >= self._generation_ends:
            self._old, self._new = self._new, {}
            self._generation_ends = now + self._lifetime
        hashed = hash(key)
        full_at = self._new.get(hashed)
        if full_at is None:
            full_at = self._old.get(hashed, now)
        if full_at < now:
            full_at = now
        elif full_at - now > self._tolerance:
            return full_at - now - self._tolerance + _SLACK
        self._new[hashed] = full_at + self._interval
        return 0.0
