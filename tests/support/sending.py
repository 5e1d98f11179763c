"""A sender whose every span, log record and metric is known: what arrives is compared with it."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from llmkg_otel.config import ProductionConfig, RetryConfig, ShutdownConfig
from llmkg_otel.errors import LlmkgOtelError
from llmkg_otel.system import ProductionSystem
from llmkg_otel.testing import captured_telemetry
from llmkg_otel.testing.records import decode_logs, decode_points, decode_spans
from support.calls import failing_first
from support.engines import StubEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkg_otel.testing import CapturedTelemetry, OtlpReceiver
    from llmkg_otel.testing.records import LogEntry, SpanRecord
    from support.collector import Collector

PROTOCOLS = ("grpc", "http")


@dataclass
class Sender:
    """Providers that keep what they send; `flush` sends what is not sent yet, now."""

    telemetry: CapturedTelemetry
    meter_provider: MeterProvider
    _reader: InMemoryMetricReader

    @property
    def tracer(self) -> Any:
        return self.telemetry.tracer_provider.get_tracer("sender")

    def flush(self) -> None:
        providers: tuple[Any, ...] = (
            self.telemetry.tracer_provider,
            self.telemetry.logger_provider,
            self.meter_provider,
        )
        for provider in providers:
            assert provider.force_flush(20_000)

    def spans(self) -> list[SpanRecord]:
        return list(decode_spans(encode_spans(self.telemetry.spans()).SerializeToString()))

    def logs(self) -> list[LogEntry]:
        return list(decode_logs(encode_logs(self.telemetry.logs()).SerializeToString()))

    def metrics(self) -> dict[str, dict[Any, Any]]:
        data = self._reader.get_metrics_data()
        assert data is not None
        found: dict[str, dict[Any, Any]] = {}
        for _instance, name, attributes, point in decode_points(encode_metrics(data).SerializeToString()):
            found.setdefault(name, {})[attributes] = point
        return found


@contextlib.contextmanager
def sending(collector: Collector, protocol: str) -> Iterator[Sender]:
    """Send to a Collector over gRPC or HTTP."""
    exporters: tuple[Any, ...]
    if protocol == "grpc":
        exporters = (
            grpc_traces.OTLPSpanExporter(collector.grpc, insecure=True),
            grpc_logs.OTLPLogExporter(collector.grpc, insecure=True),
            grpc_metrics.OTLPMetricExporter(collector.grpc, insecure=True),
        )
    else:
        exporters = (
            http_traces.OTLPSpanExporter(f"{collector.http}/v1/traces"),
            http_logs.OTLPLogExporter(f"{collector.http}/v1/logs"),
            http_metrics.OTLPMetricExporter(f"{collector.http}/v1/metrics"),
        )
    spans, logs, metrics = exporters
    with captured_telemetry() as telemetry:
        batches = BatchSpanProcessor(spans, schedule_delay_millis=100, max_queue_size=100_000)
        telemetry.tracer_provider.add_span_processor(batches)
        telemetry.logger_provider.add_log_record_processor(
            BatchLogRecordProcessor(logs, schedule_delay_millis=100, max_queue_size=100_000)
        )
        reader = InMemoryMetricReader()
        pushing = PeriodicExportingMetricReader(metrics, export_interval_millis=200)
        provider = MeterProvider([reader, pushing], shutdown_on_exit=False)
        yield Sender(telemetry, provider, reader)
        provider.shutdown()


def by_id(spans: list[SpanRecord]) -> dict[str, SpanRecord]:
    return {span.span_id: span for span in spans}


def words(logs: list[LogEntry]) -> list[str]:
    return sorted(str(entry) for entry in logs)


def arrived(sender: Sender, backend: OtlpReceiver, seconds: float = 30.0) -> bool:
    """Wait until as many spans and log records have arrived, at least, as were sent."""
    spans, logs = len(sender.spans()), len(sender.logs())
    return backend.wait_until(lambda b: len(by_id(b.spans())) >= spans and len(b.logs()) >= logs, seconds)


async def work(sender: Sender) -> None:
    """Let a system succeed, retry, fail, open a circuit and refuse; everything it says is sent."""
    handler = LoggingHandler(logger_provider=sender.telemetry.logger_provider)
    logger = logging.getLogger("llmkg_otel")
    logger.addHandler(handler)
    system = ProductionSystem(
        StubEngine(),
        ProductionConfig(
            retry=RetryConfig(max_retries=1, base_delay_ms=0, max_delay_ms=0),
            shutdown=ShutdownConfig(lame_duck_seconds=0),
        ),
        tracer_provider=sender.telemetry.tracer_provider,
        meter_provider=sender.meter_provider,
    )

    def fails() -> None:
        raise ConnectionError

    async with system:
        for _ in range(20):
            await system.execute_protected_operation("steady", lambda: None)
            await system.execute_protected_operation("flaky", failing_first(lambda: None))
            with contextlib.suppress(ConnectionError, LlmkgOtelError):
                await system.execute_protected_operation("doomed", fails)
        sender.flush()
    logger.removeHandler(handler)
