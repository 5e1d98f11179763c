"""The alert loop: collect, keep, evaluate, at an interval and beside the requests.

A daemon thread and an Event, not a task: collecting runs other people's callbacks and takes their locks,
and evaluating is pure computation, so on the event loop both would stand in every request's way; the
loop's shared executor may be full of hung engine calls exactly when an alert matters. `Event.wait` ends
at once on stop, and a daemon cannot hold up the end of the process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkg_otel.alerting.evaluator import AlertEvaluator
    from llmkg_otel.alerting.samples import SampleStore

__all__ = ["STALLED_INTERVALS", "AlertLoop", "Collect"]

Collect = Callable[[], Iterable[tuple[str, Mapping[str, str], float]]]
STALLED_INTERVALS = 3
"""Without an evaluation for so long, what was known of alerts is not told again."""
_logger = logging.getLogger(__name__)


class AlertLoop:
    """Every `interval_seconds`: `collect()` into the store, then evaluate.

    Started and stopped once each, from any thread. `clock` stamps the samples (seconds since the epoch);
    the pace is kept by the monotonic clock, without drift, and an interval that was missed is left out.
    A `collect` that raises counts as a collection of nothing, like a failed scrape: every series becomes
    stale. When the clock is set back by more than an interval, samples and alerts are moved with it, with
    one warning: points that would lie ahead would shut out the new ones until then. `on_evaluated` (None:
    nobody) is told how many seconds each evaluation took. `monotonic` gives seconds, for pace and stalls.
    """

    def __init__(
        self,
        evaluator: AlertEvaluator,
        store: SampleStore,
        collect: Collect,
        interval_seconds: float,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_evaluated: Callable[[float], None] | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._store = store
        self._collect = collect
        self._interval = interval_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._progress: float | None = None
        self._on_evaluated = on_evaluated
        self._last: float | None = None
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="llmkg-alerts", daemon=True)
        self.collect_error: Exception | None = None
        """Why the last collection failed; None when it did not."""
        self.error: Exception | None = None
        """What else ended the last evaluation early; None when it came to its end."""

    def start(self) -> None:
        """Begin; the first collection is at once."""
        self._progress = self._monotonic()
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """Ask for the end and wait for it at most this long; say whether it came."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def stalled_seconds(self) -> float | None:
        """How long no evaluation has ended, a failed one included; None up to three intervals."""
        if self._progress is None or self._stopping.is_set():
            return None
        waited = self._monotonic() - self._progress
        return waited if waited > STALLED_INTERVALS * self._interval else None

    def run_once(self, at: float | None = None) -> None:
        """Collect and evaluate on the caller's thread, at this time (None: the clock's)."""
        now = self._clock() if at is None else at
        try:
            samples = list(self._collect())
        except Exception as error:  # noqa: BLE001 - a collection that fails must not end the alerts
            if self.collect_error is None:
                _logger.warning("Metrics cannot be collected for alerts: %s", error)
            self.collect_error, samples = error, []
        else:
            self.collect_error = None
        self._follow_clock(now)
        self._store.append(now, samples)
        started = time.perf_counter()
        self._evaluator.evaluate(now)
        if self._on_evaluated is not None:
            self._on_evaluated(time.perf_counter() - started)

    def _follow_clock(self, now: float) -> None:
        last, self._last = self._last, now
        if last is not None and now < last - self._interval:
            back = last + self._interval - now
            _logger.warning("The clock was set back by about %.0f s: samples and alerts move with it", back)
            self._evaluator.move(-back)

    def _run(self) -> None:
        following = self._monotonic()
        at: float | None = None
        while not self._stopping.is_set():
            try:
                at = self._instant(at)
                self.run_once(at)
                self.error = None
            except Exception as error:
                self.error = error
                _logger.exception("The alert loop goes on after an error")
            now = self._progress = self._monotonic()
            steps = max(1, (now - following) // self._interval + 1)
            following += steps * self._interval
            at = None if at is None else at + steps * self._interval
            self._stopping.wait(following - now)

    def _instant(self, expected: float | None) -> float:
        """Return the time of an evaluation: whole intervals after the last one, unless the clock was set.

        As in Prometheus: if each were a little late or early, half of the alerts with a `for` of n intervals
        would fire one interval later.
        """
        now = self._clock()
        return now if expected is None or abs(now - expected) > self._interval / 10 else expected
