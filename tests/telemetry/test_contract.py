"""What a system emits under every kind of fault is what the contract says, all of it and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    PeriodicExportingMetricReader,
    Sum,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv._incubating.attributes import db_attributes as incubating_db_attributes
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, mcp_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics as incubating_db_metrics
from opentelemetry.semconv._incubating.metrics import mcp_metrics
from opentelemetry.semconv.attributes import db_attributes, error_attributes
from opentelemetry.semconv.metrics import db_metrics
from opentelemetry.trace import SpanKind
from prometheus_client.parser import text_string_to_metric_families
from support.contract_run import ALERT, OPERATIONS, TOOLS, USER, workload
from support.servers import Servers

from llmkg_otel.alerting.rules import RecordingRule, load_default_rules
from llmkg_otel.system import ProductionSystem
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.logs import LogExport
from llmkg_otel.telemetry.semconv import DURATION_BUCKETS, INSTRUMENTS, Instrument
from llmkg_otel.telemetry.table import (
    EVENTS,
    SPAN_EVENTS,
    SPANS,
    contract_series,
    prometheus_name,
    telemetry_table,
)
from llmkg_otel.testing import CapturedTelemetry, OtlpReceiver, attributes_key, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

BY_NAME = {instrument.name: instrument for instrument in INSTRUMENTS}
LINE = {"timestamp", "level", "logger", "message", "event"}
"""What every line of the log on stderr has."""


class Exported(NamedTuple):
    """Everything that left the process: in memory, over OTLP, and the Prometheus text at its busiest."""

    metrics: list[Metric]
    spans: list[ReadableSpan]
    logs: list[ReadableLogRecord]
    prometheus: str
    otlp: OtlpReceiver


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    rule_file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rule_file.write_text(ALERT)
    logger = logging.getLogger("llmkg_otel")
    level = logger.level
    with captured_telemetry() as telemetry, OtlpReceiver() as receiver:
        send = send_to(receiver, telemetry)
        export = LogExport(logger_provider=telemetry.logger_provider)
        logging.getLogger().addHandler(export)
        collected: list[Metric] = []
        observing = ProductionSystem._flush

        async def flush(system: ProductionSystem, seconds: float) -> str | None:
            collected.extend(telemetry.metrics().values())  # live values end with the system
            send()
            return await observing(system, seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProductionSystem, "_flush", flush)
            prometheus = asyncio.run(workload(telemetry, rule_file))
        collected.extend(telemetry.metrics().values())
        send()
        yield Exported(collected, telemetry.spans(), telemetry.logs(), prometheus, receiver)
        logging.getLogger().removeHandler(export)
        logger.setLevel(level)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the lines that `llmkg-otel serve` logs in a short life."""
    servers = Servers(tmp_path_factory.mktemp("server"))
    try:
        server = servers.start()
        assert server.terminate() == 0
    finally:
        servers.kill_remaining()
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def send_to(receiver: OtlpReceiver, telemetry: CapturedTelemetry) -> Callable[[], None]:
    """Let everything be exported over OTLP, too; return what sends it now."""
    metrics = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics"), export_interval_millis=1e9
    )
    spans = BatchSpanProcessor(OTLPSpanExporter(f"{receiver.endpoint}/v1/traces"))
    logs = BatchLogRecordProcessor(OTLPLogExporter(f"{receiver.endpoint}/v1/logs"))
    telemetry.meter_provider.add_metric_reader(metrics)
    telemetry.tracer_provider.add_span_processor(spans)
    telemetry.logger_provider.add_log_record_processor(logs)

    def send() -> None:
        for each in (metrics, spans, logs):
            each.force_flush()

    return send


def points(metric: Metric) -> list[tuple[NumberDataPoint | HistogramDataPoint, Mapping[str, object]]]:
    assert isinstance(metric.data, Sum | Histogram), metric.name
    return [(point, point.attributes or {}) for point in metric.data.data_points]


def kinds(instrument: Instrument) -> tuple[type, bool | None]:
    if instrument.kind == "Histogram":
        return Histogram, None
    return Sum, instrument.kind in ("Counter", "ObservableCounter")


def test_every_metric_is_in_the_contract_with_its_kind_unit_and_description(exported: Exported) -> None:
    for metric in exported.metrics:
        instrument = BY_NAME[metric.name]
        assert (metric.unit, metric.description) == (instrument.unit, instrument.description)
        assert (type(metric.data), getattr(metric.data, "is_monotonic", None)) == kinds(instrument)


def test_every_metric_of_the_contract_is_emitted(exported: Exported) -> None:
    assert {metric.name for metric in exported.metrics if points(metric)} == BY_NAME.keys()


def test_attributes_are_text_with_the_contracts_keys_and_values(exported: Exported) -> None:
    for metric in exported.metrics:
        allowed = BY_NAME[metric.name].attributes
        optional = {"error.type", "llmkg.fallback.name", semconv.TOOL_NAME} & set(allowed)
        for _, attributes in points(metric):
            assert set(allowed) - optional <= set(attributes) <= set(allowed), metric.name
            for key, value in attributes.items():
                assert isinstance(value, str)
                assert allowed[key] is None or value in (allowed[key] or ()), (metric.name, key, value)


def test_every_attribute_of_the_contract_is_emitted(exported: Exported) -> None:
    seen: dict[str, set[str]] = {}
    for metric in exported.metrics:
        for _, attributes in points(metric):
            seen.setdefault(metric.name, set()).update(attributes)
    assert seen == {name: set(each.attributes) for name, each in BY_NAME.items()}


def test_over_otlp_the_same_metrics_spans_and_events_arrive(exported: Exported) -> None:
    received = exported.otlp
    for metric in exported.metrics:
        sent = {attributes_key(dict(attributes)) for _, attributes in points(metric)}
        assert sent <= received.metric(metric.name).keys(), metric.name
    assert received.metric_names() == {metric.name for metric in exported.metrics}
    assert Counter(span.name for span in received.spans()) == Counter(span.name for span in exported.spans)
    assert Counter(entry.event for entry in received.logs()) == Counter(
        entry.log_record.event_name or "" for entry in exported.logs
    )


def test_every_series_of_a_scrape_is_in_the_contract_with_its_labels(exported: Exported) -> None:
    contract = contract_series()
    families: Any = text_string_to_metric_families(exported.prometheus)
    seen = {sample.name for family in families for sample in family.samples}
    assert seen >= {"llmkg_operation_duration_seconds_bucket", "llmkg_circuit_breaker_status"}
    families = text_string_to_metric_families(exported.prometheus)
    for sample in (
        sample for family in families for sample in family.samples if sample.name != "target_info"
    ):
        labels = contract[sample.name]
        for label, value in sample.labels.items():
            assert labels[label] is None or value in (labels[label] or ()), sample


def test_every_expression_of_the_rules_is_on_the_contract() -> None:
    contract = contract_series()
    rules = [rule for group in load_default_rules().groups for rule in group.rules]
    recorded = {rule.name for rule in rules if isinstance(rule, RecordingRule)}
    named: set[str] = set()
    for rule in rules:
        for name in re.findall(r"\b(?:llmkg|mcp|db)_[a-z0-9_]+\b", rule.expression.text):
            labels = {label for each in contract.values() for label in each}
            assert name in contract or name in recorded or name in labels, (rule.name, name)
            named.add(name)
    assert named & contract.keys()


def test_names_in_attributes_are_those_of_configuration_and_code(exported: Exported) -> None:
    seen: dict[str, set[object]] = {}
    for metric in exported.metrics:
        for _, attributes in points(metric):
            for key, value in attributes.items():
                seen.setdefault(key, set()).add(value)
    assert seen["llmkg.operation.name"] == OPERATIONS
    assert seen["name"] == OPERATIONS | set(semconv.RESOURCES)
    assert seen["pool"] == {"operations", "narrow"}
    assert seen["db.client.connection.pool.name"] == {"store"}
    assert seen["component"] == {
        *("engine", "resources", "event_loop", "circuit_breakers", "circuit_sharing", "telemetry"),
        *("alert_rules", "rate_limit_store", "checkpoints"),
    }
    assert seen["error.type"] == {
        *("ConnectionError", "circuit_open", "rate_limited", "resource_exhausted"),
        *("cancelled", "draining", "OSError", "ConnectionRefusedError", "permit_timeout"),
        *("invalid_input", "NotFoundError"),
    }
    assert seen[semconv.TOOL_NAME] == {*TOOLS, semconv.OTHER}
    assert seen[semconv.MCP_METHOD] >= {"tools/list", "tools/call"}
    assert seen[semconv.DB_SYSTEM] == {"sqlite"}
    assert seen[semconv.DB_OPERATION] == {"search"}


def test_durations_have_the_contracts_buckets(exported: Exported) -> None:
    histograms = [metric for metric in exported.metrics if isinstance(metric.data, Histogram)]
    assert histograms
    for metric in histograms:
        for point, _ in points(metric):
            assert isinstance(point, HistogramDataPoint)
            assert tuple(point.explicit_bounds) == DURATION_BUCKETS


def test_a_status_metric_has_one_point_per_state_and_one_of_them_is_1(exported: Exported) -> None:
    status = [metric for metric in exported.metrics if metric.name.endswith((".status", ".trend"))]
    assert len({metric.name for metric in status}) == 8
    for metric in status:
        groups: dict[object, dict[object, object]] = {}
        for point, attributes in points(metric):
            assert isinstance(point, NumberDataPoint)
            rest = tuple(sorted((k, v) for k, v in attributes.items() if k != "state"))
            groups.setdefault(rest, {})[attributes["state"]] = point.value
        for states in groups.values():
            assert set(states) == set(BY_NAME[metric.name].attributes["state"] or ())
            assert sorted(map(str, states.values())) == ["0"] * (len(states) - 1) + ["1"]


def ours(exported: Exported) -> list[ReadableSpan]:
    return [span for span in exported.spans if scope_of(span) == semconv.METER_NAME]


def enriched(exported: Exported) -> dict[str, ReadableSpan]:
    """Return FastMCP's spans of calls, by the tool."""
    spans = [span for span in exported.spans if scope_of(span) == "fastmcp" and span.kind is SpanKind.SERVER]
    return {span.name.removeprefix("tools/call "): span for span in spans}


def scope_of(span: ReadableSpan) -> str:
    return span.instrumentation_scope.name if span.instrumentation_scope else ""


def documented(span: ReadableSpan) -> str:
    """Return what the documentation calls a span of ours."""
    if span.kind is SpanKind.CLIENT:
        return "{method}"
    if span.name.startswith(f"{semconv.SHUTDOWN_SPAN}."):
        return f"{semconv.SHUTDOWN_SPAN}.{{phase}}"
    return "{operation}" if span.name in OPERATIONS else span.name


def test_every_span_is_in_the_documentation_and_is_emitted_with_all_its_attributes(
    exported: Exported,
) -> None:
    kinds = {entry.name: entry.kind for entry in SPANS}
    seen: dict[str, set[str]] = {}
    for span in ours(exported):
        name = documented(span)
        seen.setdefault(name, set()).update(span.attributes or {})
        assert span.kind.name == kinds[name]
        assert span.end_time is not None
    theirs = {tool: set(span.attributes or {}) for tool, span in enriched(exported).items()}
    for tool in TOOLS:
        seen["{operation}"] |= theirs[tool] - theirs["no_such_tool"]  # which nobody has enriched
    assert seen == {entry.name: set(entry.attributes) for entry in SPANS}
    assert {span.name for span in exported.spans} >= OPERATIONS


def test_every_event_of_a_span_is_in_the_documentation_and_is_emitted_with_its_attributes(
    exported: Exported,
) -> None:
    seen: dict[str, set[str]] = {}
    for span in ours(exported):
        for event in span.events:
            assert documented(span) == "{operation}"
            seen.setdefault(event.name, set()).update(event.attributes or {})
    assert seen == {entry.name: set(entry.attributes) for entry in SPAN_EVENTS}
    theirs = {event.name for span in enriched(exported).values() for event in span.events}
    assert {name for name in theirs if name.startswith("llmkg.")} <= seen.keys()


def test_every_event_is_in_the_documentation_and_is_emitted_with_its_attributes(
    exported: Exported, logged: list[Any]
) -> None:
    ids = {semconv.OPERATION_NAME, semconv.CORRELATION_ID}
    seen: dict[str, set[str]] = {}
    for record in (entry.log_record for entry in exported.logs if entry.log_record.event_name):
        seen.setdefault(record.event_name or "", set()).update(set(record.attributes or {}) - ids)
    for line in logged:
        if "event" in line:
            seen.setdefault(line["event"], set()).update(set(line) - LINE)
    assert seen == {entry.name: set(entry.attributes) for entry in EVENTS}


def test_a_record_that_is_no_event_has_no_attributes_of_ours_but_the_ids(exported: Exported) -> None:
    ids = {semconv.OPERATION_NAME, semconv.CORRELATION_ID}
    told = {f"code.{each}" for each in ("file.path", "function.name", "line.number")}
    told |= {f"exception.{each}" for each in ("type", "message", "stacktrace")}
    plain = [entry.log_record for entry in exported.logs if not entry.log_record.event_name]
    assert plain
    for record in plain:
        assert set(record.attributes or {}) <= ids | told, record.body


def test_a_real_servers_own_log_has_no_attributes_beside_those_of_its_events(logged: list[Any]) -> None:
    attributes = {entry.name: set(entry.attributes) for entry in EVENTS}
    for line in logged:
        assert set(line) - LINE <= attributes.get(line.get("event"), set()), line


def test_records_inside_a_call_tell_which(exported: Exported) -> None:
    records = [entry.log_record for entry in exported.logs]
    retried = [record for record in records if record.event_name == semconv.RETRY_SCHEDULED]
    assert {(record.attributes or {})[semconv.CORRELATION_ID] for record in retried} >= {"correlated-1"}
    for record in retried:
        attributes = record.attributes or {}
        assert attributes[semconv.OPERATION_NAME] == attributes["operation"]


def test_the_users_id_is_nowhere(exported: Exported) -> None:
    everything = [
        *(metric.to_json() for metric in exported.metrics),
        *(span.to_json() for span in exported.spans),
        *(entry.to_json() for entry in exported.logs),
        exported.prometheus,
    ]
    assert len(everything) > 50
    assert not [text for text in everything if USER in text]


def test_prometheus_names_are_those_of_the_documentation(exported: Exported) -> None:
    families = {line.split()[2] for line in exported.prometheus.splitlines() if line.startswith("# TYPE")}
    only_in_a_shutdown = {semconv.SHUTDOWN_PHASE_DURATION.name, semconv.SHUTDOWN_OPERATIONS.name}
    now = [instrument for instrument in INSTRUMENTS if instrument.name not in only_in_a_shutdown]
    assert families - {"target_info"} == {prometheus_name(instrument) for instrument in now}


class Conventions:
    """A meter that notes what the semantic conventions' own functions create on it."""

    def __init__(self) -> None:
        self.units: dict[str, tuple[str, str]] = {}
        for module in (db_metrics, incubating_db_metrics, mcp_metrics):
            for name in dir(module):
                if name.startswith("create_"):
                    getattr(module, name)(self)

    def __getattr__(self, create: str) -> Callable[..., None]:
        def note(name: str, description: str, unit: str) -> None:
            assert description
            self.units[name] = create.removeprefix("create_"), unit

        return note


def test_what_is_not_in_our_own_namespace_is_as_the_semantic_conventions_have_it() -> None:
    units = Conventions().units
    theirs = [each for each in INSTRUMENTS if not each.name.startswith("llmkg.")]
    assert len(theirs) == 9
    for each in theirs:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", each.kind.removeprefix("Observable")).lower()
        assert units[each.name] == (kind, each.unit), each.name
    modules = (db_attributes, incubating_db_attributes, error_attributes, mcp_attributes, gen_ai_attributes)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    named = {attribute for span in SPANS for attribute in span.attributes}
    named |= {attribute for instrument in INSTRUMENTS for attribute in instrument.attributes}
    dotted = {attribute for attribute in named if "." in attribute and not attribute.startswith("llmkg.")}
    assert dotted <= known
    assert len(dotted) == 9


def test_the_documentation_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "telemetry.md"
    assert page.read_text() == telemetry_table(), (
        "run: python -m llmkg_otel.telemetry.table > docs/telemetry.md"
    )


def test_operations_past_the_bound_share_one_name(
    system: ProductionSystem, telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkg_otel.operation.MAX_OPERATIONS", 3)
    for number in range(6):
        system.execute_protected_operation_sync(f"op-{number}", lambda: None)
    counts = {dict(key)["llmkg.operation.name"]: value for key, value in durations(telemetry).items()}
    assert counts == {"op-0": 1, "op-1": 1, "op-2": 1, "_OTHER": 3}
    assert {span.name for span in telemetry.spans()} == set(counts)
    assert len([entry for entry in telemetry.logs() if "operation names" in str(entry.log_record.body)]) == 1


def durations(telemetry: CapturedTelemetry) -> dict[Any, int]:
    points = telemetry.metric("llmkg.operation.duration")
    return {key: value[0] for key, value in points.items() if isinstance(value, tuple)}
