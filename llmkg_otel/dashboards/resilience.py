"""What protects the engine, and what that costs the callers: one row for each policy."""

from __future__ import annotations

from llmkg_otel.dashboards.model import Board, Panel, Query, Row
from llmkg_otel.dashboards.promql import quantile, rate, ratio, select, state_panel, total
from llmkg_otel.telemetry import semconv

__all__ = ["RESILIENCE"]

SHED = '=~"shed|would_shed"'
FULL = ((None, "transparent"), (0.9, "red"))

BREAKERS = Row(
    "Circuit breakers",
    (
        state_panel(
            "State",
            "State of each operation's breaker. Open and half open in turn: the probes fail, the engine is "
            "still ill.",
            semconv.BREAKER_STATUS,
            "instance, name",
            "{{name}} {{instance}}",
            width=16,
        ),
        Panel(
            "Transitions to open",
            "How often circuits opened in the last 5 minutes: more than a few is flapping, so raise the wait "
            "or mend the engine.",
            (
                Query(
                    f"sum by (name) (increase({select(semconv.BREAKER_TRANSITIONS, state='open')}[5m]))",
                    "{{name}}",
                    quiet="no circuit has ever opened",
                ),
            ),
        ),
        Panel(
            "Attempts by outcome",
            "Attempts a second by what the breaker made of them; ignored ones count neither way.",
            (Query(rate(semconv.BREAKER_CALLS, "outcome"), "{{outcome}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Refused by an open circuit",
            "Calls a second that the breaker refused, by operation: the engine never saw them.",
            (Query(rate(semconv.BREAKER_CALLS, "name", outcome="rejected"), "{{name}}"),),
            unit="reqps",
        ),
        state_panel(
            "Store of shared circuits",
            "Whether instances still tell each other of open circuits; on fallback each decides alone.",
            semconv.BREAKER_STORAGE_STATUS,
            "instance",
            "{{instance}}",
            quiet="circuits are not shared",
        ),
    ),
)

REACHED = rate(semconv.RETRY_CALLS, "name")
RETRIES = Row(
    "Retries",
    (
        Panel(
            "Calls by how retrying ended",
            "Calls a second that reached the engine. Recovered ones are what retrying is for; exhausted ones "
            "waited in vain.",
            (Query(rate(semconv.RETRY_CALLS, "outcome"), "{{outcome}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Retries for each call",
            "Second and later attempts for each call that reached the engine: the load that retrying adds.",
            (
                Query(
                    ratio(f"({rate(semconv.RETRY_ATTEMPTS, 'name')} or {REACHED} * 0)", REACHED),
                    "{{name}}",
                ),
            ),
            unit="percentunit",
            thresholds=((None, "transparent"), (0.1, "orange"), (0.5, "red")),
        ),
        Panel(
            "Budget",
            "Retries in progress, and how many may be. Where they meet, calls fail at their first error.",
            (
                Query(total(semconv.RETRY_BUDGET_USAGE, "instance"), "in progress {{instance}}"),
                Query(total(semconv.RETRY_BUDGET_LIMIT, "instance"), "limit {{instance}}"),
            ),
        ),
        Panel(
            "Given up",
            "Calls a second that failed after retries, for want of budget, or of time.",
            (
                Query(
                    rate(
                        semconv.RETRY_CALLS,
                        "name, outcome",
                        outcome='=~"exhausted|budget_exhausted|deadline"',
                    ),
                    "{{name}} {{outcome}}",
                ),
            ),
            unit="reqps",
            width=12,
        ),
        Panel(
            "Waits before a retry, p95",
            "Seconds of back off: the part of a call's duration that is waiting by design.",
            (Query(quantile(0.95, semconv.RETRY_DELAY, "name"), "{{name}}", quiet="nothing is retried"),),
            unit="s",
            width=6,
        ),
        Panel(
            "Attempts, p95",
            "Seconds the engine takes for one attempt: a call's duration without our own waits.",
            (
                Query(
                    quantile(0.95, semconv.ATTEMPT_DURATION, "llmkg_operation_name"),
                    "{{llmkg_operation_name}}",
                    quiet="monitoring.enable_performance_tracking is off",
                ),
            ),
            unit="s",
            width=6,
        ),
    ),
)

RATES = Row(
    "Rate limits",
    (
        Panel(
            "Decisions",
            "Decisions a second. Failed open or closed: the store was away, and the rule let through or not.",
            (Query(rate(semconv.RATE_LIMIT_REQUESTS, "policy, result"), "{{policy}} {{result}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Share refused",
            "Share of the decisions that were refusals, by policy. LlmkgRateLimitStorm fires above the line.",
            (
                Query(
                    ratio(
                        rate(semconv.RATE_LIMIT_REQUESTS, "policy", result='=~"rejected|failed_closed"'),
                        rate(semconv.RATE_LIMIT_REQUESTS, "policy"),
                    ),
                    "{{policy}}",
                ),
            ),
            unit="percentunit",
            thresholds=((None, "transparent"), (0.25, "red")),
        ),
        state_panel(
            "Store",
            "Whether the shared store decides (primary), local buckets do, or nothing counts.",
            semconv.RATE_LIMIT_STORAGE_STATUS,
            "instance",
            "{{instance}}",
            quiet="no shared store is configured",
        ),
    ),
)

PERMITS = Row(
    "Permits",
    (
        Panel(
            "In use, of how many",
            "Permits lent, and those that exist, by pool.",
            (
                Query(total(semconv.PERMIT_USAGE, "pool"), "in use {{pool}}"),
                Query(total(semconv.PERMIT_LIMIT, "pool"), "limit {{pool}}"),
            ),
        ),
        Panel(
            "Waiting",
            "Calls that wait for a permit. LlmkgPermitsExhausted fires when they go on waiting.",
            (Query(total(semconv.PERMIT_PENDING, "pool"), "{{pool}}"),),
            thresholds=((None, "transparent"), (1, "orange")),
        ),
        Panel(
            "Waits, p95",
            "Seconds waited for a permit, of the calls that had to.",
            (
                Query(
                    quantile(0.95, semconv.PERMIT_WAIT_TIME, "pool"), "{{pool}}", quiet="no call has to wait"
                ),
            ),
            unit="s",
        ),
    ),
)

SHEDDING = Row(
    "Load shedding",
    (
        Panel(
            "Limit and calls in flight",
            "Calls at once that the engine takes well, as the adaptive limit has found out, beside those "
            "that are in flight.",
            (
                Query(total(semconv.LOAD_SHEDDING_LIMIT, "instance"), "limit {{instance}}"),
                Query(total(semconv.OPERATION_ACTIVE, "instance"), "in flight {{instance}}"),
            ),
        ),
        Panel(
            "Decisions",
            "Calls a second by decision and reason; would_shed is what shadow mode would have refused.",
            (Query(rate(semconv.LOAD_SHEDDING_REQUESTS, "decision, reason"), "{{decision}} {{reason}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Shed by criticality",
            "Calls a second that were shed or would have been: the critical ones should be the last.",
            (
                Query(
                    rate(semconv.LOAD_SHEDDING_REQUESTS, "criticality", decision=SHED),
                    "{{criticality}}",
                    quiet="nothing is shed",
                ),
            ),
            unit="reqps",
        ),
    ),
)


def _used(name: str) -> str:
    usage, limit = (
        select(instrument, name=name) for instrument in (semconv.RESOURCE_USAGE, semconv.RESOURCE_LIMIT)
    )
    return f"{usage} / {limit}"


RESOURCES = Row(
    "Resources",
    (
        Panel(
            "Memory",
            "Working set, and the limit above which new calls are refused.",
            (
                Query(select(semconv.RESOURCE_USAGE, name="memory"), "used {{instance}}"),
                Query(select(semconv.RESOURCE_LIMIT, name="memory"), "limit {{instance}}"),
            ),
            unit="bytes",
        ),
        Panel(
            "Processor",
            "Share of the processor time that the process or its container may use, and the limit.",
            (
                Query(select(semconv.RESOURCE_USAGE, name="cpu"), "used {{instance}}"),
                Query(select(semconv.RESOURCE_LIMIT, name="cpu"), "limit {{instance}}"),
            ),
            unit="percentunit",
        ),
        Panel(
            "Used of the limit",
            "Use as a share of the limit: at 1 calls are refused. LlmkgMemoryHigh fires above 0.9.",
            tuple(Query(_used(name), f"{name} {{{{instance}}}}") for name in semconv.RESOURCES),
            unit="percentunit",
            thresholds=FULL,
        ),
    ),
)

POOLS = "db_client_connection_pool_name"
CONNECTIONS = Row(
    "Connection pools",
    (
        Panel(
            "Connections",
            "Connections of each pool by state, and how many it may have.",
            (
                Query(
                    total(semconv.CONNECTION_COUNT, f"{POOLS}, db_client_connection_state"),
                    f"{{{{{POOLS}}}}} {{{{db_client_connection_state}}}}",
                ),
                Query(total(semconv.CONNECTION_MAX, POOLS), f"{{{{{POOLS}}}}} max"),
            ),
        ),
        Panel(
            "Waiting",
            "Calls that wait for a connection, and waits a second that were in vain.",
            (
                Query(total(semconv.CONNECTION_PENDING, POOLS), f"{{{{{POOLS}}}}} waiting"),
                Query(
                    rate(semconv.CONNECTION_TIMEOUTS, POOLS),
                    f"{{{{{POOLS}}}}} in vain",
                    quiet="no wait is in vain",
                ),
            ),
        ),
        Panel(
            "Times, p95",
            "Seconds to make a connection, waited for one, and for which one was lent.",
            tuple(
                Query(quantile(0.95, instrument, POOLS), f"{{{{{POOLS}}}}} {what}")
                for instrument, what in (
                    (semconv.CONNECTION_CREATE_TIME, "made"),
                    (semconv.CONNECTION_WAIT_TIME, "waited"),
                    (semconv.CONNECTION_USE_TIME, "lent"),
                )
            ),
            unit="s",
        ),
    ),
)

RESILIENCE = Board(
    uid="llmkg-resilience",
    title="llmkg / Resilience",
    description="Breakers, retries, rate limits, permits, load shedding, resources and connection pools.",
    rows=(BREAKERS, RETRIES, RATES, PERMITS, SHEDDING, RESOURCES, CONNECTIONS),
)
