from __future__ import annotations

import gzip
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from llmkg_otel.testing import FakeClock, OtlpReceiver, Point, attributes_key, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(max_records=3) as receiver:
        yield receiver


def traced(exporter: OTLPSpanExporter | GrpcSpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def test_a_fake_clock_moves_only_when_moved() -> None:
    clock = FakeClock(100.0)
    assert clock() == clock() == 100.0
    clock.advance(2.5)
    assert clock() == 102.5


async def test_sleeping_on_a_fake_clock_advances_it_and_is_noted() -> None:
    clock = FakeClock()
    await clock.sleep(3.0)
    clock.sleep_sync(1.0)
    assert (clock(), clock.slept) == (4.0, [3.0, 1.0])


def test_a_fake_clock_refuses_to_go_back() -> None:
    with pytest.raises(ValueError, match="never goes back"):
        FakeClock().advance(-1)


def test_captured_spans_keep_their_order_and_can_be_asked_for_by_name() -> None:
    with captured_telemetry() as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("t")
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
            pass
        assert [span.name for span in telemetry.spans()] == ["inner", "outer"]
        assert [span.name for span in telemetry.spans("outer")] == ["outer"]


def test_captured_metrics_are_numbers_or_count_and_sum_by_attributes() -> None:
    with captured_telemetry() as telemetry:
        meter = telemetry.meter_provider.get_meter("t")
        meter.create_counter("calls").add(2, {"b": 1, "a": "x"})
        meter.create_histogram("wait", unit="s").record(0.5)
        assert telemetry.metric("calls") == {(("a", "x"), ("b", 1)): 2}
        assert telemetry.metric("wait") == {(): (1, 0.5)}
        assert telemetry.metric("nothing") == {}
        assert telemetry.metrics()["wait"].unit == "s"


def test_captured_logs_can_be_asked_for_by_event_name() -> None:
    with captured_telemetry() as telemetry:
        logger = telemetry.logger_provider.get_logger("t")
        logger.emit(event_name="opened", body="one")
        logger.emit(body="two")
        assert [entry.log_record.body for entry in telemetry.logs()] == ["one", "two"]
        assert [entry.log_record.body for entry in telemetry.logs("opened")] == ["one"]


def test_capturing_never_touches_the_global_providers() -> None:
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    with captured_telemetry():
        assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before


def test_the_receiver_keeps_a_span_with_parent_link_event_and_status(receiver: OtlpReceiver) -> None:
    provider = traced(OTLPSpanExporter(f"{receiver.endpoint}/v1/traces", compression=Compression.Gzip))
    tracer = provider.get_tracer("scope")
    other = trace.SpanContext(1, 2, is_remote=True)
    kind, links = trace.SpanKind.SERVER, [trace.Link(other)]
    with tracer.start_as_current_span("parent") as parent:
        started = tracer.start_span("child", kind=kind, links=links, attributes={"n": [1, 2]})
        started.record_exception(KeyError())
        started.set_status(trace.StatusCode.ERROR)
        started.end()
    provider.shutdown()
    (child,) = receiver.spans("child", scope="scope", kind="SERVER")
    assert child.parent_id == trace.format_span_id(parent.get_span_context().span_id)
    assert child.links == (("0" * 31 + "1", "0" * 15 + "2"),)
    assert (child.status, child.attributes) == ("ERROR", {"n": (1, 2)})
    assert [name for name, _ in child.events] == ["exception"]


def test_the_receiver_keeps_the_latest_point_of_each_series(receiver: OtlpReceiver) -> None:
    exporter = OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics")
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, 1e9)], shutdown_on_exit=False)
    meter = provider.get_meter("t")
    counter = meter.create_counter("calls")
    histogram = meter.create_histogram("wait", explicit_bucket_boundaries_advisory=[1.0])
    counter.add(1, {"a": 1})
    provider.force_flush()
    counter.add(1, {"a": 1})
    histogram.record(0.5)
    histogram.record(2)
    provider.shutdown()
    assert receiver.metric("calls") == {(("a", 1),): Point(2)}
    assert receiver.metric("wait") == {(): Point(2.5, 2, (1.0,), (1, 1))}
    assert receiver.metric_names() == {"calls", "wait"}


def test_the_receiver_keeps_log_records_with_their_trace(receiver: OtlpReceiver) -> None:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(f"{receiver.endpoint}/v1/logs"))
    )
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(0xAB, 0xCD, is_remote=False))):
        provider.get_logger("t").emit(event_name="opened", body={"k": "v"}, attributes={"a": True})
    provider.shutdown()
    (entry,) = receiver.logs("opened")
    assert (entry.body, entry.attributes) == ({"k": "v"}, {"a": True})
    assert entry.trace_id.endswith("ab")
    assert entry.span_id.endswith("cd")


def test_the_receiver_speaks_grpc_too() -> None:
    with OtlpReceiver(protocol="grpc") as receiver:
        provider = traced(GrpcSpanExporter(receiver.endpoint, insecure=True))
        provider.get_tracer("t").start_span("over grpc").end()
        assert receiver.wait_until(lambda r: r.spans("over grpc"))
        provider.shutdown()


def test_the_receiver_keeps_the_newest_spans_and_counts_what_it_dropped(receiver: OtlpReceiver) -> None:
    provider = traced(OTLPSpanExporter(f"{receiver.endpoint}/v1/traces"))
    for number in range(5):
        provider.get_tracer("t").start_span(str(number)).end()
    provider.shutdown()
    assert [span.name for span in receiver.spans()] == ["2", "3", "4"]
    assert receiver.dropped == 2


def test_the_receiver_keeps_only_the_spans_asked_for() -> None:
    with OtlpReceiver(keep=lambda span: span.name == "yes") as receiver:
        provider = traced(OTLPSpanExporter(f"{receiver.endpoint}/v1/traces"))
        provider.get_tracer("t").start_span("no").end()
        provider.get_tracer("t").start_span("yes").end()
        provider.shutdown()
        assert [span.name for span in receiver.spans()] == ["yes"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/traces", b"not protobuf", {"Content-Type": "application/x-protobuf"}, 400),
        ("/v1/traces", b"{}", {"Content-Type": "application/json"}, 415),
        ("/v2/traces", b"", {"Content-Type": "application/x-protobuf"}, 404),
        (
            "/v1/logs",
            gzip.compress(b""),
            {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"},
            200,
        ),
    ],
)
def test_the_receiver_answers_as_the_otlp_specification_says(
    receiver: OtlpReceiver, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    request = urllib.request.Request(receiver.endpoint + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            answer = response.status
    except urllib.error.HTTPError as error:
        with error:
            answer = error.code
    assert answer == status


def test_closing_a_receiver_twice_does_nothing_and_keeps_what_it_received() -> None:
    receiver = OtlpReceiver()
    receiver.close()
    receiver.close()
    assert receiver.spans() == []


def test_attributes_key_sorts_by_name() -> None:
    assert attributes_key({"b": 1, "a": 2}) == (("a", 2), ("b", 1))
