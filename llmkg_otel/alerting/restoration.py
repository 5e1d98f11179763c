"""Alerts from before a restart: which go on firing, and which find how long they have been pending.

Source: Prometheus 3.5 `rules/group.go`, RestoreForState, with its defaults of the outage tolerance and the
grace period. Its samples survive a restart, ours do not. So a firing alert is held until its rule has all
the samples that it looks back on, or enough to rule it out; and a pending one finds its past when it is
first active again, where Prometheus looks at the second evaluation only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmkg_otel.alerting.alert_state import alert_labels, moved
from llmkg_otel.alerting.promql.values import labels_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.alert_state import ActiveAlert, Alerts
    from llmkg_otel.alerting.promql.values import Vector
    from llmkg_otel.alerting.rules import AlertRule

__all__ = [
    "FOR_GRACE_SECONDS",
    "OUTAGE_TOLERANCE_SECONDS",
    "belongs_to",
    "held",
    "is_same",
    "pending_since",
    "released",
    "returned",
]

OUTAGE_TOLERANCE_SECONDS = 3600.0
"""An alert that was last seen longer ago is forgotten."""
FOR_GRACE_SECONDS = 600.0
"""A restored pending alert fires no sooner than this after it is back; a shorter `for` is never restored."""


def belongs_to(rule: AlertRule, alert: ActiveAlert) -> bool:
    """Say whether an alert of this rule's name can be its own: the labels that never change are the same."""
    labels = dict(alert.labels)
    return all(labels.get(name, "") == template.text for name, template in rule.labels if template.static)


def is_same(rule: AlertRule, expression: str | None) -> bool:
    """Say whether this was the rule's expression, but for blanks; None: it was not saved."""
    return expression is None or expression.split() == rule.expression.text.split()


def held(rule: AlertRule, saved: Iterable[tuple[ActiveAlert, float]], now: float) -> tuple[Alerts, Alerts]:
    """Return the firing alerts, each held until its time, and the pending ones that may find their past."""
    firing: Alerts = {}
    pending: Alerts = {}
    for alert, until in saved:
        if now - alert.seen_at > OUTAGE_TOLERANCE_SECONDS:
            continue
        if alert.seen_at > now:
            alert = moved(alert, now - alert.seen_at)  # noqa: PLW2901 - saved before the clock was set back
        kept = replace(alert, labels=labels_of(alert.labels), held_until=until)
        if alert.state == "firing":
            firing[kept.labels] = kept
        elif rule.for_seconds >= FOR_GRACE_SECONDS:
            pending[kept.labels] = kept
    return firing, pending


def released(rule: AlertRule, alerts: Alerts, possible: Vector) -> Alerts:
    """Return the alerts; those that none of the `possible` samples can be are held no longer."""
    found = {alert_labels(rule, labels, value) for labels, value in possible}
    return {
        labels: alert if labels in found else replace(alert, held_until=None)
        for labels, alert in alerts.items()
    }


def returned(rule: AlertRule, alerts: Alerts, pending: Alerts, now: float) -> Alerts:
    """Return a rule's alerts, the pending ones of them with the past that they had before the restart."""
    found = {
        labels: replace(alert, active_since=pending_since(rule.for_seconds, pending[labels], now))
        for labels, alert in alerts.items()
        if alert.state == "pending" and labels in pending
    }
    return alerts | found


def pending_since(for_seconds: float, saved: ActiveAlert, now: float) -> float:
    """Return since when a pending alert counts as active, if it is active again now."""
    remaining = for_seconds - (saved.seen_at - saved.active_since)
    if remaining <= 0:
        return saved.active_since
    if remaining < FOR_GRACE_SECONDS:
        return now + FOR_GRACE_SECONDS - for_seconds
    return saved.active_since + (now - saved.seen_at)
