"""One alert rule's alerts, and how an evaluation's result moves them: pure, no clock, no store.

Source: Prometheus 3.5 `rules/alerting.go`, AlertingRule.Eval; what it has no word for is an alert that is
held after a restart, see `restoration`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmkg_otel.alerting.promql import EvaluationError, Labels, Sample
from llmkg_otel.alerting.promql.values import labels_of, without

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.alerting.rules import AlertRule

__all__ = [
    "TIMES",
    "ActiveAlert",
    "Alerts",
    "Change",
    "Transition",
    "alert_labels",
    "moved",
    "next_alerts",
    "without_alerts",
]


@dataclass(frozen=True, slots=True)
class ActiveAlert:
    """One alert that is pending or firing.

    `active_since`, `fired_at` (None while pending), `seen_at` (the last evaluation at which it was active)
    and `keep_firing_since` (None unless only keep_firing_for holds it up) are seconds since the epoch;
    `value` is the newest. `held_until` is None but for an alert from before a restart that has not been
    seen since.
    """

    alert: str
    labels: Labels
    annotations: Labels
    state: Literal["pending", "firing"]
    active_since: float
    fired_at: float | None
    value: float
    seen_at: float
    keep_firing_since: float | None = None
    held_until: float | None = None


TIMES = ("active_since", "fired_at", "seen_at", "keep_firing_since", "held_until")
"""The attributes of an alert that are times."""

Alerts = dict[Labels, ActiveAlert]
"""A rule's alerts by their labels; replaced whole, never changed."""


class Change(NamedTuple):
    """What became of an alert; "inactive" is one that ended before it fired."""

    state: Literal["pending", "firing", "resolved", "inactive"]
    alert: ActiveAlert


@dataclass(frozen=True, slots=True)
class Transition:
    """The alerts after an evaluation, and what changed in it."""

    alerts: Alerts
    changes: tuple[Change, ...]


def moved(alert: ActiveAlert, seconds: float) -> ActiveAlert:
    """Return the alert with all of its times so many seconds later: by a clock that was set."""
    times = {name: getattr(alert, name) for name in TIMES}
    return replace(alert, **{name: at + seconds for name, at in times.items() if at is not None})


def next_alerts(rule: AlertRule, before: Alerts, samples: list[Sample], now: float) -> Transition:
    """Return a rule's alerts after it yielded `samples` at `now` (seconds).

    Raises EvaluationError when two samples become one alert.
    """
    found = _found(rule, samples, now)
    after: Alerts = {}
    ended = []
    for labels, alert in before.items():
        seen = found.pop(labels, None)
        if seen is not None:
            after[labels] = replace(
                seen, state=alert.state, active_since=alert.active_since, fired_at=alert.fired_at
            )
        elif alert.held_until is not None and now < alert.held_until:
            after[labels] = alert
        elif _kept_firing(rule, alert, now):
            since = now if alert.keep_firing_since is None else alert.keep_firing_since
            after[labels] = replace(alert, seen_at=now, keep_firing_since=since, held_until=None)
        else:
            ended.append(alert)
    after.update(found)
    changes = []
    for labels, alert in after.items():
        if alert.state == "pending" and _milliseconds(now - alert.active_since) >= _milliseconds(
            rule.for_seconds
        ):
            after[labels] = replace(alert, state="firing", fired_at=now)
            changes.append(Change("firing", after[labels]))
        elif labels in found:
            changes.append(Change("pending", alert))
    return Transition(after, (*changes, *without_alerts(ended).changes))


def without_alerts(ended: list[ActiveAlert]) -> Transition:
    """Return the end of these alerts."""
    changes = (Change("resolved" if each.state == "firing" else "inactive", each) for each in ended)
    return Transition({}, tuple(changes))


def alert_labels(rule: AlertRule, labels: Labels, value: float) -> Labels:
    """Return the labels of the alert that a sample of the rule's expression is."""
    named = dict(without(labels, frozenset({"__name__"})))
    named |= {name: template.expand(labels, value) for name, template in rule.labels}
    return labels_of(named | {"alertname": rule.name})


def _found(rule: AlertRule, samples: list[Sample], now: float) -> Alerts:
    found: Alerts = {}
    for labels, value in samples:
        key = alert_labels(rule, labels, value)
        if key in found:
            raise EvaluationError(
                "vector contains metrics with the same labelset after applying alert labels"
            )
        annotations = tuple(sorted((name, text.expand(labels, value)) for name, text in rule.annotations))
        found[key] = ActiveAlert(rule.name, key, annotations, "pending", now, None, value, now)
    return found


def _kept_firing(rule: AlertRule, alert: ActiveAlert, now: float) -> bool:
    if alert.state != "firing" or rule.keep_firing_seconds == 0:
        return False
    since = now if alert.keep_firing_since is None else alert.keep_firing_since
    return _milliseconds(now - since) < _milliseconds(rule.keep_firing_seconds)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def alert_series(rule: AlertRule, alerts: Alerts) -> list[tuple[str, Mapping[str, str], float]]:
    """Return the ALERTS and ALERTS_FOR_STATE series that Prometheus, too, writes for a rule's alerts."""
    written = {name: template.text for name, template in rule.labels}
    series: list[tuple[str, Mapping[str, str], float]] = []
    for labels, alert in alerts.items():
        named = written | dict(labels)
        series.append(("ALERTS", named | {"alertstate": alert.state}, 1.0))
        series.append(("ALERTS_FOR_STATE", named, float(int(alert.active_since))))
    return series
