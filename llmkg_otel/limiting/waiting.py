"""Who waits for a permit, and whose turn is next."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.config import LoadSheddingConfig

__all__ = ["CRITICALITIES", "Criticality", "Shed", "WaitQueue", "Waiter"]

Criticality = Literal["critical", "default", "sheddable"]
CRITICALITIES: tuple[Criticality, ...] = get_args(Criticality)
"""From the most to the least important. Source: Google, "Site Reliability Engineering", ch. 21."""


class Shed(Exception):  # noqa: N818 - it never leaves the pool, which makes an error of it
    """A waiter was sent away; `reason` is "waited" or "made_room"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Waiter(Future[None]):
    """A call that waits: done when it has its permit."""

    def __init__(self, criticality: Criticality) -> None:
        super().__init__()
        self.criticality = criticality
        self.since = 0.0

    def send_away(self, reason: str) -> None:
        """End the wait, unless its call has just been cancelled."""
        if self.set_running_or_notify_cancel():
            self.set_exception(Shed(reason))


class WaitQueue:
    """First come, first served, as long as the queue runs empty now and then. Not locked.

    With load shedding the more important calls go first; and once the queue has not been empty for
    `queue_interval_seconds`, the newest go first, and a call waits `queue_target_seconds` at most: who
    has waited long has mostly been given up on, and serving them late helps nobody. Critical calls are
    as patient as ever.
    Source: Nichols and Jacobson, "Controlling Queue Delay" (CoDel), and Maurer, "Fail at Scale"
    (adaptive LIFO), both in ACM Queue.
    """

    def __init__(self, shedding: LoadSheddingConfig | None, clock: Callable[[], float]) -> None:
        self._shedding = shedding if shedding is not None and shedding.mode == "on" else None
        self._clock = clock
        levels = CRITICALITIES if self._shedding is not None else ("default",)
        self._waiting: dict[str, deque[Waiter]] = {level: deque() for level in levels}
        self.length = 0  # read for each call
        self._busy_since = 0.0

    @property
    def overloaded(self) -> bool:
        """Whether the queue has not been empty for longer than a burst lasts."""
        shedding = self._shedding
        if shedding is None or not self.length:
            return False
        return self._clock() - self._busy_since > shedding.queue_interval_seconds

    def patience(self, criticality: Criticality, seconds: float) -> float:
        """Return how long a newcomer may wait that would wait for `seconds`."""
        if criticality == "critical" or not self.overloaded or self._shedding is None:
            return seconds
        return min(seconds, self._shedding.queue_target_seconds)

    def push(self, waiter: Waiter) -> None:
        """Add a newcomer."""
        waiter.since = self._clock()
        if not self.length:
            self._busy_since = waiter.since
        self.length += 1
        self._level(waiter).append(waiter)

    def pop(self) -> Waiter:
        """Take out whose turn it is; the queue must not be empty."""
        newest_first = self.overloaded
        waiting = next(level for level in self._waiting.values() if level)
        self.length -= 1
        waiter = waiting.pop() if newest_first else waiting.popleft()
        if newest_first:
            self._send_away_the_late()
        return waiter

    def _send_away_the_late(self) -> None:
        """End the waits that began before the overload was known, and have lasted too long since."""
        assert self._shedding is not None  # noqa: S101 - nothing else is overloaded
        latest = self._clock() - self._shedding.queue_target_seconds
        for level in CRITICALITIES[1:]:
            while (waiting := self._waiting[level]) and waiting[0].since < latest:
                self.length -= 1
                waiting.popleft().send_away("waited")

    def remove(self, waiter: Waiter) -> None:
        """Take out a waiter, if it is still there."""
        level = self._level(waiter)
        if waiter in level:
            level.remove(waiter)
            self.length -= 1

    def make_room_for(self, criticality: Criticality) -> bool:
        """Send away whoever matters less than a newcomer, the longest waiting first; say whether one was."""
        if self._shedding is None:
            return False
        for level in reversed(CRITICALITIES[CRITICALITIES.index(criticality) + 1 :]):
            if waiting := self._waiting[level]:
                self.length -= 1
                waiting.popleft().send_away("made_room")
                return True
        return False

    def _level(self, waiter: Waiter) -> deque[Waiter]:
        return self._waiting[waiter.criticality if self._shedding is not None else "default"]
