from __future__ import annotations

import io
import json

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from rich.console import Console

from llmkg_otel.demo.books import Books, Check
from llmkg_otel.demo.clients import OK, CallRecord, Journal
from llmkg_otel.demo.live import LiveView, breaker_states
from llmkg_otel.demo.summary import show, summarise
from llmkg_otel.shutdown.report import PhaseReport, ShutdownReport
from llmkg_otel.telemetry import semconv
from llmkg_otel.testing import OtlpReceiver

BOOKS = Books(
    sent=5,
    metric=5,
    spans=5,
    never_arrived=1,
    foreign=0,
    by_outcome={"ok": (3, 3), "rate_limited": (2, 2)},
    checks=(Check("calls sent = spans ended", True, "5 and 5"),),
)
CALLS = [CallRecord("v", "find_facts", str(n), OK, n / 1000) for n in range(1, 102)]
EXPOSITION = """
# TYPE llmkg_circuit_breaker_status gauge
llmkg_circuit_breaker_status{name="find_facts",state="open"} 1.0
llmkg_circuit_breaker_status{name="find_facts",state="closed"} 0.0
llmkg_circuit_breaker_status{name="get_stats",state="closed"} 1.0
llmkg_operation_active{name="find_facts",state="open"} 1.0
"""


@pytest.fixture(scope="module")
def receiver() -> OtlpReceiver:
    with OtlpReceiver() as receiver:
        exporter = OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics")
        provider = MeterProvider([PeriodicExportingMetricReader(exporter, 1e9)], shutdown_on_exit=False)
        meter = provider.get_meter("t")
        duration = meter.create_histogram(
            semconv.OPERATION_DURATION.name, explicit_bucket_boundaries_advisory=[0.01, 0.1]
        )
        duration.record(0.005, {semconv.OPERATION_NAME: "find_facts"})
        retries = meter.create_counter(semconv.RETRY_CALLS.name)
        for name in ("find_facts", "get_stats"):
            retries.add(2, {"name": name, "outcome": "recovered"})
        meter.create_counter(semconv.BREAKER_TRANSITIONS.name).add(
            1, {"name": "find_facts", "previous_state": "closed", "state": "open"}
        )
        provider.shutdown()
    return receiver


def test_the_summary_says_what_happened_as_plain_data(receiver: OtlpReceiver) -> None:
    summary = summarise(CALLS, receiver, BOOKS, {"total_duration": 1.5}, look={"MCP": "http://x"})
    assert json.loads(json.dumps(summary)) == summary
    assert summary["balanced"] is True
    assert summary["retries"] == {"recovered": 4}
    assert summary["refusals"] == {"rate_limited": 2}
    assert summary["breaker_transitions"] == [
        {"name": "find_facts", "previous_state": "closed", "state": "open", "count": 1}
    ]
    assert summary["latency_ms"]["clients"] == {"p50": 51.0, "p95": 96.0, "p99": 100.0}
    assert summary["latency_ms"]["server"] == {"p50": 5.0, "p95": 9.5, "p99": 9.9}
    assert summary["shutdown"] == {"total_duration": 1.5}
    assert summary["look"] == {"MCP": "http://x"}


def test_the_summary_of_an_empty_run_has_no_latency() -> None:
    with OtlpReceiver() as nothing:
        summary = summarise([], nothing, BOOKS, {})
    assert summary["latency_ms"]["clients"] == dict.fromkeys(("p50", "p95", "p99"))


def test_the_tables_show_every_part_of_the_summary(receiver: OtlpReceiver) -> None:
    out = io.StringIO()
    phase = PhaseReport("draining", 0.25, "timed_out")
    report = ShutdownReport(1.5, (phase,), {"drained": 3}).to_dict()
    summary = summarise(CALLS, receiver, BOOKS, report, look={"MCP": "http://x"})
    show(Console(file=out, width=120), summary)
    for text in ("rate_limited", "never arrived", "recovered", "0.250 s, timed_out", "http://x", "1.500 s"):
        assert text in out.getvalue()
    assert "The books balance." in out.getvalue()


def test_breaker_states_are_read_from_the_prometheus_text() -> None:
    assert breaker_states(EXPOSITION) == {"find_facts": "open", "get_stats": "closed"}
    assert breaker_states("") == {}


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_line_or_a_table_with_rate_outcomes_and_open_breakers(terminal: bool) -> None:
    journal = Journal()
    journal.note(CALLS[0], None)
    out = io.StringIO()
    view = LiveView(Console(file=out, width=120), journal, "http://127.0.0.1:9")
    view.phase = "faults on"
    view._breakers = breaker_states(EXPOSITION)
    view._console.print(view._table() if terminal else view._line())
    for text in ("faults on", "ok", "find_facts open"):
        assert text in out.getvalue()
