"""The alert rules of one system: loaded from its configuration, evaluated beside its calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.configured import configured_rules
from llmkg_otel.alerting.evaluator import AlertEvaluator, AlertState
from llmkg_otel.alerting.loop import STALLED_INTERVALS, AlertLoop, Collect
from llmkg_otel.alerting.notify import make_channels
from llmkg_otel.alerting.notify.message import Notice
from llmkg_otel.alerting.report import as_prometheus, described, described_history, expression_url
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.alerting.state_file import MAX_ALERTS, SavedAlert, SavedState, StateFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.alerting.evaluator import ActiveAlert
    from llmkg_otel.alerting.rules import AlertRule
    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.events import Observer

__all__ = ["AlertWatch"]

FailingTrace = Callable[[str, float], str | None]
"""(operation, seconds since the epoch) -> the trace id of a call that failed since then."""
LOOK_BACK = 300.0
"""Seconds that most rules look back, so that a call of that age may be why an alert is active."""
SAVE_SECONDS = 2.0
"""How long a stop waits for the alert state to be on the disk."""
_log = logging.getLogger(__name__)


class AlertWatch:
    """Evaluates the built-in rules, those of `alerting.rule_files` and of `slos` on the collected metrics.

    Raises ConfigurationError when built, if a rule file is wrong. With alerting switched off it has no
    rules. `start` and `stop` once each; the rest from any thread. `on_evaluated` is told how many seconds
    each evaluation took. Where `alerting.state_file` is set, alerts and their history outlive the process.
    """

    def __init__(
        self,
        config: ProductionConfig,
        collect: Collect,
        observer: Observer,
        on_evaluated: Callable[[float], None],
        *,
        no_data: str | None = None,
        on_told: Callable[[str, str | None], None] = lambda _channel, _error: None,
        failing_trace: FailingTrace = lambda _operation, _since: None,
        quietly: Callable[[], AbstractContextManager[object]] = nullcontext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._no_data = no_data
        monitoring = config.monitoring
        interval = monitoring.alert_check_interval_seconds
        files = configured_rules(config)
        if not monitoring.enable_alerting:
            files = []
        for warning in (warning for file in files for warning in file.warnings):
            _log.warning("%s", warning)
        groups = [group for file in files for group in file.groups]
        store = SampleStore(monitoring.metric_retention_seconds, monitoring.max_metric_points)
        self._evaluator = AlertEvaluator(groups, store, observer, interval_seconds=interval)
        self._loop = AlertLoop(
            self._evaluator, store, collect, interval, clock=clock, on_evaluated=self._evaluated
        )
        self._clock = clock
        self._enabled = bool(groups)
        file = config.alerting.state_file
        self._state = StateFile(file) if file is not None and self._enabled else None
        self._saved: object = None
        self._external_url = config.alerting.external_url
        self._on_evaluated = on_evaluated
        self._failing_trace, self._trace_link = failing_trace, config.alerting.trace_link
        places = config.alerting.notify if self._enabled else {}
        self._channels = make_channels(places, on_told, quietly, stale_after=STALLED_INTERVALS * interval)

    def start(self) -> None:
        """Begin to evaluate, on a thread of its own, unless `no_data` says why there will never be any."""
        if self._no_data is not None:
            return
        if self._enabled:
            self._recall()
            for channel in self._channels:
                channel.start()
            self._loop.start()

    def stop(self) -> None:
        """End evaluation; what waits to be told, or to be saved, is tried once more."""
        self._loop.stop()
        if self._state is not None:
            self._state.flush(SAVE_SECONDS)
        for channel in self._channels:
            channel.stop()

    def _recall(self) -> None:
        if self._state is not None and (saved := self._state.read()) is not None:
            self._evaluator.history.extend(saved.history)
            self._evaluator.restore(
                [(each.group, each.alert, each.expression) for each in saved.alerts], self._clock()
            )
            if firing := len(self._evaluator.active()):
                _log.info("%d alerts fire since before the restart; each is held until it is known", firing)

    def _evaluated(self, seconds: float) -> None:
        self._on_evaluated(seconds)
        self._save()
        if self._channels:
            firing = [each for each in self._evaluator.active_by_rule() if each[1].state == "firing"]
            notices = [self._notice(rule, alert) for rule, alert in firing]
            for channel in self._channels:
                channel.tell(notices)

    def _save(self) -> None:
        """Save what is active, or what has changed: also an alert's value, and when it was seen."""
        if self._state is None:
            return
        alerts, history = self._evaluator.to_save(), self._evaluator.history.entries
        if (alerts, history) == self._saved:
            return
        self._saved = alerts, history
        most_urgent = sorted(alerts, key=lambda each: each[1].state)[:MAX_ALERTS]  # firing, then pending
        saved = tuple(SavedAlert(group=g, alert=alert, expression=text) for g, alert, text in most_urgent)
        self._state.save(SavedState(saved_at=self._clock(), alerts=saved, history=history))

    def _notice(self, rule: AlertRule, alert: ActiveAlert) -> Notice:
        """Add the trace of a failed call, if the alert is about an operation and one failed in its time."""
        labels, told = dict(alert.labels), dict(alert.annotations)
        operation = labels.get("llmkg_operation_name") or labels.get("name")
        if operation and (trace_id := self._failing_trace(operation, alert.active_since - LOOK_BACK)):
            told["trace_id"] = trace_id
            if self._trace_link is not None:
                told["trace_url"] = self._trace_link.replace("{trace_id}", trace_id)
        starts = alert.active_since if alert.fired_at is None else alert.fired_at
        base = self._external_url
        link = "" if base is None else expression_url(base, rule.expression.text)
        return Notice(alert.labels, tuple(sorted(told.items())), starts, None, link)

    def states(self) -> Mapping[tuple[str, str], AlertState]:
        """Return each rule's state by (alert, severity); without data, all are unknown."""
        if self._no_data is not None:
            return dict.fromkeys(self._evaluator.states(), "unknown")
        return self._evaluator.states()

    def errors(self) -> list[str]:
        """Return why rules, or the collection they need, cannot be evaluated at present."""
        if self._no_data is not None and self._enabled:
            return [f"there is no data: {self._no_data}"]
        failures = [f"{each.rule}: {each.error}" for each in self._evaluator.errors()]
        if (problem := self._loop.collect_error) is not None:
            failures.append(f"metrics cannot be collected: {problem}")
        if (error := self._loop.error) is not None:
            failures.append(f"the last evaluation failed: {error!r}")
        if (stalled := self._loop.stalled_seconds) is not None:
            failures.append(
                f"no evaluation has ended for {stalled:.0f} s: a callback of an instrument may hang"
            )
        if self._state is not None and (unsaved := self._state.problem) is not None:
            failures.append(unsaved)
        return failures + [problem for channel in self._channels for problem in channel.problems()]

    def describe(self) -> dict[str, Any]:
        """Return the number of rules, the alerts that are active, and what became of others, JSON-ready."""
        return {
            "rules": len(self.states()),
            "active": [described(alert) for alert in self._evaluator.active()],
            "errors": self.errors(),
            "history": described_history(self._evaluator.history.entries),
        }

    def as_prometheus(self) -> dict[str, Any]:
        """Return active alerts in the form of Prometheus' /api/v1/alerts, with the history beside them."""
        return as_prometheus(self._evaluator.active(), self._evaluator.history.entries)
