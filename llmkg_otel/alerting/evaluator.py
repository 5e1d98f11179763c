"""Rules evaluated in process, at the instants and with the states that Prometheus would give them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Literal

from llmkg_otel.alerting.alert_state import (
    ActiveAlert,
    Alerts,
    Change,
    alert_series,
    moved,
    next_alerts,
    without_alerts,
)
from llmkg_otel.alerting.history import AlertHistory
from llmkg_otel.alerting.promql import EvaluationError, SharedResults
from llmkg_otel.alerting.promql.values import METRIC_NAME, labels_of
from llmkg_otel.alerting.restoration import belongs_to, held, is_same, released, returned
from llmkg_otel.alerting.rule_relations import fill_times
from llmkg_otel.alerting.rules import AlertRule, RecordingRule
from llmkg_otel.events import AlertChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llmkg_otel.alerting.promql import Traits
    from llmkg_otel.alerting.promql.values import Vector
    from llmkg_otel.alerting.rules import RuleGroup
    from llmkg_otel.alerting.samples import SampleStore
    from llmkg_otel.events import Observer

__all__ = ["ActiveAlert", "AlertEvaluator", "AlertState", "RuleFailure"]

AlertState = Literal["inactive", "pending", "firing", "unknown"]
_RANK: tuple[AlertState, ...] = ("inactive", "pending", "unknown", "firing")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuleFailure:
    """A rule whose last evaluation raised; the others went on without it."""

    group: str
    rule: str
    file: str
    line: int
    error: Exception


@dataclass(slots=True)
class _Rule:
    """A rule's state: its alerts and its failure are replaced whole, so a reader needs no lock.

    `pending` are alerts from before a restart that have not been active since.
    """

    group: RuleGroup
    rule: AlertRule | RecordingRule
    source: str
    alerts: Alerts = field(default_factory=dict)
    pending: Alerts = field(default_factory=dict)
    failure: RuleFailure | None = None


class AlertEvaluator:
    """Evaluates rule groups on a store's samples and reports alerts that fire or are resolved.

    `evaluate` belongs to one thread at a time (a second waits); `active`, `states`, `errors` and `history`
    may be read on any, and never wait for an evaluation. `clock` gives seconds since the epoch;
    `interval_seconds` is the step of subqueries that have none, as Prometheus' global evaluation_interval.
    Emits AlertChanged when an alert begins to fire and when a firing one is resolved.
    """

    def __init__(
        self,
        groups: Sequence[RuleGroup],
        store: SampleStore,
        observer: Observer,
        clock: Callable[[], float] = time.time,
        *,
        interval_seconds: float = 60.0,
    ) -> None:
        self._store = store
        self._observer = observer
        self._clock = clock
        self._interval = interval_seconds
        self._evaluating = Lock()
        self._restored: tuple[float, Callable[[RuleGroup, Traits], float]] | None = None
        self.history = AlertHistory()
        self._groups = [(group, [_Rule(group, rule, "") for rule in group.rules]) for group in groups]
        recorded = {rule.name for group in groups for rule in group.rules if isinstance(rule, RecordingRule)}
        self._written = frozenset(recorded | {"ALERTS", "ALERTS_FOR_STATE"})
        self._due: list[float | None] = [None] * len(self._groups)
        for number, (_, rules) in enumerate(self._groups):
            for position, state in enumerate(rules):
                state.source = f"rule {number}.{position}"

    def evaluate(self, now: float | None = None) -> None:
        """Evaluate every group that is due at `now` (seconds; None: the clock's), its rules in order.

        A recording rule's samples are in the store for the rules after it. A rule that raises is kept in
        `errors` until it works again; its alerts stay as they were.
        """
        at = self._clock() if now is None else now
        with self._evaluating:
            shared: dict[float, SharedResults] = {}  # one for each instant that is looked at
            for number, (group, rules) in enumerate(self._groups):
                if self._is_due(number, group, at):
                    seen = at - group.query_offset_seconds
                    results = shared.setdefault(seen, SharedResults(self._written))
                    for state in rules:
                        self._evaluate_rule(state, at, seen, results)

    def restore(self, saved: Sequence[tuple[str, ActiveAlert, str | None]], now: float) -> None:
        """Take over alerts from before a restart, each with its group's name; before any evaluation.

        The third is the expression that raised it (None: not known): where it is another by now, nothing
        is held. An alert that no rule of that group can have raised is left out.
        """
        fill = fill_times([group for group, _ in self._groups], self._store.retention_seconds, self._interval)
        self._restored = now, fill
        waiting: dict[tuple[str, str], list[tuple[ActiveAlert, str | None]]] = {}
        for group, alert, expression in saved:
            waiting.setdefault((group, alert.alert), []).append((alert, expression))
        for state in self._states():
            if isinstance(rule := state.rule, AlertRule):
                key = state.group.name, rule.name
                candidates = waiting.pop(key, [])
                own = [each for each in candidates if belongs_to(rule, each[0])]
                waiting[key] = [each for each in candidates if not belongs_to(rule, each[0])]
                until = now + fill(state.group, rule.expression.traits)
                holds = [(alert, until if is_same(rule, text) else now) for alert, text in own]
                state.alerts, state.pending = held(rule, holds, now)

    def move(self, seconds: float) -> None:
        """Take the clock for set by so many seconds: what was a minute ago, sample or alert, still is."""
        with self._evaluating:
            self._store.move(seconds)
            if self._restored is not None:
                self._restored = self._restored[0] + seconds, self._restored[1]
            self._due = [None if due is None else due + seconds for due in self._due]
            for state in self._states():
                state.alerts = {labels: moved(alert, seconds) for labels, alert in state.alerts.items()}
                state.pending = {labels: moved(alert, seconds) for labels, alert in state.pending.items()}

    def to_save(self) -> tuple[tuple[str, ActiveAlert, str], ...]:
        """Return what `restore` takes."""
        return tuple(
            (state.group.name, alert, state.rule.expression.text)
            for state in self._states()
            for alert in (*state.alerts.values(), *state.pending.values())
        )

    def active(self) -> tuple[ActiveAlert, ...]:
        """Return the alerts that are pending or firing now."""
        return tuple(alert for _, alert in self.active_by_rule())

    def active_by_rule(self) -> tuple[tuple[AlertRule, ActiveAlert], ...]:
        """Return the alerts that are pending or firing now, each with its rule."""
        return tuple(
            (state.rule, alert)
            for state in self._states()
            if isinstance(state.rule, AlertRule)
            for alert in state.alerts.values()
        )

    def states(self) -> Mapping[tuple[str, str], AlertState]:
        """Return the state of each alert rule by its name and severity.

        Of several rules or alerts with one name and severity the most urgent counts: firing, unknown (its
        last evaluation failed), pending, inactive. The severity is the rule's own label.
        """
        result: dict[tuple[str, str], AlertState] = {}
        for state in self._states():
            if isinstance(state.rule, AlertRule):
                key = state.rule.name, state.rule.severity
                result[key] = max(result.get(key, "inactive"), _state_of(state), key=_RANK.index)
        return result

    def errors(self) -> tuple[RuleFailure, ...]:
        """Return the rules whose last evaluation failed."""
        failures = (state.failure for state in self._states())
        return tuple(failure for failure in failures if failure is not None)

    def _states(self) -> list[_Rule]:
        return [state for _, rules in self._groups for state in rules]

    def _is_due(self, number: int, group: RuleGroup, now: float) -> bool:
        interval = group.interval_seconds
        if interval is None:
            return True
        due = self._due[number]
        if due is not None and now < due - min(1.0, interval / 10):  # a timer may be a little early
            return False
        following = now if due is None or now >= due + interval else due
        self._due[number] = following + interval
        return True

    def _evaluate_rule(self, state: _Rule, now: float, seen: float, shared: SharedResults) -> None:
        """Evaluate one rule at `now` on what was there at `seen`: earlier, if its group has an offset."""
        rule = state.rule
        try:
            vector = rule.expression.evaluate(self._store, seen, step_seconds=self._interval, shared=shared)
            if isinstance(rule, AlertRule):
                self._evaluate_alert(state, rule, now, seen, vector)
            else:
                self._record(state, rule, seen, vector)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the other rules
            if state.failure is None:
                _logger.warning("Alert rule %s cannot be evaluated: %s", rule.name, error)
            state.failure = RuleFailure(state.group.name, rule.name, state.group.file, rule.line, error)
        else:
            state.failure = None

    def _evaluate_alert(self, state: _Rule, rule: AlertRule, now: float, seen: float, vector: Vector) -> None:
        before = self._released(state, rule, now, seen)
        transition = next_alerts(rule, before, vector, now)
        limit, number = state.group.limit, len(transition.alerts)
        if number > limit > 0:
            transition = without_alerts(list(state.alerts.values()))
        state.alerts = transition.alerts
        if state.pending:
            state.alerts = returned(rule, state.alerts, state.pending, now)
            state.pending = {
                labels: alert
                for labels, alert in state.pending.items()
                if labels not in state.alerts and now < (alert.held_until or now)
            }
        self.history.add(transition.changes, now)
        for change in transition.changes:
            if change.state in ("firing", "resolved"):
                self._observer.on_event(_changed(change))
        if number > limit > 0:
            raise EvaluationError(f"exceeded limit of {limit} with {number} alerts")
        self._store.append(seen, alert_series(rule, state.alerts), source=state.source)

    def _released(self, state: _Rule, rule: AlertRule, now: float, seen: float) -> Alerts:
        """Return the rule's alerts; those that are held and cannot be true any more are held no longer."""
        if self._restored is None or not any(alert.held_until is not None for alert in state.alerts.values()):
            return state.alerts
        restored_at, fill = self._restored

        def is_filled(traits: Traits) -> bool:
            return now - restored_at >= fill(state.group, traits)

        possible = rule.expression.possible(self._store, seen, is_filled, step_seconds=self._interval)
        return state.alerts if possible is None else released(rule, state.alerts, possible)

    def _record(self, state: _Rule, rule: RecordingRule, seen: float, vector: Vector) -> None:
        recorded = {}
        for labels, value in vector:
            named = dict(labels) | dict(rule.labels)
            named.pop(METRIC_NAME, None)
            recorded[labels_of(named)] = value
        if len(recorded) < len(vector):
            raise EvaluationError("vector contains metrics with the same labelset after applying rule labels")
        if len(vector) > state.group.limit > 0:
            raise EvaluationError(f"exceeded limit of {state.group.limit} with {len(vector)} series")
        samples = ((rule.name, dict(labels), value) for labels, value in recorded.items())
        self._store.append(seen, samples, source=state.source)


def _state_of(state: _Rule) -> AlertState:
    if state.failure is not None:
        return "unknown"
    if any(alert.state == "firing" for alert in state.alerts.values()):
        return "firing"
    return "pending" if state.alerts else "inactive"


def _changed(change: Change) -> AlertChanged:
    alert = change.alert
    return AlertChanged(
        alert=alert.alert,
        severity=dict(alert.labels).get("severity", "none"),
        firing=change.state == "firing",
        labels=alert.labels,
        summary=dict(alert.annotations).get("summary", ""),
        value=alert.value,
    )
