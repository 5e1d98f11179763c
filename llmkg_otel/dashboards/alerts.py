"""The alerts: which fire, whether they are evaluated, and whether anybody was told."""

from __future__ import annotations

from llmkg_otel.dashboards.model import Board, Panel, Query, Row
from llmkg_otel.dashboards.promql import quantile, rate, select, state_panel
from llmkg_otel.telemetry import semconv

__all__ = ["ALERTS"]

STATUS = semconv.ALERT_STATUS


def _count(state: str) -> str:
    return f"sum({select(STATUS, state=state)})"


NOW = Row(
    "Now",
    (
        Panel(
            "Firing",
            "Alerts whose condition has held for long enough: act on these.",
            (Query(_count("firing")),),
            kind="stat",
            width=4,
            thresholds=((None, "green"), (1, "red")),
        ),
        Panel(
            "Pending",
            "Alerts whose condition holds, but not for long enough yet.",
            (Query(_count("pending")),),
            kind="stat",
            width=4,
            thresholds=((None, "green"), (1, "orange")),
        ),
        Panel(
            "Cannot be evaluated",
            "Rules that raise an error: they can neither fire nor be resolved.",
            (Query(_count("unknown")),),
            kind="stat",
            width=4,
            thresholds=((None, "green"), (1, "red")),
        ),
        Panel(
            "Firing alerts",
            "Each alert that fires, its severity, and where. docs/runbook.md says what to do.",
            (Query(f"{select(STATUS, state='firing')} == 1", quiet="no alert fires"),),
            kind="table",
            width=12,
        ),
    ),
)

HISTORY = Row(
    "History",
    (
        state_panel(
            "State of each rule",
            "When each rule was pending and when it fired.",
            STATUS,
            "alert, severity",
            "{{alert}} ({{severity}})",
            width=24,
        ),
    ),
)

DELIVERY = Row(
    "Evaluation and delivery",
    (
        Panel(
            "Evaluation, p95",
            "Seconds that one evaluation of all rules takes; it must stay far below its interval.",
            (Query(quantile(0.95, semconv.ALERT_EVALUATION_DURATION, "instance"), "{{instance}}"),),
            unit="s",
        ),
        Panel(
            "Evaluations",
            "Evaluations a second; none means that nobody is watching.",
            (Query(rate(semconv.ALERT_EVALUATION_DURATION, "instance", "_count"), "{{instance}}"),),
            unit="ops",
        ),
        Panel(
            "Messages",
            "Messages about alerts in the last 5 minutes, by channel; those with an error did not arrive.",
            (
                Query(
                    f"sum by (channel, error_type) (increase({select(semconv.ALERT_NOTIFICATIONS)}[5m]))",
                    "{{channel}} {{error_type}}",
                    quiet="nothing was to be told",
                ),
            ),
        ),
    ),
)

ALERTS = Board(
    uid="llmkg-alerts",
    title="llmkg / Alerts",
    description="Alerts of this layer's own rules, their evaluation, and the messages about them.",
    rows=(NOW, HISTORY, DELIVERY),
    by_operation=False,
)
