"""/metrics in OpenMetrics: exemplars, and a test for each fault of the stock reader that is put right."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import format_trace_id
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser
from support.monitoring import prometheus
from support.servers import http_get, wait_until

from llmkg_otel.config import ServerConfig
from llmkg_otel.errors import InvalidInputError
from llmkg_otel.server.ops import OpsServer
from llmkg_otel.telemetry.collected import CollectedMetrics
from llmkg_otel.telemetry.prometheus import PrometheusReader
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prometheus_client.samples import Exemplar
    from support.monitoring import Daemon

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
parse: Any = parser.text_string_to_metric_families


@dataclass
class Reading:
    collected: CollectedMetrics
    provider: MeterProvider
    tracers: TracerProvider

    def text(self) -> str:
        return self.collected.expose(OPENMETRICS)[1].decode()

    def exemplars(self, name: str) -> dict[str, Exemplar]:
        """Return what a parser of the format finds, by bucket."""
        families = parse(self.text())
        samples = [sample for family in families if family.name == name for sample in family.samples]
        return {sample.labels["le"]: sample.exemplar for sample in samples if sample.exemplar}

    def in_span(self, act: Callable[[], object]) -> str:
        with self.tracers.get_tracer("t").start_as_current_span("call") as span:
            act()
            return format(span.get_span_context().trace_id, "032x")


@pytest.fixture
def make_reading() -> Iterator[Callable[..., Reading]]:
    made: list[Any] = []

    def make(*, sampler: Any = None, **options: Any) -> Reading:
        collected, tracers = CollectedMetrics(), TracerProvider(sampler, shutdown_on_exit=False)
        provider = MeterProvider([collected.reader], shutdown_on_exit=False, **options)
        made.extend((provider, tracers))
        return Reading(collected, provider, tracers)

    yield make
    for provider in made:
        provider.shutdown()


@pytest.fixture
def reading(make_reading: Callable[..., Reading]) -> Reading:
    return make_reading()


def test_each_bucket_has_the_exemplar_of_its_latest_call(reading: Reading) -> None:
    wait = reading.provider.get_meter("t").create_histogram(
        "wait", unit="s", explicit_bucket_boundaries_advisory=[1.0, 2.0]
    )
    ids = {value: reading.in_span(partial(wait.record, value)) for value in (0.5, 1.0, 2.5, 3.0)}
    found = reading.exemplars("wait_seconds")
    assert {bound: (one.value, one.labels["trace_id"]) for bound, one in found.items()} == {
        "1.0": (1.0, ids[1.0]),
        "+Inf": (3.0, ids[3.0]),
    }
    for exemplar in found.values():
        assert set(exemplar.labels) == {"trace_id", "span_id"}
        assert abs(float(exemplar.timestamp or 0) - time.time()) < 60


def test_exemplars_outlast_the_collections_that_the_sdk_forgets_them_with(reading: Reading) -> None:
    wait = reading.provider.get_meter("t").create_histogram("wait", explicit_bucket_boundaries_advisory=[1.0])
    trace_id = reading.in_span(lambda: wait.record(0.5, {"op": "a"}))
    for _ in range(3):  # alerts and status collect between two scrapes
        reading.collected.collect()
    later = reading.in_span(lambda: wait.record(0.5, {"op": "b"}))
    text = reading.text()
    for operation, expected in (("a", trace_id), ("b", later)):
        (line,) = [li for li in text.splitlines() if f'le="1.0",op="{operation}"' in li]
        assert expected in line
    newest = reading.in_span(lambda: wait.record(0.25, {"op": "a"}))
    text = reading.text()
    assert trace_id not in text
    assert newest in text


def test_the_classic_text_format_has_none(reading: Reading) -> None:
    wait = reading.provider.get_meter("t").create_histogram("wait")
    reading.in_span(lambda: wait.record(0.5))
    assert " # {" in reading.text()
    assert " # {" not in reading.collected.expose()[1].decode()


def test_calls_outside_a_sampled_trace_leave_no_exemplar(make_reading: Callable[..., Reading]) -> None:
    reading = make_reading(sampler=ALWAYS_OFF)
    wait = reading.provider.get_meter("t").create_histogram("wait")
    wait.record(1.0)
    reading.in_span(lambda: wait.record(2.0))
    assert not reading.exemplars("wait")
    assert "wait_count 2.0" in reading.text()


def test_one_name_in_two_meters_keeps_each_values_own_labels(reading: Reading) -> None:
    reading.provider.get_meter("one").create_counter("calls").add(1, {"b": "x"})
    reading.provider.get_meter("two").create_counter("calls", description="other").add(
        2, {"a": "y", "c": "z"}
    )
    samples = reading.collected.collect().named("calls_total")
    assert [(dict(s.labels), s.value) for s in samples] == [({"b": "x"}, 1.0), ({"a": "y", "c": "z"}, 2.0)]
    assert reading.text().count("# TYPE calls ") == 1


def test_the_scope_is_a_label_only_where_two_scopes_series_would_be_one(reading: Reading) -> None:
    for name, value in (("one", 1), ("two", 2)):
        meter = reading.provider.get_meter(name, "1.0", attributes={"team.name": name})
        meter.create_counter("calls").add(value, {"op": "x"})
        meter.create_counter(f"calls.of.{name}").add(value)
    samples = reading.collected.collect()
    first, second = samples.named("calls_total")
    assert (first.labels, first.value) == ({"op": "x"}, 1.0)
    assert second.value == 2.0
    scope = {"otel_scope_name": "two", "otel_scope_version": "1.0", "otel_scope_team_name": "two"}
    assert second.labels == {"op": "x"} | scope
    assert [dict(s.labels) for name in ("one", "two") for s in samples.named(f"calls_of_{name}_total")] == [
        {}
    ] * 2


def test_an_exponential_histogram_leaves_the_scrape_whole(make_reading: Callable[..., Reading]) -> None:
    exponential = View(instrument_type=Histogram, aggregation=ExponentialBucketHistogramAggregation())
    reading = make_reading(views=[exponential])
    meter = reading.provider.get_meter("t")
    meter.create_counter("calls").add(1)
    wait = meter.create_histogram("wait", unit="s")
    wait.record(0.5, {"op": "x"})
    trace_id = reading.in_span(lambda: wait.record(4.0, {"op": "x"}))
    samples = reading.collected.collect()
    assert samples.total("calls_total") == 1
    assert samples.total("wait_seconds_count", op="x") == 2
    assert samples.total("wait_seconds_sum", op="x") == 4.5
    assert [s.labels["le"] for s in samples.named("wait_seconds_bucket")] == ["+Inf"]
    assert reading.exemplars("wait_seconds")["+Inf"].labels["trace_id"] == trace_id


def test_a_name_of_two_types_is_left_out_once_and_told_of(
    reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    reading.provider.get_meter("one").create_counter("calls").add(1)
    reading.provider.get_meter("two").create_up_down_counter("calls").add(-5)
    for _ in range(2):
        assert [s.value for s in reading.collected.collect() if s.name.startswith("calls")] == [1.0]
    assert [r.getMessage() for r in caplog.records] == [
        "/metrics leaves out a gauge named calls: there is a counter of this name"
    ]


def one_series(reading: Reading, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Return the values of a name by labels; fails for a series that comes twice."""
    found: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in reading.collected.collect().named(name):
        key = tuple(sorted(sample.labels.items()))
        assert key not in found, (name, key)
        found[key] = sample.value
    return found


def test_an_empty_label_is_none_and_what_is_one_series_then_is_added_up(reading: Reading) -> None:
    meter = reading.provider.get_meter("t")
    calls, active = meter.create_counter("calls"), meter.create_up_down_counter("active")
    wait = meter.create_histogram("wait", explicit_bucket_boundaries_advisory=[1.0])
    for tenant, amount in (({}, 1), ({"tenant": ""}, 2), ({"tenant": "x"}, 4)):
        calls.add(amount, tenant)
        active.add(-amount, tenant)
        reading.in_span(partial(wait.record, amount / 2, tenant))
    x = (("tenant", "x"),)
    assert one_series(reading, "calls_total") == {(): 3, x: 4}
    assert one_series(reading, "active") == {(): -3, x: -4}
    assert one_series(reading, "wait_count") == {(): 2, x: 1}
    assert one_series(reading, "wait_sum") == {(): 1.5, x: 2}
    assert one_series(reading, "wait_bucket")[("le", "1.0"),] == 2
    assert reading.exemplars("wait")["1.0"]


def test_of_a_gauges_values_that_are_one_series_one_stands(reading: Reading) -> None:
    gauge = reading.provider.get_meter("t").create_gauge("level")
    gauge.set(5, {"tenant": ""})
    gauge.set(3)
    assert one_series(reading, "level") == {(): 3}


def test_keys_that_are_one_label_are_joined_in_their_order_and_le_is_the_histograms(reading: Reading) -> None:
    meter = reading.provider.get_meter("t")
    calls = meter.create_counter("calls")
    calls.add(1, {"a.b": "1"})
    calls.add(2, {"a_b": "1"})
    calls.add(4, {"a_b": "2", "a.b": "1"})
    meter.create_histogram("wait", explicit_bucket_boundaries_advisory=[1.0]).record(0.5, {"le": "x"})
    assert one_series(reading, "calls_total") == {(("a_b", "1"),): 3, (("a_b", "1;2"),): 4}
    assert one_series(reading, "wait_bucket")[("exported_le", "x"), ("le", "1.0")] == 1


def test_what_would_still_be_a_series_twice_is_left_out_once_and_told_of(
    reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    meter = reading.provider.get_meter("t")
    for value, name in enumerate(("a.b", "a_b", "a-b")):
        meter.create_counter(name).add(value + 1)
    meter.create_histogram("wait").record(1)
    meter.create_up_down_counter("wait_count").add(7)
    meter.create_up_down_counter("target_info").add(7)
    for _ in range(2):
        assert one_series(reading, "a_b_total") == {(): 1, (("otel_scope_name", "t"),): 2}
        assert one_series(reading, "wait_count") == {(): 1}
        assert 7 not in one_series(reading, "target_info").values()
    assert [r.getMessage() for r in caplog.records] == [
        "/metrics leaves out samples of a_b: the same series is there",
        "/metrics leaves out a gauge named wait_count: wait has samples of its name",
        "/metrics leaves out a gauge named target_info: target has samples of its name",
    ]


@pytest.mark.parametrize("bounds", [[2.0, 10.0, 20.0], [1.0, 10.0]])
def test_two_scopes_histograms_of_one_name_are_two_whole_series(bounds: list[float]) -> None:
    """Whatever their bounds: a bucket of one among those of the other would make both wrong."""
    collected, provider = CollectedMetrics(), MeterProvider()
    collected.attach(provider)
    attributes = {"db.system.name": "neo4j"}
    for scope, edges, value in (("ours", [1.0, 10.0], 5.0), ("theirs", bounds, 1.5)):
        meter = provider.get_meter(scope)
        histogram = meter.create_histogram("db.duration", "s", explicit_bucket_boundaries_advisory=edges)
        histogram.record(value, attributes)
    _, text = collected.expose("application/openmetrics-text; version=1.0.0")
    families: Any = parser.text_string_to_metric_families(text.decode())  # type: ignore[no-untyped-call]
    (family,) = [family for family in families if "db_dur" in family.name]
    scopes = [sample.labels.get("otel_scope_name", "") for sample in family.samples]
    assert scopes == [""] * 5 + ["theirs"] * (len(bounds) + 3)
    assert [sample.value for sample in family.samples if sample.name.endswith("_sum")] == [5.0, 1.5]


def test_promtool_and_prometheus_clients_parser_take_what_users_attributes_do_to_a_scrape(
    reading: Reading,
) -> None:
    meter, other = reading.provider.get_meter("t"), reading.provider.get_meter("u", "2")
    described: dict[str, Any] = {"description": "Planted."}
    attributes: list[dict[str, Any]] = [
        {},
        {"tenant": ""},
        {"a.b": "1", "a_b": "2"},
        {"le": "x", "quantile": "y", "__name__": "z"},
        {"ключ": 'x"y\n\\', "1st": True, "otel_scope_name": "u"},
        {"many": ("a", "b"), "number": 1.5},
    ]
    for each in (meter, other, meter):
        for labels in attributes:
            each.create_counter("a.b", **described).add(1, labels)
            each.create_counter("a_b", **described).add(1, labels)
            each.create_histogram("wait", unit="s", **described).record(1, labels)
            each.create_up_down_counter("wait.seconds.sum", **described).add(1, labels)
            each.create_gauge("level", **described).set(1, labels)
    classic = reading.collected.expose()[1]
    promtool = shutil.which("promtool") or pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=classic, capture_output=True, timeout=30, check=False
    )
    assert b"error while linting" not in done.stderr  # of the names it may think what it likes
    assert done.returncode in (0, 3)
    series = [line.rpartition(b" ")[0] for line in classic.splitlines() if not line.startswith(b"#")]
    assert len(series) > 50
    assert len(set(series)) == len(series)
    assert {sample.value for family in parse(reading.text()) for sample in family.samples}


def test_a_flush_is_not_told_a_second_time(reading: Reading) -> None:
    reading.provider.get_meter("t").create_counter("calls").add(1)
    reading.provider.force_flush()
    assert [s.value for s in reading.collected.collect().named("calls_total")] == [1.0]


def test_the_resource_is_in_target_info_and_on_no_series(make_reading: Callable[..., Reading]) -> None:
    reading = make_reading(resource=Resource({"service.name": "shop", "service.instance.id": "i-1"}))
    reading.provider.get_meter("t").create_counter("calls").add(1)
    samples = reading.collected.collect()
    assert samples.named("target_info", service_name="shop", service_instance_id="i-1")
    assert [dict(s.labels) for s in samples.named("calls_total")] == [{}]


def test_over_otlp_the_exemplars_arrive_as_well(make_reading: Callable[..., Reading]) -> None:
    with OtlpReceiver() as collector:
        exporter = OTLPMetricExporter(f"{collector.endpoint}/v1/metrics")
        exporting = PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)
        reading = make_reading()
        reading.provider.add_metric_reader(exporting)
        wait = reading.provider.get_meter("t").create_histogram("wait")
        trace_id = reading.in_span(lambda: wait.record(0.5))
        reading.collected.collect()
        exporting.force_flush()
        (point,) = collector.metric("wait").values()
        assert point.exemplars == ((0.5, trace_id),)
        assert reading.exemplars("wait")["5.0"].labels["trace_id"] == trace_id


def mixed_up(collect: Callable[[], Any], provider: MeterProvider) -> None:
    provider.get_meter("one").create_counter("calls").add(1, {"b": "x"})
    provider.get_meter("two").create_counter("calls").add(2, {"a": "y"})
    (family,) = [family for family in collect() if family.name == "calls"]
    assert [sample.labels for sample in family.samples] == [{"b": "x"}, {"a": "y"}]


def told_twice(collect: Callable[[], Any], provider: MeterProvider) -> None:
    provider.get_meter("one").create_counter("calls").add(1)
    provider.force_flush()
    assert sum(len(family.samples) for family in collect() if family.name == "calls") == 1


def without_exemplars(collect: Callable[[], Any], provider: MeterProvider) -> None:
    wait = provider.get_meter("one").create_histogram("wait")
    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("call"):
        wait.record(1.0)
    assert [sample for family in collect() for sample in family.samples if sample.exemplar]


def a_series_twice(collect: Callable[[], Any], provider: MeterProvider) -> None:
    for attributes in ({}, {"tenant": ""}):
        provider.get_meter("one").create_counter("calls").add(1, attributes)
    (family,) = [family for family in collect() if family.name == "calls"]
    assert len(family.samples) == len(
        {frozenset(s.labels.items()) - {("tenant", "")} for s in family.samples}
    )


@pytest.mark.parametrize("fault", [mixed_up, told_twice, without_exemplars, a_series_twice])
def test_the_stock_reader_still_has_the_faults_that_ours_is_for(fault: Callable[..., None]) -> None:
    for ours in (True, False):
        registry = CollectorRegistry(auto_describe=False)
        reader = (
            PrometheusReader(registry)
            if ours
            else PrometheusMetricReader(registry=registry, scope_info_enabled=False)
        )
        provider = MeterProvider([reader], shutdown_on_exit=False)
        if ours:
            fault(registry.collect, provider)
        else:
            with pytest.raises(AssertionError):
                fault(registry.collect, provider)
        provider.shutdown()


def test_a_real_prometheus_returns_the_trace_id_of_a_failed_call(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry, tmp_path: Path
) -> None:
    system = make_system(server=ServerConfig(ops_port=0))

    def fail() -> None:
        raise InvalidInputError("not that")

    with pytest.raises(InvalidInputError):
        system.execute_protected_operation_sync("find", fail)
    with OpsServer(system) as ops:
        answer = http_get(f"{ops.url}/metrics", {"accept": OPENMETRICS})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        scraped = {"job_name": "ours", "static_configs": [{"targets": [ops.url.removeprefix("http://")]}]}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scraped]}
        server = prometheus(tmp_path / "prometheus", config, "--enable-feature=exemplar-storage")
        server.start()
        try:
            found = wait_until(lambda: exemplars_in(server), "an exemplar of a failed call")
        finally:
            server.kill()
    (span,) = telemetry.spans("find")
    assert span.context is not None
    (series,) = found
    assert series["seriesLabels"]["llmkg_operation_name"] == "find"
    ids = {exemplar["labels"]["trace_id"] for exemplar in series["exemplars"]}
    assert ids == {format_trace_id(span.context.trace_id)}


def exemplars_in(server: Daemon) -> Any:
    now = time.time()
    query = 'llmkg_operation_duration_seconds_bucket{error_type!=""}'
    answer = server.get("/api/v1/query_exemplars", query=query, start=str(now - 60), end=str(now + 60))
    return answer["data"]
