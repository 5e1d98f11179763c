"""Providers that keep everything in memory, so that a test can compare whole spans and metrics."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llmkg_otel.testing.records import Attributes, attributes_key

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CapturedTelemetry", "captured_telemetry"]

Measured = float | tuple[int, float]
"""A number, or of a histogram its (count, sum)."""


@dataclass(frozen=True, slots=True)
class CapturedTelemetry:
    """Three providers to hand to the code under test, and what came out of them.

    Each span and log record is there as soon as it ended; metrics are collected when asked for. Safe
    to use from many threads, as the SDK is. Nothing here is or becomes a global provider.
    """

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    logger_provider: LoggerProvider
    _spans: InMemorySpanExporter
    _reader: InMemoryMetricReader
    _logs: InMemoryLogRecordExporter

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return the ended spans in the order they ended; with `name`, only those."""
        return [span for span in self._spans.get_finished_spans() if name in (None, span.name)]

    def logs(self, event_name: str | None = None) -> list[ReadableLogRecord]:
        """Return the log records in the order they were emitted; with `event_name`, only those."""
        entries = self._logs.get_finished_logs()
        return [entry for entry in entries if event_name in (None, entry.log_record.event_name)]

    def metrics(self) -> dict[str, Metric]:
        """Collect now; return each metric by its name, for unit, description and kind."""
        data = self._reader.get_metrics_data()
        scopes = [scope for part in data.resource_metrics for scope in part.scope_metrics] if data else []
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def metric(self, name: str) -> dict[Attributes, Measured]:
        """Collect now; return the points of one metric by their attributes, sorted by key.

        A number stays a number, a histogram's point is (count, sum). Empty when nothing was recorded.
        """
        found = self.metrics().get(name)
        data = found.data if found else None
        if not isinstance(data, Sum | Gauge | Histogram):
            return {}
        return {attributes_key(point.attributes or {}): _measured(point) for point in data.data_points}


def _measured(point: NumberDataPoint | HistogramDataPoint) -> Measured:
    return (point.count, point.sum) if isinstance(point, HistogramDataPoint) else point.value


@contextmanager
def captured_telemetry() -> Iterator[CapturedTelemetry]:
    """Give providers that export to memory; shut them down on exit. The globals are left alone."""
    resource = Resource({"service.name": "captured"})
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call] # the SDK left it untyped
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
    try:
        yield CapturedTelemetry(tracer_provider, meter_provider, logger_provider, spans, reader, logs)
    finally:
        tracer_provider.shutdown()
        meter_provider.shutdown()
        logger_provider.shutdown()
