"""The alert rules of one system: loaded from its configuration, evaluated beside its calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.configured import configured_rules
from llmkg_otel.alerting.evaluator import AlertEvaluator, AlertState
from llmkg_otel.alerting.loop import AlertLoop, Collect
from llmkg_otel.alerting.notify import make_channels
from llmkg_otel.alerting.notify.message import Notice
from llmkg_otel.alerting.samples import SampleStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.alerting.evaluator import ActiveAlert
    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.events import Observer

__all__ = ["AlertWatch"]

FailingTrace = Callable[[str, float], str | None]
"""(operation, seconds since the epoch) -> the trace id of a call that failed since then."""
LOOK_BACK = 300.0
"""Seconds that most rules look back, so that a call of that age may be why an alert is active."""
_log = logging.getLogger(__name__)


class AlertWatch:
    """Evaluates the built-in rules and those of `alerting.rule_files` on the collected metrics.

    Raises ConfigurationError when built, if a rule file is wrong. With alerting switched off it has no
    rules. `start` and `stop` once each; the rest from any thread. `on_evaluated` is told how many seconds
    each evaluation took.
    """

    def __init__(
        self,
        config: ProductionConfig,
        collect: Collect,
        observer: Observer,
        on_evaluated: Callable[[float], None],
        *,
        on_told: Callable[[str, str | None], None] = lambda _channel, _error: None,
        failing_trace: FailingTrace = lambda _operation, _since: None,
        quietly: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        monitoring = config.monitoring
        files = configured_rules(config)
        for warning in (warning for file in files for warning in file.warnings):
            _log.warning("%s", warning)
        groups = [group for file in files for group in file.groups] if monitoring.enable_alerting else []
        store = SampleStore(monitoring.metric_retention_seconds, monitoring.max_metric_points)
        interval = monitoring.alert_check_interval_seconds
        self._evaluator = AlertEvaluator(groups, store, observer, interval_seconds=interval)
        self._loop = AlertLoop(self._evaluator, store, collect, interval, on_evaluated=self._evaluated)
        self._enabled = bool(groups)
        self._on_evaluated = on_evaluated
        self._failing_trace, self._trace_link = failing_trace, config.alerting.trace_link
        self._channels = make_channels(config.alerting.notify if self._enabled else {}, on_told, quietly)

    def start(self) -> None:
        """Begin to evaluate, on a thread of its own."""
        if self._enabled:
            for channel in self._channels:
                channel.start()
            self._loop.start()

    def stop(self) -> None:
        """End evaluation; what waits to be told is tried once more."""
        self._loop.stop()
        for channel in self._channels:
            channel.stop()

    def _evaluated(self, seconds: float) -> None:
        self._on_evaluated(seconds)
        if self._channels:
            notices = [self._notice(each) for each in self._evaluator.active() if each.state == "firing"]
            for channel in self._channels:
                channel.tell(notices)

    def _notice(self, alert: ActiveAlert) -> Notice:
        """Add the trace of a failed call, if the alert is about an operation and one failed in its time."""
        labels, told = dict(alert.labels), dict(alert.annotations)
        operation = labels.get("llmkg_operation_name") or labels.get("name")
        if operation and (trace_id := self._failing_trace(operation, alert.active_since - LOOK_BACK)):
            told["trace_id"] = trace_id
            if self._trace_link is not None:
                told["trace_url"] = self._trace_link.replace("{trace_id}", trace_id)
        starts = alert.active_since if alert.fired_at is None else alert.fired_at
        return Notice(alert.labels, tuple(sorted(told.items())), starts, None)

    def states(self) -> Mapping[tuple[str, str], AlertState]:
        """Return each rule's state by (alert, severity)."""
        return self._evaluator.states()

    def errors(self) -> list[str]:
        """Return why rules, or the collection they need, cannot be evaluated at present."""
        failures = [f"{each.rule}: {each.error}" for each in self._evaluator.errors()]
        if (problem := self._loop.collect_error) is not None:
            failures.append(f"metrics cannot be collected: {problem}")
        return failures

    def describe(self) -> dict[str, Any]:
        """Return the rules' number and the alerts that are pending or firing, JSON-ready."""
        active = [
            {
                "alert": each.alert,
                "state": each.state,
                "value": each.value,
                "labels": dict(each.labels),
                "annotations": dict(each.annotations),
                "active_since": each.active_since,
            }
            for each in self._evaluator.active()
        ]
        return {"rules": len(self.states()), "active": active, "errors": self.errors()}
