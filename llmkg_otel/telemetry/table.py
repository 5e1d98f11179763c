"""The contract as a page of documentation: `python -m llmkg_otel.telemetry.table > docs/telemetry.md`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from llmkg_otel.errors import (
    CircuitOpenError,
    EngineCancelledError,
    FailureReturnedError,
    InvalidInputError,
    LoadShedError,
    OperationTimeoutError,
    OverloadedError,
    RateLimitedError,
    ResourceExhaustedError,
    ResponseTooLargeError,
    ShuttingDownError,
)
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.semconv import (
    DURATION_BUCKETS,
    INSTRUMENTS,
    METER_NAME,
    SCHEMA_URL,
    Instrument,
    Values,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EVENTS", "SPANS", "SPAN_EVENTS", "Entry", "contract_series", "prometheus_name", "telemetry_table"]

_UNITS = {"s": "_seconds", "By": "_bytes"}

_ERRORS = (
    CircuitOpenError,
    RateLimitedError,
    ResourceExhaustedError,
    OverloadedError,
    LoadShedError,
    ShuttingDownError,
    OperationTimeoutError,
    EngineCancelledError,
    InvalidInputError,
    ResponseTooLargeError,
    FailureReturnedError,
)
_INTRODUCTION = f"""# Telemetry

Generated from `llmkg_otel/telemetry/semconv.py` by `python -m llmkg_otel.telemetry.table`; a test keeps it
current. Everything comes from the meter and tracer `{METER_NAME}`, schema {SCHEMA_URL}.

`error.type` is there on failure only. It is one of
{", ".join(f"`{error.reason}`" for error in _ERRORS)}, `cancelled`,
or the class of the engine's own exception. An attribute without listed values takes names that the
configuration or the code bounds; operations past the bound are `{semconv.OTHER}`. This layer writes no user
id, argument or result to a metric, span or log record, but for the text of queries where you opt in.

Histograms are in seconds, with these bounds as advice, which a View of yours overrides:
{", ".join(f"{bound:g}" for bound in DURATION_BUCKETS)}."""


_EVENTS_TOLD = (
    "Log records with an event name, from the logger `llmkg_otel.events`. Every record inside a call is"
    f" exported with `{semconv.OPERATION_NAME}` and `{semconv.CORRELATION_ID}` as well."
)


class Entry(NamedTuple):
    """A span or an event: its name, its kind or severity, its attributes, and when it is there."""

    name: str
    kind: str
    attributes: tuple[str, ...]
    description: str


SPANS = (
    Entry(
        "{operation}",
        "INTERNAL",
        (
            semconv.OPERATION_NAME,
            semconv.CORRELATION_ID,
            semconv.ATTEMPTS,
            semconv.ERROR_TYPE,
            semconv.REJECTION_SCOPE,
            semconv.RETRY_AFTER,
            semconv.FALLBACK_NAME,
            semconv.FALLBACK_REASON,
        ),
        "A protected call, refused ones included; an MCP server's span is enriched instead, and only there "
        f"`{semconv.OPERATION_NAME}` is needed, which else is the span's name. "
        "A call that an open circuit refused links to the span that opened it; one that a fallback "
        "answered tells which, and the error type of what failed.",
    ),
    Entry(
        semconv.ATTEMPT_SPAN,
        "INTERNAL",
        (semconv.OPERATION_NAME, semconv.ATTEMPTS, semconv.ERROR_TYPE),
        "The second and later attempts of a call.",
    ),
    Entry(semconv.SHUTDOWN_SPAN, "INTERNAL", (), "A graceful shutdown, up to the flush that sends the span."),
    Entry(
        f"{semconv.SHUTDOWN_SPAN}.{{phase}}",
        "INTERNAL",
        (),
        "Its phases: lame_duck, draining, checkpointing, cleaning_up.",
    ),
    Entry(
        semconv.CHECKPOINT_SPAN,
        "INTERNAL",
        (),
        "Saving a checkpoint; the last one is a child of the shutdown's span.",
    ),
    Entry(
        "{method}",
        "CLIENT",
        (
            semconv.DB_SYSTEM,
            semconv.DB_OPERATION,
            semconv.DB_RETURNED_ROWS,
            semconv.DB_QUERY_TEXT,
            semconv.ERROR_TYPE,
        ),
        "An engine operation, by auto-instrumentation; with LLMKG_PROTECT it also has what a protected "
        "call's span has. The query's text is there only with `instrumentation.capture_text`.",
    ),
)
"""The spans that this layer opens."""

SPAN_EVENTS = (
    Entry(
        semconv.PERMIT_WAITED,
        "{operation}",
        ("pool", "seconds", "acquired"),
        "The call had to wait for a permit, for so many seconds, and got it or not.",
    ),
    Entry(
        semconv.CONNECTION_WAITED,
        "{operation}",
        ("pool", "seconds", "acquired"),
        "The same for a connection of a pool; on whatever span is current then.",
    ),
    Entry(
        semconv.RETRY_SCHEDULED,
        "{operation}",
        ("attempt", "seconds", "delay", semconv.ERROR_TYPE),
        "An attempt took `seconds` and failed; the next one begins after `delay` seconds.",
    ),
)
"""What the spans of calls tell of where their time went; what is left is the engine's."""

EVENTS = (
    Entry(
        semconv.BREAKER_STATE_CHANGED,
        "WARN, closing INFO",
        ("breaker", "state", "previous_state", semconv.ERROR_TYPE),
        "A circuit breaker changed state.",
    ),
    Entry(
        semconv.RETRY_SCHEDULED,
        "INFO",
        ("operation", "attempt", "delay", semconv.ERROR_TYPE),
        "An attempt failed and another follows after `delay` seconds.",
    ),
    Entry(
        semconv.LOAD_SHEDDING_LIMIT_CHANGED,
        "INFO",
        ("limit", "previous_limit"),
        "The adaptive limit on calls at once has moved by a tenth.",
    ),
    Entry(
        semconv.TIME_LIMIT_IGNORED,
        "WARN",
        ("operation", "seconds", "returned"),
        "An operation ran past its time limit: it has returned now, or it, or its thread, goes on.",
    ),
    Entry(
        semconv.FALLBACK_FAILED,
        "WARN",
        ("operation", "fallback", semconv.ERROR_TYPE),
        "A rung of a fallback ladder failed too; the next one follows, if there is one.",
    ),
    Entry(
        semconv.RATE_LIMIT_REJECTED,
        "WARN",
        ("operation", "policy", "not_logged"),
        "A rate limit refused a call; at most one a second, the others since are counted in `not_logged`.",
    ),
    Entry(
        semconv.HEALTH_STATE_CHANGED,
        "WARN, recovery INFO",
        ("component", "state", "previous_state", "detail"),
        "A component's status changed; `detail` is its check's own words.",
    ),
    Entry(
        semconv.LOOP_BLOCKED,
        "ERROR",
        ("seconds", "stack"),
        "The event loop has not run for 5 s; `stack` is where its thread stands. Once for each time.",
    ),
    Entry(semconv.SHUTDOWN_STARTED, "INFO", ("state",), "A graceful shutdown began."),
    Entry(
        semconv.SHUTDOWN_COMPLETED,
        "INFO",
        ("state", "report"),
        "It is over; after the flush, so only local logs have it. `llmkg-otel serve` adds its `report`.",
    ),
    Entry(semconv.ALERT_FIRED, "WARN", ("alert", "severity", "value"), "An alert rule fires."),
    Entry(semconv.ALERT_RESOLVED, "INFO", ("alert", "severity", "value"), "It no longer does."),
)
"""The log records with an event name."""


def telemetry_table() -> str:
    """Return the page, in Markdown: every metric, span and event."""
    parts = [
        _INTRODUCTION,
        "## Metrics",
        _table(("Metric", "In Prometheus", "Kind, unit", "Attributes", "What"), map(_metric, INSTRUMENTS)),
        "## Spans",
        _table(("Span", "Kind", "Attributes", "What"), map(_entry, SPANS)),
        "## Span events",
        _table(("Event", "On", "Attributes", "When"), map(_entry, SPAN_EVENTS)),
        "## Events",
        _EVENTS_TOLD,
        _table(("Event", "Severity", "Attributes", "When"), map(_entry, EVENTS)),
    ]
    return "\n\n".join(parts) + "\n"


def prometheus_name(instrument: Instrument) -> str:
    """Return the name that the Prometheus exporter gives an instrument; of a histogram, its stem.

    Source: OpenTelemetry, "Prometheus and OpenMetrics Compatibility"; the Python exporter adds no suffix
    for the unit 1.
    """
    total = "_total" if instrument.kind in ("Counter", "ObservableCounter") else ""
    return instrument.name.replace(".", "_") + _UNITS.get(instrument.unit, "") + total


def contract_series() -> dict[str, dict[str, Values]]:
    """Return every series of the contract by its name in Prometheus, with its labels and their values.

    A histogram has three names, and its buckets the label `le`. None: any value. What a scrape, a rule or
    a dashboard names beyond these, and beyond what Prometheus adds, does not exist.
    """
    series: dict[str, dict[str, Values]] = {}
    for instrument in INSTRUMENTS:
        labels = {key.replace(".", "_"): values for key, values in instrument.attributes.items()}
        name = prometheus_name(instrument)
        if instrument.kind == "Histogram":
            series |= {
                f"{name}_bucket": labels | {"le": None},
                f"{name}_sum": labels,
                f"{name}_count": labels,
            }
        else:
            series[name] = labels
    return series


def _metric(instrument: Instrument) -> tuple[str, ...]:
    attributes = [
        f"`{key}`" + (f": {', '.join(values)}" if values else "")
        for key, values in instrument.attributes.items()
    ]
    return (
        f"`{instrument.name}`",
        f"`{prometheus_name(instrument)}`",
        f"{instrument.kind}, `{instrument.unit}`",
        "; ".join(attributes),
        instrument.description,
    )


def _entry(entry: Entry) -> tuple[str, ...]:
    return (
        f"`{entry.name}`",
        entry.kind,
        ", ".join(f"`{attribute}`" for attribute in entry.attributes),
        entry.description,
    )


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(telemetry_table())
