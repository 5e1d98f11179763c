"""One place that alerts go to: its groups, its thread, its retries. Evaluation never waits for it."""

from __future__ import annotations

import logging
import math
import random
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Condition, Thread
from typing import TYPE_CHECKING

from llmkg_otel.alerting.notify.grouping import Grouping
from llmkg_otel.alerting.notify.message import DeliveryError, Message, Notice
from llmkg_otel.config import RetryConfig
from llmkg_otel.recovery.backoff import backoff_seconds
from llmkg_otel.recovery.failures import retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmkg_otel.alerting.notify.message import Labels, Target
    from llmkg_otel.config import NotifyConfig

__all__ = ["Channel"]

_logger = logging.getLogger(__name__)
_LONGEST_WAIT = 60.0
"""Seconds; no server may silence us for longer."""


class Channel:
    """Tells one target of alerts, on a daemon thread between `start` and `stop` (once each).

    `tell` is quick and may be called on any thread. A message that fails is tried again after 0.5 s, 1 s,
    ... (30 s at most), `max_retries` times, then at the next group interval; after a failure that stays, at
    twice the interval each time, up to the repeat. Each try tells what is true by then, and no group waits
    for another's tries. `told` hears of each end: the channel, and the error.type or None. Requests are made
    within `quietly()`. `clock` (seconds since the epoch) is told, and may be set; `pace` is waited by.
    When `tell` was last called more than `stale_after` seconds ago, nothing is repeated.
    """

    def __init__(
        self,
        name: str,
        config: NotifyConfig,
        target: Target,
        told: Callable[[str, str | None], None],
        *,
        clock: Callable[[], float] = time.time,
        pace: Callable[[], float] = time.monotonic,
        stale_after: float = math.inf,
        quietly: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._name = name
        self._retry = RetryConfig(max_retries=config.max_retries, base_delay_ms=500, max_delay_ms=30_000)
        self._target = target
        self._told = told
        self._clock = clock
        self._pace = pace
        self._quietly = quietly
        self._grouping = Grouping(config, stale_after)
        self._left_out = 0
        self._changed = Condition()
        self._stopping = False
        self._thread = Thread(target=self._run, name=f"llmkg-notify-{name}", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, timeout_seconds: float = 2.0) -> None:
        """End; what waits to be told is tried once more, for at most this long."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def tell(self, firing: Sequence[Notice]) -> None:
        """Take all alerts that fire now; those that are gone since the last time are resolved."""
        with self._changed:
            self._left_out = self._grouping.update(firing, self._pace(), self._clock())
            self._changed.notify()
        if self._left_out:
            self._told(self._name, "queue_full")

    def problems(self) -> list[str]:
        """Return why alerts are not told at present."""
        with self._changed:
            errors, left_out = sorted(self._grouping.errors), self._left_out
        failures = [f"alerts are not delivered to {self._name}: {', '.join(errors)}"] if errors else []
        return failures + ([f"{left_out} alerts find no room in {self._name}"] if left_out else [])

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._wait()
                with self._quietly():
                    self.send_due()
            except Exception as error:  # noqa: BLE001 - the channel lives; the text may quote a secret
                _logger.error("The notifications of %s go on after %s", self._name, type(error).__name__)  # noqa: TRY400

    def _wait(self) -> None:
        with self._changed:
            due, now = self._grouping.next_due(), self._pace()
            if not self._stopping and (due is None or due > now):
                self._changed.wait(None if due is None else min(due - now, _LONGEST_WAIT))

    def send_due(self) -> None:
        """Send the groups that are due, on the caller's thread; after `stop`, once all that waits."""
        tried: set[Labels] = set()
        while True:
            with self._changed:
                stopping, now = self._stopping, self._pace()
                key = self._grouping.next_group(now, waiting=stopping, but=tried)
                notices = None if key is None else self._grouping.take(key, now)
            if key is None:
                return
            if stopping:
                tried.add(key)
            if notices:
                self._deliver(key, notices)

    def _deliver(self, key: Labels, notices: tuple[Notice, ...]) -> None:
        now = self._clock()
        try:
            self._target.send(Message(self._name, key, tuple(_until(now, each) for each in notices)), now)
        except DeliveryError as error:
            self._failed(key, error)
        except Exception as error:  # noqa: BLE001 - counted by its type; its text may quote a secret
            self._failed(key, DeliveryError(type(error).__name__, retryable=False))
        else:
            with self._changed:
                self._grouping.delivered(key, notices, self._pace())
            self._told(self._name, None)

    def _failed(self, key: Labels, error: DeliveryError) -> None:
        with self._changed:
            tries, now = self._grouping.tries(key), self._pace()
            if error.retryable and tries < self._retry.max_retries and not self._stopping:
                delay = max(
                    backoff_seconds(self._retry, tries + 1, random.random), retry_after_seconds(error)
                )
                self._grouping.try_again(key, now + min(delay, _LONGEST_WAIT))
                return
            known = error.kind in self._grouping.errors
            self._grouping.given_up(key, error.kind, now, refused=not error.retryable)
        if not known:
            _logger.warning("Alerts are not delivered to %s: %s", self._name, error.kind)
        self._told(self._name, error.kind)


def _until(now: float, notice: Notice) -> Notice:
    """Return it with no time that lies ahead, which Alertmanager refuses: a clock may be set back."""
    ends = None if notice.ends_at is None else min(notice.ends_at, now)
    return replace(notice, starts_at=min(notice.starts_at, now), ends_at=ends)
