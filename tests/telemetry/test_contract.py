"""What a system emits under every kind of fault is what the contract says, all of it and nothing else."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum
from support.calls import failing_first

from llmkg_otel.config import (
    AlertingConfig,
    CircuitBreakerConfig,
    HealthCheckConfig,
    MonitoringConfig,
    OperationConfig,
    ProductionConfig,
    RateLimitConfig,
    RateLimitRule,
    RetryConfig,
    ShutdownConfig,
)
from llmkg_otel.errors import LlmkgOtelError
from llmkg_otel.limiting.resources import ResourceUsage
from llmkg_otel.system import ProductionSystem
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.semconv import DURATION_BUCKETS, INSTRUMENTS, Instrument
from llmkg_otel.telemetry.table import EVENTS, SPANS, prometheus_name, telemetry_table
from llmkg_otel.testing import CapturedTelemetry, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

USER = "user-7f3a-planted"
OPERATIONS = {"steady", "flaky", "doomed", "narrow", "limited"}
ALERT = """
groups:
  - name: planted
    rules:
      - alert: Planted
        expr: llmkg_health_status{component="engine",state="pass"} == 1
        labels: {severity: warning}
"""
BY_NAME = {instrument.name: instrument for instrument in INSTRUMENTS}


class Exported(NamedTuple):
    """Everything that left the process, and the Prometheus text at its busiest."""

    metrics: list[Metric]
    spans: list[ReadableSpan]
    logs: list[ReadableLogRecord]
    prometheus: str


def configuration(rule_file: Path) -> ProductionConfig:
    once = RateLimitRule(requests_per_second=1e-3, burst_capacity=1)
    return ProductionConfig(
        rate_limiting=RateLimitConfig(
            per_user=RateLimitRule(requests_per_second=1000),
            storage_uri="redis://127.0.0.1:1",  # where nobody is
        ),
        retry=RetryConfig(max_retries=1, base_delay_ms=0, max_delay_ms=0),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=2),
        monitoring=MonitoringConfig(log_level="debug", alert_check_interval_seconds=1000),
        alerting=AlertingConfig(rule_files=(rule_file,)),
        health=HealthCheckConfig(failure_threshold=1),
        shutdown=ShutdownConfig(lame_duck_seconds=0, graceful_timeout_seconds=0.05),
        operations={
            "limited": OperationConfig(rate_limit=once),
            "narrow": OperationConfig(max_concurrent=1),
        },
    )


class Engine:
    """Pings until it is told not to."""

    broken = False

    async def ping(self) -> None:
        if self.broken:
            raise ConnectionError("no route")


async def workload(telemetry: CapturedTelemetry, rule_file: Path) -> str:
    engine = Engine()
    system = ProductionSystem(
        engine,
        configuration(rule_file),
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )

    async def call(name: str, operation: Callable[[], Any]) -> None:
        with suppress(ConnectionError, LlmkgOtelError):
            await system.execute_protected_operation(
                name, operation, user_id=USER, correlation_id="correlated-1"
            )

    await system.start()
    system.alerts._loop.run_once()
    engine.broken = True
    await system.health.run_once()
    system.alerts._loop.run_once()

    def fails() -> None:
        raise ConnectionError(f"{USER} is not known here")

    await call("steady", lambda: None)
    await call("flaky", failing_first(lambda: None))
    for _ in range(2):
        await call("doomed", fails)
        await call("limited", lambda: None)
    turn = threading.Event()
    first = asyncio.create_task(call("narrow", turn.wait))
    await asyncio.sleep(0)
    second = asyncio.create_task(call("narrow", lambda: None))
    await asyncio.sleep(0)
    turn.set()
    await asyncio.gather(first, second)
    system.resources.observe(ResourceUsage(memory=1e15))
    await call("steady", lambda: None)
    system.resources.observe(ResourceUsage(memory=1e6))
    break_telemetry_once(telemetry)
    await call("steady", lambda: None)
    text = system.get_prometheus_metrics()

    hanging = asyncio.create_task(call("steady", asyncio.Event().wait))
    await asyncio.sleep(0)
    await system.shutdown()
    await asyncio.wait({hanging})
    await call("steady", lambda: None)
    return text


def break_telemetry_once(telemetry: CapturedTelemetry) -> None:
    errors: Iterator[Exception] = iter([OSError("an exporter's own")])

    def on_end(_span: object) -> None:
        for error in errors:
            raise error

    broken: Any = SimpleNamespace(
        on_start=lambda *_args, **_kwargs: None,
        _on_ending=lambda _span: None,
        on_end=on_end,
        force_flush=lambda _milliseconds: True,
        shutdown=lambda: None,
    )
    telemetry.tracer_provider.add_span_processor(broken)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    rule_file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rule_file.write_text(ALERT)
    logger = logging.getLogger("llmkg_otel")
    level = logger.level
    with captured_telemetry() as telemetry:
        handler = LoggingHandler(logger_provider=telemetry.logger_provider)
        logger.addHandler(handler)
        collected: list[Metric] = []
        observing = ProductionSystem._flush

        async def flush(system: ProductionSystem, seconds: float) -> str | None:
            collected.extend(telemetry.metrics().values())  # live values end with the system
            return await observing(system, seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProductionSystem, "_flush", flush)
            prometheus = asyncio.run(workload(telemetry, rule_file))
        collected.extend(telemetry.metrics().values())
        yield Exported(collected, telemetry.spans(), telemetry.logs(), prometheus)
        logger.removeHandler(handler)
        logger.setLevel(level)


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
    elsewhere = ("mcp.", "db.")  # by the server and by auto-instrumentation, which have tests of their own
    expected = {name for name in BY_NAME if not name.startswith(elsewhere)}
    assert {metric.name for metric in exported.metrics if points(metric)} == expected


def test_attributes_are_text_with_the_contracts_keys_and_values(exported: Exported) -> None:
    for metric in exported.metrics:
        allowed = BY_NAME[metric.name].attributes
        optional = {"error.type"} & set(allowed)
        for _, attributes in points(metric):
            assert set(allowed) - optional <= set(attributes) <= set(allowed), metric.name
            for key, value in attributes.items():
                assert isinstance(value, str)
                assert allowed[key] is None or value in (allowed[key] or ()), (metric.name, key, value)


def test_names_in_attributes_are_those_of_configuration_and_code(exported: Exported) -> None:
    seen: dict[str, set[object]] = {}
    for metric in exported.metrics:
        for _, attributes in points(metric):
            for key, value in attributes.items():
                seen.setdefault(key, set()).add(value)
    assert seen["llmkg.operation.name"] == OPERATIONS
    assert seen["name"] == OPERATIONS | set(semconv.RESOURCES)
    assert seen["pool"] == {"operations", "narrow"}
    assert seen["component"] == {
        *("engine", "resources", "rate_limit_store", "circuit_breakers", "alert_rules")
    }
    assert seen["error.type"] == {
        *("ConnectionError", "circuit_open", "rate_limited", "resource_exhausted"),
        *("cancelled", "draining", "OSError"),
    }


def test_durations_have_the_contracts_buckets(exported: Exported) -> None:
    histograms = [metric for metric in exported.metrics if isinstance(metric.data, Histogram)]
    assert histograms
    for metric in histograms:
        for point, _ in points(metric):
            assert isinstance(point, HistogramDataPoint)
            assert tuple(point.explicit_bounds) == DURATION_BUCKETS


def test_a_status_metric_has_one_point_per_state_and_one_of_them_is_1(exported: Exported) -> None:
    status = [metric for metric in exported.metrics if metric.name.endswith(".status")]
    assert len({metric.name for metric in status}) == 6
    for metric in status:
        groups: dict[object, dict[object, object]] = {}
        for point, attributes in points(metric):
            assert isinstance(point, NumberDataPoint)
            rest = tuple(sorted((k, v) for k, v in attributes.items() if k != "state"))
            groups.setdefault(rest, {})[attributes["state"]] = point.value
        for states in groups.values():
            assert set(states) == set(BY_NAME[metric.name].attributes["state"] or ())
            assert sorted(map(str, states.values())) == ["0"] * (len(states) - 1) + ["1"]


def test_every_span_is_in_the_documentation_with_its_attributes(exported: Exported) -> None:
    documented = {entry.name: set(entry.attributes) for entry in SPANS}
    for span in exported.spans:
        name = "{operation}" if span.name in OPERATIONS else span.name
        phase = name.startswith(f"{semconv.SHUTDOWN_SPAN}.")
        name = f"{semconv.SHUTDOWN_SPAN}.{{phase}}" if phase else name
        assert set(span.attributes or {}) <= documented[name]
        assert span.kind.name == "INTERNAL"
        assert span.end_time is not None
    assert {span.name for span in exported.spans} >= OPERATIONS | {semconv.ATTEMPT_SPAN}


def test_every_event_is_in_the_documentation_and_is_emitted(exported: Exported) -> None:
    documented = {entry.name: {*entry.attributes, "otel.event.name"} for entry in EVENTS}
    named = [entry.log_record for entry in exported.logs if entry.log_record.event_name]
    assert {record.event_name for record in named} == set(documented)
    for record in named:
        assert set(record.attributes or {}) <= documented[record.event_name or ""]


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
    ours = {family for family in families if family.startswith("llmkg_")}
    only_in_a_shutdown = {semconv.SHUTDOWN_PHASE_DURATION.name, semconv.SHUTDOWN_OPERATIONS.name}
    now = [i for i in INSTRUMENTS if i.name.startswith("llmkg.") and i.name not in only_in_a_shutdown]
    assert ours == {prometheus_name(instrument) for instrument in now}


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
