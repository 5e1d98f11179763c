"""The alert rules of one system: loaded from its configuration, evaluated beside its calls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.evaluator import AlertEvaluator, AlertState
from llmkg_otel.alerting.loop import AlertLoop, Collect
from llmkg_otel.alerting.rules import load_default_rules, load_rules
from llmkg_otel.alerting.samples import SampleStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.events import Observer

__all__ = ["AlertWatch"]

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
    ) -> None:
        monitoring = config.monitoring
        retention = monitoring.metric_retention_seconds
        files = [load_rules(path, retention_seconds=retention) for path in config.alerting.rule_files]
        if config.alerting.default_rules:
            files.insert(0, load_default_rules(retention_seconds=retention))
        for warning in (warning for file in files for warning in file.warnings):
            _log.warning("%s", warning)
        groups = [group for file in files for group in file.groups] if monitoring.enable_alerting else []
        store = SampleStore(retention, monitoring.max_metric_points)
        interval = monitoring.alert_check_interval_seconds
        self._evaluator = AlertEvaluator(groups, store, observer, interval_seconds=interval)
        self._loop = AlertLoop(self._evaluator, store, collect, interval, on_evaluated=on_evaluated)
        self._enabled = bool(groups)

    def start(self) -> None:
        """Begin to evaluate, on a thread of its own."""
        if self._enabled:
            self._loop.start()

    def stop(self) -> None:
        """End evaluation."""
        self._loop.stop()

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
