"""A metric has the same name, labels and value on /metrics and through the Collector."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.servers import http_get, spare_ports, wait_until

from llmkg_otel.telemetry.semconv import INSTRUMENTS
from llmkg_otel.telemetry.table import prometheus_name
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.collector import Collector

pytestmark = pytest.mark.timeout(900)

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
"""What Prometheus asks for; in the older format the Collector writes le="1", and all others le="1.0"."""
STEMS = {prometheus_name(each) for each in INSTRUMENTS}
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(exposition: str) -> Series:
    """Return the contract's series; an empty label is none, and who was scraped is Prometheus's to say."""
    return {
        (
            sample.name,
            frozenset((k, v) for k, v in sample.labels.items() if v and k not in {"job", "instance"}),
        ): float(sample.value)
        for family in text_string_to_metric_families(exposition)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if family.name in STEMS or f"{family.name}_total" in STEMS
    }


@pytest.fixture
def server(
    tmp_path: Path, collect: Callable[..., Collector]
) -> Iterator[tuple[Callable[[], str], Collector]]:
    """Run a server in trouble that is scraped and also pushes to an agent; return what the scrape gives."""
    with OtlpReceiver(protocol="grpc") as backend:
        agent = collect("agent.yaml", COLLECTOR_UPSTREAM=backend.endpoint)
        mcp_port, ops_port = spare_ports(2)
        environment = {
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": agent.http,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        with (tmp_path / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "support.faulted", str(tmp_path), str(mcp_port), str(ops_port)],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        yield lambda: http_get(f"http://127.0.0.1:{ops_port}/metrics", OPEN_METRICS).body, agent
        process.kill()
        process.wait()


def test_a_series_is_the_same_scraped_and_through_the_collector(
    server: tuple[Callable[[], str], Collector],
) -> None:
    scrape, agent = server

    def scraped() -> Series:
        try:
            return series(scrape())
        except OSError:  # not listening yet
            return {}

    def collected() -> Series:
        return series(http_get(agent.prometheus, OPEN_METRICS).body)

    seen = wait_until(lambda: found if len(names(found := scraped())) > 60 else None, "all of the trouble")
    assert wait_until(lambda: collected().keys() >= seen.keys(), "every series through the Collector")
    assert collected().keys() <= scraped().keys()
    histogram = "llmkg_operation_duration_seconds_count"
    before, through, after = (only(histogram, each()) for each in (scraped, collected, scraped))
    assert before.keys() <= after.keys()
    assert all(through[key] <= after[key] for key in through)  # pushed up to half a second ago


def test_exemplars_and_metrics_of_spans_come_through_the_collector(
    server: tuple[Callable[[], str], Collector],
) -> None:
    _, agent = server

    def open_metrics() -> str:
        return http_get(agent.prometheus, OPEN_METRICS).body

    def lines(start: str) -> list[str]:
        return [line for line in open_metrics().splitlines() if line.startswith(start)]

    def with_exemplar(start: str) -> list[str]:
        return [line for line in lines(start) if "# {" in line and "trace_id=" in line]

    assert wait_until(lambda: with_exemplar("llmkg_operation_duration_seconds_bucket"), "an exemplar")
    spans = wait_until(lambda: lines("traces_span_metrics_duration_seconds_count"), "metrics of spans")
    assert any('span_name="steady"' in line for line in spans)
    assert any('error_type="circuit_open"' in line for line in spans)
    assert lines("traces_span_metrics_calls_total")


def names(found: Series) -> set[str]:
    return {name for name, _ in found}


def only(name: str, found: Series) -> Series:
    return {key: value for key, value in found.items() if key[0] == name}
