"""How many calls an engine works on at once, found out from how long they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AdaptiveLimit", "Began"]

FIRST_LIMIT = 20

HEADROOM = 1.2
"""Calls let in for each that the engine works on; and how much slower than alone calls may be on average."""

SMOOTHING = 0.5
"""How much of a step down is taken at once: a window may be an accident."""

IN_USE = 0.75
"""A limit of which this share was in use on average may be too high; that of a calm engine is left alone."""

DOUBTS = 2
"""Slow windows that end the start: one may be an accident."""

WINDOW_SECONDS = 0.1
"""The limit is looked at no more often than this."""

WINDOW_ERROR, BATCH_ERROR = 0.15, 0.07
FEWEST_CALLS, MOST_CALLS = 10, 1000
"""A mean is taken over so many calls that its standard error is this, within these bounds."""

PRIOR_CALLS = 100
"""What is believed of how much times differ weighs as many calls; at first, that of exponential times."""

FIRST_MEASURED_SECONDS, MEASURED_EVERY_SECONDS = 0.5, 30.0
MEASURED_SHARE = 0.05
"""An engine that is never calm is relieved, to be measured, so often, and for this share of the time."""

MOVED = 1.4
"""A limit that has moved by this factor may stand on a measure that holds no longer."""

PATIENCE = 10
"""A call that has taken as many times as long as it took to collect a batch is no longer waited for."""


@dataclass(slots=True)
class _Batch:
    """Calls that began while the engine was calm: so many that they tell how long a call takes alone."""

    since: float
    spread: float
    until: float | None = None
    unfinished: int = 0
    calls: int = 0
    deviations: float = 0.0
    times: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, operation: str, seconds: float) -> None:
        count, total = self.times.get(operation, (0, 0.0))
        self.times[operation] = count, total = count + 1, total + seconds
        self.calls += 1
        self.deviations += (seconds * count / max(total, 1e-12) - 1) ** 2

    def squared_deviation(self) -> float:
        """Return the mean square of how much times differ from the mean of their operation."""
        return (PRIOR_CALLS * self.spread + self.deviations) / (PRIOR_CALLS + self.calls)


@dataclass(slots=True)
class _Window:
    """Sums over the calls that have ended since it began: their times, and those they would take alone."""

    since: float
    calls: int = 0
    seconds: float = 0.0
    alone: float = 0.0
    alone_in_flight: float = 0.0
    in_flight: int = 0
    busiest: int = 0

    def add(self, seconds: float, alone: float, in_flight: int) -> None:
        self.calls += 1
        self.seconds += seconds
        self.alone += alone
        self.alone_in_flight += alone * in_flight
        self.in_flight += in_flight
        self.busiest = max(self.busiest, in_flight)


class Began(NamedTuple):
    """A call that has begun `at`, as one of `in_flight`; and the batch that it belongs to, if any."""

    at: float
    in_flight: int
    batch: _Batch | None


class AdaptiveLimit:
    """A concurrency limit that follows how many calls the engine really works on. Not locked.

    By Little's law that is the calls in flight, divided by how much longer they take than alone, and that
    holds for means whatever the times look like, which it does not for minima or quantiles: so the limit
    becomes HEADROOM x in flight / slowdown, and half a square root for chance. It grows where the limit
    was reached and calls are not slower than HEADROOM, and falls where it is in use and they are.

    It doubles instead, once a window, until calls are slower for the first time, in DOUBTS windows one after
    the other; then it takes the last doubling back. Until then no measuring interrupts: an engine that was
    measured too busy to be fast grows slower at the first doubling.

    How long a call of an operation takes alone is the mean over calls that began with half the limit in
    flight or less: all of those that began, so that the short ones, which end first, do not stand for all.
    If an engine is never calm, and the limiter `may_relieve` it, the limit is halved so long.

    Source: Netflix, concurrency-limits (Gradient2: averages, not minima); BBR, "Congestion-based
    Congestion Control", ACM Queue (throughput x time without a queue, measured by draining it); Envoy's
    adaptive concurrency filter; slow start: RFC 5681. Chosen by the simulation in tests/support/overload.py.
    """

    def __init__(
        self, minimum: int, maximum: int, clock: Callable[[], float], *, may_relieve: bool = True
    ) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._clock, self._may_relieve = clock, may_relieve
        self._exact = self._measured_at = float(min(maximum, max(minimum, FIRST_LIMIT)))
        self._first = self._exact
        self._starting, self._doubts = True, 0
        self._alone: dict[str, float] = {}
        self._relieved = False
        now = clock()
        self._due, self._earliest = now + FIRST_MEASURED_SECONDS, now
        self._batch = _Batch(now, 1.0)
        self._window = _Window(now)

    @property
    def limit(self) -> int:
        """Calls at once that the engine takes well."""
        return int(self._exact)

    @property
    def permits(self) -> int:
        """Calls that may be in the engine now: `limit`, or half of it while the engine is measured."""
        return int(self._calm) if self._relieved else self.limit

    def begin(self, in_flight: int) -> Began:
        """Take note of a call that begins; `in_flight` counts those that are in the engine, it included."""
        batch = self._batch if self._batch.until is None and in_flight <= self._calm else None
        if batch is not None:
            batch.unfinished += 1
        return Began(self._clock(), in_flight, batch)

    def end(self, began: Began, operation: str, *, counts: bool) -> None:
        """Take note that a call has ended; one that failed early `counts` for nothing."""
        now = self._clock()
        seconds = now - began.at
        if began.batch is not None:
            began.batch.unfinished -= 1
            if counts:
                began.batch.add(operation, seconds)
        self._look_at_batch(now)
        alone = self._alone.get(operation)
        if not counts or self._relieved or alone is None:
            return
        window = self._window
        window.add(seconds, alone, began.in_flight)
        if now - window.since >= WINDOW_SECONDS and window.calls >= _enough(self._batch.spread, WINDOW_ERROR):
            if window.busiest >= self.limit and self._is_due(now):
                self._relieved, self._batch = True, _Batch(now, self._batch.spread)
            else:
                self._follow(window)
            self._window = _Window(now)

    @property
    def _calm(self) -> float:
        """Calls in flight of which none has to wait; before anything is known, as many as are let in."""
        return max(self._minimum, self._exact / 2) if self._alone else self._exact

    def _follow(self, window: _Window) -> None:
        slowdown = window.seconds / max(window.alone, 1e-12)
        slow = slowdown > HEADROOM
        if slow and window.in_flight < IN_USE * self._exact * window.calls:
            return
        if self._starting and window.busiest >= self.limit:
            self._doubts = self._doubts + 1 if slow else 0
            if self._doubts == DOUBTS:
                self._starting, self._exact = False, max(self._first, self._exact / 2)
            elif not slow:
                self._exact = min(self._maximum, 2 * self._exact)
            return
        worked_on = window.alone_in_flight / max(window.seconds, 1e-12)
        if not slow:
            worked_on = window.busiest / max(1.0, slowdown)
        target = HEADROOM * worked_on + math.sqrt(worked_on) / 2
        if slow and target < self._exact:
            self._exact = max(
                self._minimum, self._exact + SMOOTHING * (max(target, self._exact / 2) - self._exact)
            )
        elif not slow and target > self._exact:
            self._exact = min(self._maximum, target)

    def _is_due(self, now: float) -> bool:
        """Say whether the engine is to be measured now; a batch that is being finished comes first."""
        moved = max(self._exact / self._measured_at, self._measured_at / self._exact) >= MOVED
        due = now >= self._due or (moved and now >= self._earliest)
        return due and self._may_relieve and self._batch.until is None and not self._starting

    def _look_at_batch(self, now: float) -> None:
        """End a batch that has enough calls; learn from it when all of them have ended."""
        batch = self._batch
        if batch.until is None:
            if batch.calls < _enough(batch.squared_deviation(), BATCH_ERROR):
                return
            batch.until = now
            if self._relieved:
                self._relieved = False
                took = now - batch.since
                self._due = now + max(MEASURED_EVERY_SECONDS, took / MEASURED_SHARE)
                self._earliest = now + 5 * took
        if not batch.unfinished or now - batch.until > PATIENCE * (batch.until - batch.since):
            if not self._alone and batch.calls < _enough(batch.squared_deviation(), BATCH_ERROR):
                batch.until = None  # the long ones, which ended last, have told that it takes more of them
                return
            for operation, (count, total) in batch.times.items():
                mean = total / count
                before = self._alone.get(operation, mean)
                self._alone[operation] = before + (mean - before) * count / (count + FEWEST_CALLS)
            self._measured_at = self._exact
            self._batch, self._window = _Batch(now, batch.squared_deviation()), _Window(now)


def _enough(spread: float, error: float) -> float:
    """Return how many calls it takes, whose times differ by so much, for a mean of that standard error."""
    return min(MOST_CALLS, max(FEWEST_CALLS, spread / error**2))
