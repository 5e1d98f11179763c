"""What an OTLP receiver keeps: plain frozen records, decoded from the protobuf messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.metrics.v1 import metrics_pb2

__all__ = ["Attributes", "LogEntry", "Point", "SpanRecord", "attributes_key"]

Attributes = tuple[tuple[str, object], ...]
"""Attributes as something a dict can be keyed by: pairs sorted by name."""


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One ended span. Ids are lower-case hex, `parent_id` is "" for a root; times are Unix nanoseconds.

    `kind` is INTERNAL, SERVER, ...; `status` is UNSET, OK or ERROR. `links` are (trace id, span id);
    `events` are (name, attributes).
    """

    name: str
    scope: str
    kind: str
    status: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: Mapping[str, object]
    links: tuple[tuple[str, str], ...]
    events: tuple[tuple[str, Mapping[str, object]], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """The latest point of one series: a number, or of a histogram its sum, count and buckets.

    `value` is the number or the sum; the others are empty for a number. `bucket_counts` has one more
    entry than `bounds`: the last one counts what was above all of them. `exemplars` are (value, trace id).
    """

    value: float
    count: int = 0
    bounds: tuple[float, ...] = ()
    bucket_counts: tuple[int, ...] = ()
    exemplars: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log record; `event` is "" unless it has an event name, ids are "" outside a trace."""

    event: str
    severity: str
    body: object
    trace_id: str
    span_id: str
    attributes: Mapping[str, object]


def attributes_key(attributes: Mapping[str, object]) -> Attributes:
    """Return attributes as sorted pairs: `attributes_key({"b": 1, "a": 2}) == (("a", 2), ("b", 1))`."""
    return tuple(sorted(attributes.items()))


def decode_spans(body: bytes) -> Iterator[SpanRecord]:
    """Yield the spans of an ExportTraceServiceRequest."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(span, scope.scope.name)


def _span(span: trace_pb2.Span, scope: str) -> SpanRecord:
    return SpanRecord(
        name=span.name,
        scope=scope,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        events=tuple((event.name, _attributes(event.attributes)) for event in span.events),
    )


def decode_points(body: bytes) -> Iterator[tuple[str, str, Attributes, Point]]:
    """Yield (service.instance.id, metric name, attributes, point) of an ExportMetricsServiceRequest."""
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        instance = str(_attributes(resource.resource.attributes).get("service.instance.id", ""))
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for attributes, point in _points(metric):
                    yield instance, metric.name, attributes_key(_attributes(attributes)), point


def _points(metric: metrics_pb2.Metric) -> Iterator[tuple[Iterable[KeyValue], Point]]:
    for histogram in metric.histogram.data_points:
        yield (
            histogram.attributes,
            Point(
                histogram.sum,
                histogram.count,
                tuple(histogram.explicit_bounds),
                tuple(histogram.bucket_counts),
                tuple((each.as_double, each.trace_id.hex()) for each in histogram.exemplars),
            ),
        )
    for exponential in metric.exponential_histogram.data_points:
        yield exponential.attributes, Point(exponential.sum, exponential.count)
    for number in (*metric.sum.data_points, *metric.gauge.data_points):
        whole = number.WhichOneof("value") == "as_int"
        yield number.attributes, Point(number.as_int if whole else number.as_double)


def decode_logs(body: bytes) -> Iterator[LogEntry]:
    """Yield the log records of an ExportLogsServiceRequest."""
    for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield LogEntry(
                    event=record.event_name,
                    severity=record.severity_text,
                    body=_value(record.body),
                    trace_id=record.trace_id.hex(),
                    span_id=record.span_id.hex(),
                    attributes=_attributes(record.attributes),
                )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    found: object = getattr(value, kind)
    return found
