"""Is it well, and for whom is it not: rate, errors and duration by operation, and the objectives."""

from __future__ import annotations

from llmkg_otel.dashboards.model import Board, Panel, Query, Row
from llmkg_otel.dashboards.promql import NOT_REFUSED, REFUSED, failures, quantile, rate, ratio, select, total
from llmkg_otel.telemetry import semconv

__all__ = ["OVERVIEW"]

CALLS = semconv.OPERATION_DURATION
MCP = semconv.MCP_OPERATION_DURATION
DATABASE = semconv.DB_OPERATION_DURATION
OPERATION = "llmkg_operation_name"
BY_MCP = "mcp_method_name, gen_ai_tool_name"
NOT_CLOSED = '=~"open|half_open|forced_open"'
BURN = ((None, "green"), (1.0, "orange"), (14.4, "red"))
"""Burn rates: at 1 the budget lasts exactly its period; at 14.4 an hour takes 2 % of a month's budget
(Google, Site Reliability Workbook, "Alerting on SLOs")."""


def _served() -> str:
    return f"1 - ({ratio(failures('', '$__range'), rate(CALLS, '', '_count', '$__range'))})"


def _in_time() -> str:
    quick = rate(CALLS, "", "_bucket", "$__range", error_type="", le="$latency")
    return f"{quick} / {rate(CALLS, '', '_count', '$__range', error_type='')}"


def _burn(window: str) -> str:
    calls = rate(CALLS, "", "_count", window)
    return f"({ratio(failures('', window), calls)}) / (1 - $objective)"


NOW = Row(
    "Now",
    (
        Panel(
            "Serving",
            "Instances whose life cycle says serving. Fewer than you run: look at Health and life cycle.",
            (Query(f"sum({select(semconv.LIFECYCLE_STATUS, state='serving')})"),),
            kind="stat",
            width=3,
            thresholds=((None, "red"), (1, "green")),
        ),
        Panel(
            "Calls",
            "Protected calls a second, refused and cancelled ones included.",
            (Query(rate(CALLS, "", "_count")),),
            unit="reqps",
            kind="stat",
            width=3,
        ),
        Panel(
            "Failed",
            "Share of calls that the engine or its deadline failed, after retries. A refusal is no failure.",
            (Query(ratio(failures(""), rate(CALLS, "", "_count"))),),
            unit="percentunit",
            kind="stat",
            width=3,
            thresholds=((None, "green"), (0.01, "orange"), (0.05, "red")),
        ),
        Panel(
            "Refused",
            "Share of calls that never reached the engine: limits, open circuits, shedding, shutdown.",
            (
                Query(
                    f"({rate(CALLS, '', '_count', error_type=REFUSED)} or {rate(CALLS, '', '_count')} * 0)"
                    f" / {rate(CALLS, '', '_count')}"
                ),
            ),
            unit="percentunit",
            kind="stat",
            width=3,
            thresholds=((None, "green"), (0.05, "orange"), (0.25, "red")),
        ),
        Panel(
            "p99",
            "Seconds within which 99 % of the successful calls ended.",
            (Query(quantile(0.99, CALLS, "", error_type="")),),
            unit="s",
            kind="stat",
            width=3,
            thresholds=((None, "green"), (1, "orange"), (5, "red")),
        ),
        Panel(
            "In flight",
            "Protected calls that have begun and not ended.",
            (Query(total(semconv.OPERATION_ACTIVE, "")),),
            kind="stat",
            width=3,
        ),
        Panel(
            "Circuits not closed",
            "Breakers that are open, half open or forced open.",
            (Query(f"sum({select(semconv.BREAKER_STATUS, state=NOT_CLOSED)})"),),
            kind="stat",
            width=3,
            thresholds=((None, "green"), (1, "red")),
        ),
        Panel(
            "Alerts firing",
            "Rules that fire now, as this layer evaluates them.",
            (Query(f"sum({select(semconv.ALERT_STATUS, state='firing')})"),),
            kind="stat",
            width=3,
            thresholds=((None, "green"), (1, "red")),
        ),
    ),
)

OBJECTIVES = Row(
    "Objectives",
    (
        Panel(
            "Served",
            "Share of the calls in the time range that did not fail, against the objective chosen above.",
            (Query(_served()),),
            unit="percentunit",
            kind="stat",
            width=4,
            thresholds=((None, "red"), (0.99, "orange"), (0.999, "green")),
        ),
        Panel(
            "In time",
            "Share of the successful calls in the time range within the seconds chosen above.",
            (Query(_in_time()),),
            unit="percentunit",
            kind="stat",
            width=4,
            thresholds=((None, "red"), (0.99, "orange"), (0.999, "green")),
        ),
        Panel(
            "Burn rate of the error budget",
            "How fast failures use the budget that the objective leaves: at 1 it lasts exactly its period, "
            "at 14.4 an hour takes 2 % of a month's. Act when a long and a short window agree.",
            tuple(Query(_burn(window), window) for window in ("5m", "30m", "1h", "6h")),
            width=16,
            thresholds=BURN,
        ),
    ),
)

CALLS_ROW = Row(
    "Calls by operation",
    (
        Panel(
            "Rate",
            "Calls a second, whatever became of them.",
            (Query(rate(CALLS, OPERATION, "_count"), f"{{{{{OPERATION}}}}}"),),
            unit="reqps",
        ),
        Panel(
            "Failures",
            "Share of the calls that the engine or its deadline failed, after retries. "
            "LlmkgHighErrorRate fires above the line.",
            (Query(ratio(failures(OPERATION), rate(CALLS, OPERATION, "_count")), f"{{{{{OPERATION}}}}}"),),
            unit="percentunit",
            thresholds=((None, "transparent"), (0.05, "red")),
        ),
        Panel(
            "Outcomes",
            "Calls a second by error.type; the empty one is success.",
            (Query(rate(CALLS, "error_type", "_count"), "{{error_type}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Failures by kind",
            "Failed calls a second by operation and error.type, refusals not included.",
            (
                Query(
                    rate(CALLS, f"{OPERATION}, error_type", "_count", error_type=NOT_REFUSED),
                    f"{{{{{OPERATION}}}}} {{{{error_type}}}}",
                    quiet="no call fails",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "Refusals by reason",
            "Calls a second that never reached the engine, by operation and reason.",
            (
                Query(
                    rate(CALLS, f"{OPERATION}, error_type", "_count", error_type=REFUSED),
                    f"{{{{{OPERATION}}}}} {{{{error_type}}}}",
                    quiet="no call is refused",
                ),
            ),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "In flight",
            "Calls that have begun and not ended; a plateau is a limit, a slope is a leak or a stall.",
            (Query(total(semconv.OPERATION_ACTIVE, OPERATION), f"{{{{{OPERATION}}}}}"),),
        ),
        *(
            Panel(
                f"Duration, p{share * 100:g}",
                f"Seconds within which {share * 100:g} % of the successful calls ended, queueing and retries "
                "included. A dot is a call: it leads to its trace.",
                (
                    Query(
                        quantile(share, CALLS, OPERATION, error_type=""),
                        f"{{{{{OPERATION}}}}}",
                        exemplars=True,
                    ),
                ),
                unit="s",
            )
            for share in (0.5, 0.95, 0.99)
        ),
        Panel(
            "Durations",
            "How the successful calls are spread: two bands are two kinds of calls, or a cache.",
            (Query(rate(CALLS, "le", "_bucket", error_type=""), "{{le}}", exemplars=True),),
            unit="s",
            kind="heatmap",
            width=12,
        ),
        Panel(
            "Answered by a fallback",
            "Calls a second whose own operation failed and that a rung of a fallback ladder answered.",
            (
                Query(
                    rate(CALLS, f"{OPERATION}, llmkg_fallback_name", "_count", llmkg_fallback_name='!=""'),
                    f"{{{{{OPERATION}}}}} {{{{llmkg_fallback_name}}}}",
                    quiet="no call needs a fallback",
                ),
            ),
            unit="reqps",
            width=6,
        ),
        Panel(
            "Abandoned threads",
            "Threads of sync operations whose calls were given up; each keeps its permits until it ends.",
            (Query(total(semconv.OPERATION_ABANDONED, OPERATION), f"{{{{{OPERATION}}}}}"),),
            width=6,
            thresholds=((None, "transparent"), (1, "red")),
        ),
    ),
)

SERVER = Row(
    "Server and engine",
    (
        Panel(
            "MCP requests",
            "Requests a second that the MCP server took, by method and tool.",
            (Query(rate(MCP, BY_MCP, "_count"), "{{mcp_method_name}} {{gen_ai_tool_name}}"),),
            unit="reqps",
        ),
        Panel(
            "MCP requests, failed",
            "MCP requests a second that ended with an error, by tool and error.type.",
            (
                Query(
                    rate(MCP, "gen_ai_tool_name, error_type", "_count", error_type='!=""'),
                    "{{gen_ai_tool_name}} {{error_type}}",
                    quiet="no request fails",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "MCP requests, p95",
            "Seconds within which 95 % of the MCP requests ended: what the protection itself and the server "
            "add is the difference to the calls' own duration.",
            (
                Query(
                    quantile(0.95, MCP, BY_MCP),
                    "{{mcp_method_name}} {{gen_ai_tool_name}}",
                    exemplars=True,
                ),
            ),
            unit="s",
        ),
        Panel(
            "Engine operations",
            "Operations a second of an instrumented engine or driver.",
            (
                Query(
                    rate(DATABASE, "db_system_name, db_operation_name", "_count"),
                    "{{db_system_name}} {{db_operation_name}}",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "Engine operations, failed",
            "Failed operations a second of an instrumented engine, attempts that a retry made good included.",
            (
                Query(
                    rate(DATABASE, "db_operation_name, error_type", "_count", error_type='!=""'),
                    "{{db_operation_name}} {{error_type}}",
                    quiet="the engine does not fail",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "Engine operations, p95",
            "Seconds within which 95 % of the engine's operations ended, one attempt each.",
            (Query(quantile(0.95, DATABASE, "db_operation_name"), "{{db_operation_name}}", exemplars=True),),
            unit="s",
        ),
    ),
)

OVERVIEW = Board(
    uid="llmkg-overview",
    title="llmkg / Overview",
    description="Rate, errors and duration of every protected operation, and the objectives.",
    rows=(NOW, OBJECTIVES, CALLS_ROW, SERVER),
    with_objective=True,
)
