"""Alerts as they are shown: in the status, and as Prometheus' /api/v1/alerts gives them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from llmkg_otel.alerting.formats import go_exponent
from llmkg_otel.alerting.notify.message import instant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.alert_state import ActiveAlert
    from llmkg_otel.alerting.history import HistoryEntry

__all__ = ["as_prometheus", "described", "described_history", "expression_url"]


def described(alert: ActiveAlert) -> dict[str, Any]:
    """Return an alert, JSON-ready; one that waits for its samples after a restart has `held_until`."""
    shown = {
        "alert": alert.alert,
        "state": alert.state,
        "value": _number(alert.value),
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "active_since": alert.active_since,
        "fired_at": alert.fired_at,
    }
    return shown if alert.held_until is None else shown | {"held_until": alert.held_until}


def described_history(entries: Iterable[HistoryEntry]) -> list[dict[str, Any]]:
    """Return changes, the newest first, JSON-ready."""
    return [
        {
            "at": entry.at,
            "alert": entry.alert,
            "state": entry.state,
            "value": _number(entry.value),
            "labels": dict(entry.labels),
        }
        for entry in reversed(tuple(entries))
    ]


def as_prometheus(active: Iterable[ActiveAlert], history: Iterable[HistoryEntry]) -> dict[str, Any]:
    """Return what Prometheus answers at /api/v1/alerts, with our history beside its alerts.

    Source: Prometheus 3.5 `web/api/v1/api.go`, the type Alert.
    """
    alerts = []
    for alert in active:
        shown = {
            "labels": dict(alert.labels),
            "annotations": dict(alert.annotations),
            "state": alert.state,
            "activeAt": instant(alert.active_since),
            "value": _exponent(alert.value),
        }
        if alert.keep_firing_since is not None:
            shown["keepFiringSince"] = instant(alert.keep_firing_since)
        alerts.append(shown)
    changes = [
        {
            "labels": dict(entry.labels),
            "state": entry.state,
            "at": instant(entry.at),
            "value": _exponent(entry.value),
        }
        for entry in reversed(tuple(history))
    ]
    return {"status": "success", "data": {"alerts": alerts, "history": changes}}


def expression_url(base: str, expression: str) -> str:
    """Return where a Prometheus shows an expression: its generatorURL of an alert."""
    return f"{base.rstrip('/')}/graph?g0.expr={quote_plus(expression)}&g0.tab=1"


def _number(value: float) -> float | str:
    """JSON has no word for these three."""
    return value if math.isfinite(value) else _exponent(value)


def _exponent(value: float) -> str:
    """Return a number as Go's format 'e' with the fewest digits: 9.5e-01, NaN, +Inf."""
    return go_exponent(value).replace("E", "e")
