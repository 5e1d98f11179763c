"""One place that alerts go to: its groups, its thread, its retries. Evaluation never waits for it."""

from __future__ import annotations

import logging
import random
import time
from contextlib import AbstractContextManager, nullcontext
from threading import Condition, Thread
from typing import TYPE_CHECKING

from llmkg_otel.alerting.notify.grouping import Grouping
from llmkg_otel.alerting.notify.message import DeliveryError, Message, Notice
from llmkg_otel.config import RetryConfig
from llmkg_otel.recovery.backoff import backoff_seconds, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmkg_otel.alerting.notify.message import Target
    from llmkg_otel.config import NotifyConfig

__all__ = ["Channel"]

_logger = logging.getLogger(__name__)
_LONGEST_WAIT = 60.0
"""Seconds; the clock may be set meanwhile, and no server may silence us for longer."""


class Channel:
    """Tells one target of alerts, on a daemon thread between `start` and `stop` (once each).

    `tell` is quick and may be called on any thread. A message that fails is tried again after 0.5 s, 1 s,
    ... (30 s at most), `max_retries` times or until a failure that stays; then at the next group interval,
    with what is true by then. `told` hears of each end: the channel, and the error.type or None. Requests are
    made within `quietly()`.
    """

    def __init__(
        self,
        name: str,
        config: NotifyConfig,
        target: Target,
        told: Callable[[str, str | None], None],
        *,
        clock: Callable[[], float] = time.time,
        quietly: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._name = name
        self._retry = RetryConfig(max_retries=config.max_retries, base_delay_ms=500, max_delay_ms=30_000)
        self._target = target
        self._told = told
        self._clock = clock
        self._quietly = quietly
        self._grouping = Grouping(config)
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
            left_out = self._grouping.update(firing, self._clock())
            self._changed.notify()
        if left_out:
            self._told(self._name, "queue_full")

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
            due, now = self._grouping.next_due(), self._clock()
            if not self._stopping and (due is None or due > now):
                self._changed.wait(None if due is None else min(due - now, _LONGEST_WAIT))

    def send_due(self) -> None:
        """Send the groups that are due, on the caller's thread; after `stop`, all that waits."""
        with self._changed:
            groups = self._grouping.take(self._clock(), waiting=self._stopping)
        for key, notices in groups:
            error_type = self._deliver(Message(self._name, key, notices))
            if error_type is None:
                with self._changed:
                    self._grouping.delivered(key, notices, self._clock())
            else:
                _logger.warning("Alerts were not delivered to %s: %s", self._name, error_type)
            self._told(self._name, error_type)

    def _deliver(self, message: Message) -> str | None:
        """Return None when it arrived, else the error.type of the last try."""
        attempt = 0
        while True:
            try:
                self._target.send(message, self._clock())
            except DeliveryError as error:
                attempt += 1
                if not error.retryable or attempt > self._retry.max_retries or self._stopping:
                    return error.kind
                delay = max(backoff_seconds(self._retry, attempt, random.random), retry_after_seconds(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, min(delay, _LONGEST_WAIT))
            except Exception as error:  # noqa: BLE001 - counted by its type; its text may quote a secret
                return type(error).__name__
            else:
                return None
