"""How many calls an engine can take at once, found out from how long they take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AdaptiveLimit"]

FIRST_LIMIT = 20

WINDOW_SECONDS = 0.1
WINDOW_CALLS = 10
"""The limit is looked at after both of these."""

FEW_CALLS = 3
"""The mean of fewer calls is an accident, and no measure of how fast an operation can be."""

TOLERANCE = 1.2
"""How much slower than unloaded a call may be before the limit falls."""

SMOOTHING = 0.5
"""How much of a step towards a new limit is taken at once."""

MEASURE_EVERY_SECONDS = 30.0
MEASURE_AT = 0.25
"""At the start, and so often, a window is run at this share of the limit, to see how long calls take then."""

MOST_SLOWDOWN = 10.0
"""One call that hung counts for no more than this."""


class AdaptiveLimit:
    """A concurrency limit that follows the slowdown of calls. Not locked.

    Each operation's time is compared with its own time under little load, so that slow and fast
    operations share one limit. After each window: new limit = limit x gradient + sqrt(limit) / 2, where
    the gradient is TOLERANCE / mean slowdown, within 0.5 and 1; the second term is the queue that is
    allowed in the engine. While less than half the limit is in use, nothing is learnt and it stays.
    Source: Netflix, concurrency-limits (Gradient2); the measuring, Envoy's adaptive concurrency filter.
    """

    def __init__(self, minimum: int, maximum: int, clock: Callable[[], float]) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._clock = clock
        self._exact = float(min(maximum, max(minimum, FIRST_LIMIT)))
        self._unloaded: dict[str, float] = {}
        self._measured_at = clock()
        self._measuring_since: float | None = self._measured_at
        self._window_began = self._measured_at
        self._times: dict[str, tuple[int, float]] = {}
        self._calls = self._busiest = 0

    @property
    def limit(self) -> int:
        """Calls that may be in the engine now."""
        share = MEASURE_AT if self._measuring_since is not None else 1.0
        return max(self._minimum, int(self._exact * share))

    def sample(self, operation: str, seconds: float, in_flight: int) -> bool:
        """Take note of a call that took `seconds` in the engine; say whether the limit may have changed.

        `in_flight` counts the calls that were in the engine with it.
        """
        now = self._clock()
        if self._measuring_since is not None and now - seconds < self._measuring_since:
            return False  # it began under the full load
        count, total = self._times.get(operation, (0, 0.0))
        self._times[operation] = count + 1, total + seconds
        self._calls += 1
        self._busiest = max(self._busiest, in_flight)
        if self._calls < WINDOW_CALLS or now - self._window_began < WINDOW_SECONDS:
            return False
        self._end_window(now)
        return True

    def _end_window(self, now: float) -> None:
        means = {operation: total / count for operation, (count, total) in self._times.items()}
        if self._measuring_since is not None:
            self._unloaded |= means
            self._measuring_since, self._measured_at = None, now
        else:
            self._unloaded |= {
                name: min(mean, self._unloaded.get(name, math.inf))
                for name, mean in means.items()
                if self._times[name][0] >= FEW_CALLS or name not in self._unloaded
            }
            if 2 * self._busiest >= self._exact:
                self._follow(means)
                if now - self._measured_at >= MEASURE_EVERY_SECONDS:
                    self._measuring_since = now
        self._begin_window()

    def _follow(self, means: dict[str, float]) -> None:
        slowdown = sum(
            count * min(MOST_SLOWDOWN, means[operation] / max(self._unloaded[operation], 1e-9))
            for operation, (count, _) in self._times.items()
        )
        gradient = max(0.5, min(1.0, TOLERANCE * self._calls / slowdown))
        target = self._exact * gradient + math.sqrt(self._exact) / 2
        step = SMOOTHING * (target - self._exact)
        self._exact = min(self._maximum, max(self._minimum, self._exact + step))

    def _begin_window(self) -> None:
        self._window_began = self._clock()
        self._times = {}
        self._calls = self._busiest = 0
