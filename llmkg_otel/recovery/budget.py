"""A cap on retries in progress over the whole system, so that retries cannot multiply an outage."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryBudget"]

RATIO = 0.2
FLOOR = 3


class RetryBudget:
    """Lets at most max(3, 20 % of the calls in flight) be retrying at once. Thread-safe.

    `in_flight` counts the calls that hold a permit: those that wait for one have not reached the engine.
    Source: the retry budgets of Finagle and Linkerd (20 % extra load), with a floor so that a quiet
    system may retry at all.
    """

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self.usage = 0

    @property
    def limit(self) -> int:
        """Retries that may be in progress now."""
        return max(FLOOR, int(RATIO * self._in_flight()))

    def try_acquire(self) -> bool:
        """Take a place for one call's retries; False when the budget is spent. Pair with `release`."""
        with self._lock:
            if self.usage >= self.limit:
                return False
            self.usage += 1
            return True

    def keep(self) -> bool:
        """Look again before a call's next retry; False, and the place is given back, if too many are taken.

        Calls that ended meanwhile leave fewer places than have been given.
        """
        with self._lock:
            if self.usage <= self.limit:
                return True
            self.usage -= 1
            return False

    def release(self) -> None:
        """Give the place back, however the retries ended."""
        with self._lock:
            self.usage -= 1
