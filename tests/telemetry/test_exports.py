"""What the real SDK and its real exporters complain of is heard, and nothing else is."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from llmkg_otel.telemetry.exports import EXPORTING, ExportWatch
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Iterator[ExportWatch]:
    watch = ExportWatch(clock)
    watch.start()
    yield watch
    watch.stop()


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"127.0.0.1:{closed.getsockname()[1]}"


@contextmanager
def spans_to(processor: Any) -> Iterator[Any]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    yield provider.get_tracer("test")
    provider.shutdown()


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_span_exporter_without_a_collector_is_a_problem(
    watch: ExportWatch, nowhere: str, kind: str
) -> None:
    exporter: Any = (
        HttpExporter(f"http://{nowhere}/v1/traces", timeout=0.2)
        if kind == "http"
        else GrpcExporter(nowhere, insecure=True, timeout=1)
    )
    with spans_to(SimpleSpanProcessor(exporter)) as tracer:
        tracer.start_span("lost").end()
        assert watch.problem is not None
        assert watch.problem.startswith("Failed to export")


def test_metrics_without_a_collector_are_a_problem(watch: ExportWatch, nowhere: str) -> None:
    exporter = OTLPMetricExporter(f"http://{nowhere}/v1/metrics", timeout=0.2)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("test").create_counter("lost").add(1)
    provider.force_flush()
    assert watch.problem is not None
    assert watch.problem.startswith("Failed to export")
    provider.shutdown()


class Blocked(SpanExporter):
    """Exports nothing before it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.release.wait(20)
        return SpanExportResult.SUCCESS


def test_a_queue_that_runs_over_is_a_problem(watch: ExportWatch) -> None:
    exporter = Blocked()
    processor = BatchSpanProcessor(exporter, max_queue_size=2, max_export_batch_size=1)
    with spans_to(processor) as tracer:
        for _ in range(10):
            tracer.start_span("too many").end()
        assert watch.problem == "Queue full, dropping Span."
        exporter.release.set()


class Raising(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise OSError("disk full")


def test_an_exporter_of_another_maker_that_raises_is_a_problem(watch: ExportWatch) -> None:
    with spans_to(SimpleSpanProcessor(Raising())) as tracer:
        tracer.start_span("lost").end()
        assert watch.problem == "Exception while exporting Span."


def test_a_collector_that_takes_everything_is_no_problem(watch: ExportWatch) -> None:
    with OtlpReceiver() as collector:
        exporter = HttpExporter(f"{collector.endpoint}/v1/traces")
        with spans_to(SimpleSpanProcessor(exporter)) as tracer:
            tracer.start_span("kept").end()
        assert [span.name for span in collector.spans()] == ["kept"]
    assert watch.problem is None


def test_a_problem_is_forgotten_after_ninety_seconds(watch: ExportWatch, clock: Clock) -> None:
    logging.getLogger(EXPORTING[0] + "otlp").error("Failed to export %s", "x" * 999)
    assert watch.problem == "Failed to export " + "x" * 183
    clock.now += 90
    assert watch.problem is not None
    clock.now += 0.1
    assert watch.problem is None


@pytest.mark.parametrize(
    ("logger", "level", "message"),
    [
        ("opentelemetry.trace", logging.WARNING, "Overriding of current TracerProvider is not allowed"),
        ("opentelemetry.exporter.otlp", logging.WARNING, "Transient error 503 encountered, retrying in 1 s"),
        ("opentelemetry.exporter.otlp", logging.INFO, "exported"),
        ("llmkg_otel", logging.ERROR, "Failed to export"),
    ],
)
def test_other_complaints_are_not_about_exporting(
    watch: ExportWatch, logger: str, level: int, message: str
) -> None:
    logging.getLogger(logger).log(level, message)
    assert watch.problem is None


def test_it_hears_only_while_it_listens(watch: ExportWatch) -> None:
    watch.stop()
    logging.getLogger(EXPORTING[0]).error("Failed to export")
    assert watch.problem is None
    assert watch not in logging.getLogger("opentelemetry").handlers


def test_a_program_without_logging_still_sees_the_complaints_once(
    watch: ExportWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Last(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    other = ExportWatch()  # of another system in this process
    other.start()
    monkeypatch.setattr(logging, "lastResort", Last())
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logging.getLogger("opentelemetry.trace").warning("first")
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    logging.getLogger("opentelemetry.trace").warning("second")
    other.stop()
    assert seen == ["first"]
