"""Health, probes and life cycle: what the components say, what the orchestrator hears, and how it ends."""

from __future__ import annotations

from llmkg_otel.dashboards.model import Board, Panel, Query, Row
from llmkg_otel.dashboards.promql import quantile, rate, select, state_panel, total
from llmkg_otel.telemetry import semconv

__all__ = ["HEALTH"]

CHECKS = semconv.HEALTH_CHECK_DURATION

COMPONENTS = Row(
    "Components",
    (
        state_panel(
            "Status",
            "What each component's last checks make of it. A failing one keeps /readyz from answering 200 if "
            "it is critical; it never restarts the process.",
            semconv.HEALTH_STATUS,
            "component, instance",
            "{{component}} {{instance}}",
            width=12,
        ),
        state_panel(
            "Trend",
            "Where a component is going, by its last 20 checks: degrading and flapping come before failing.",
            semconv.HEALTH_TREND,
            "component, instance",
            "{{component}} {{instance}}",
            width=12,
        ),
        Panel(
            "Check durations, p95",
            "Seconds within which 95 % of the checks ended.",
            (Query(quantile(0.95, CHECKS, "component"), "{{component}}"),),
            unit="s",
        ),
        Panel(
            "Checks that failed",
            "Failed checks a second, by component and error.",
            (
                Query(
                    rate(CHECKS, "component, error_type", "_count", error_type='!=""'),
                    "{{component}} {{error_type}}",
                    quiet="no check fails",
                ),
            ),
            unit="cps",
        ),
        Panel(
            "Age of the last check",
            "Seconds since a component's last check ended; far beyond its interval, checks hang.",
            (
                Query(
                    f"max by (component) ({select(semconv.HEALTH_CHECK_AGE)})",
                    "{{component}}",
                ),
            ),
            unit="s",
        ),
    ),
)

PROBES = Row(
    "Probes and life cycle",
    (
        state_panel(
            "Probes",
            "What /livez, /readyz and /startupz would answer.",
            semconv.PROBE_STATUS,
            "probe, instance",
            "{{probe}} {{instance}}",
            width=12,
        ),
        state_panel(
            "Life cycle",
            "Where each instance is in its life. Lame duck: not ready any more, but still answering.",
            semconv.LIFECYCLE_STATUS,
            "instance",
            "{{instance}}",
            width=12,
        ),
    ),
)

SHUTDOWN = Row(
    "Shutdowns",
    (
        Panel(
            "Phases",
            "Seconds that each phase took in the shutdowns so far, on average. A scrape sees only the phases "
            "before the last one; what is pushed sees all.",
            (
                Query(
                    f"sum by (phase) ({select(semconv.SHUTDOWN_PHASE_DURATION, '_sum')})"
                    f" / sum by (phase) ({select(semconv.SHUTDOWN_PHASE_DURATION, '_count')})",
                    "{{phase}}",
                    quiet="no instance is being shut down",
                ),
            ),
            unit="s",
            width=12,
            stacked=True,
        ),
        Panel(
            "Calls that met a shutdown",
            "Calls that were in flight or came then, by what became of them: cancelled ones lost their work. "
            "Counted at the very end, so only what is pushed has them.",
            (
                Query(
                    total(semconv.SHUTDOWN_OPERATIONS, "outcome"),
                    "{{outcome}}",
                    quiet="no instance is being shut down",
                ),
            ),
            width=12,
        ),
    ),
)

HEALTH = Board(
    uid="llmkg-health",
    title="llmkg / Health and life cycle",
    description="Health of the components, probes, life cycle and shutdowns.",
    rows=(COMPONENTS, PROBES, SHUTDOWN),
    by_operation=False,
)
