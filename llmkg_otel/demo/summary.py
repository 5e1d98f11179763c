"""The demo's result: one dictionary, which `--json` prints, and the tables made from it."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmkg_otel.demo.books import quantile
from llmkg_otel.demo.clients import OK
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from llmkg_otel.demo.books import Books
    from llmkg_otel.demo.clients import CallRecord
    from llmkg_otel.testing import OtlpReceiver

__all__ = ["show", "summarise"]

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_REFUSALS = ("rate_limited", "circuit_open", "resource_exhausted", "permit_timeout", "shed", "draining")


def summarise(
    calls: Sequence[CallRecord],
    receiver: OtlpReceiver,
    books: Books,
    shutdown: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Return what a person wants to know of a run, as plain data; `more` is added as it is."""
    durations = receiver.metric(semconv.OPERATION_DURATION.name)
    retries: Counter[str] = Counter()
    for key, point in receiver.metric(semconv.RETRY_CALLS.name).items():
        retries[str(dict(key)["outcome"])] += int(point.value)
    transitions = [
        {**dict(key), "count": int(point.value)}
        for key, point in sorted(receiver.metric(semconv.BREAKER_TRANSITIONS.name).items())
    ]
    outcomes = {name: server for name, (_, server) in books.by_outcome.items()}
    return {
        "balanced": books.balanced,
        "calls": {
            "sent": books.sent,
            "never_arrived": books.never_arrived,
            "foreign": books.foreign,
            "by_outcome": {
                name: {"clients": seen, "server": had} for name, (seen, had) in books.by_outcome.items()
            },
        },
        "latency_ms": {
            "clients": _percentiles([call.seconds for call in calls if call.outcome == OK]),
            "server": {name: _milliseconds(quantile(durations, q)) for name, q in _QUANTILES.items()},
        },
        "retries": dict(retries),
        "breaker_transitions": transitions,
        "refusals": {name: outcomes[name] for name in _REFUSALS if outcomes.get(name)},
        "shutdown": dict(shutdown),
        "checks": [
            {"check": check.name, "holds": check.holds, "detail": check.detail} for check in books.checks
        ],
        **more,
    }


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    if len(seconds) < 2:
        return dict.fromkeys(_QUANTILES, _milliseconds(seconds[0] if seconds else None))
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {name: _milliseconds(cuts[round(q * 100) - 1]) for name, q in _QUANTILES.items()}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def show(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the summary as tables."""
    calls, latency = summary["calls"], summary["latency_ms"]
    rows: list[Iterable[object]] = [(name, *side.values()) for name, side in calls["by_outcome"].items()]
    rows.append(("sent", calls["sent"], calls["sent"]))
    if calls["never_arrived"]:
        rows.append(("never arrived, listener closed", calls["never_arrived"], "-"))
    _print(console, "Calls by outcome", ("", "clients", "server"), rows)
    _print(
        console,
        "Latency of calls that went well, ms",
        ("seen by", *_QUANTILES),
        [(side, *values.values()) for side, values in latency.items()],
    )
    _print(console, "Calls that reached the engine, by retries", ("", "calls"), summary["retries"].items())
    _print(
        console,
        "Breaker transitions",
        ("breaker", "from", "to", "times"),
        [(t["name"], t["previous_state"], t["state"], t["count"]) for t in summary["breaker_transitions"]],
    )
    _print(console, "Refusals by reason", ("", "calls"), summary["refusals"].items())
    _print(console, "Shutdown", ("", ""), _shutdown_rows(summary["shutdown"]))
    _print(console, "Where to look (while it serves)", ("", ""), summary["look"].items())
    _print(
        console,
        "The books",
        ("check", "", "numbers"),
        [(c["check"], "yes" if c["holds"] else "NO", c["detail"]) for c in summary["checks"]],
    )
    console.print("The books balance." if summary["balanced"] else "The books do NOT balance.")


def _print(console: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    if not table.rows:
        table.add_row("none")
    console.print(table)


def _shutdown_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    phases = [
        (f"  {phase['name']}", f"{phase['seconds']:.3f} s, {phase['error'] or phase['outcome']}")
        for phase in report["phases"]
    ]
    calls = [(f"calls {outcome}", str(count)) for outcome, count in report["operations"].items()]
    return [("in all", f"{report['total_duration']:.3f} s"), *phases, *calls]
