"""Each dashboard query finds what it is about, in a real Prometheus that scraped a server in trouble."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.collector import Collector, collector_binary
from support.servers import http_get, spare_ports, wait_until

from llmkg_otel.dashboards import BOARDS
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TROUBLE_SECONDS = 12
VARIABLES = {
    "$__rate_interval": "4s",
    "$__range": "10s",
    "$instance": ".*",
    "$operation": ".*",
    "$objective": "0.999",
    "$latency": "0.5",
}
UNPROVOKED = (
    "otelcol_exporter_enqueue_failed",  # a queue of 256 MiB that is full
    "otel_sdk_exporter_span_exported_total",  # an agent that is away for longer than the SDK tries
    "otel_sdk_exporter_log_exported_total",
)
"""What this run does not bring about."""
QUERIES = [
    pytest.param(query, id=f"{board.uid}: {panel.title} {index}")
    for board in BOARDS
    for panel in board.panels()
    for index, query in enumerate(panel.queries)
]


@dataclass
class Prometheus:
    """A server that keeps what it scraped, and the time of the trouble."""

    url: str
    began: float
    ended: float = 0

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of an expression over the time of the trouble."""
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        assert "$" not in expr
        asked = {"query": expr, "start": self.began, "end": self.ended, "step": 1}
        answer = http_get(f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}")
        assert answer.status == 200, answer.body
        series: list[dict[str, Any]] = json.loads(answer.body)["data"]["result"]
        return [each for each in series if any(value != "NaN" for _, value in each["values"])]

    def exemplars(self, expr: str) -> Any:
        asked = {"query": expr, "start": self.began, "end": self.ended}
        answer = http_get(f"{self.url}/api/v1/query_exemplars?{urllib.parse.urlencode(asked)}")
        return json.loads(answer.body)["data"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run the troubled server, an agent and a gateway; scrape all until the server has shut down."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    directory = tmp_path_factory.mktemp("trouble")
    with OtlpReceiver() as backend:
        binary = collector_binary()
        gateway = Collector(
            binary,
            directory / "gateway",
            ("gateway.yaml",),
            {"COLLECTOR_UPSTREAM": f"{backend.endpoint}/nowhere"},
        )  # the gateway loses all
        gateway.start()
        agent = Collector(binary, directory / "agent", ("agent.yaml",), {"COLLECTOR_UPSTREAM": gateway.grpc})
        agent.start()
        mcp_port, ops_port, port = spare_ports(3)
        targets = [f"127.0.0.1:{each}" for each in (ops_port, agent.ports[3], gateway.ports[3])]
        pushed = f"127.0.0.1:{agent.ports[4]}"  # has what a shutdown counts at its very end
        scraping = _start_prometheus(program, directory, port, {"llmkg": targets, "collected": [pushed]})
        server = _start_server(directory, mcp_port, ops_port, agent)
        try:
            found = Prometheus(f"http://127.0.0.1:{port}", time.time())
            wait_until(lambda: _finds(found, "llmkg_operation_duration_seconds_count"), "the first scrape")
            time.sleep(TROUBLE_SECONDS)  # what rates need cannot be had faster
            server.terminate()
            assert server.wait(30) == 0, (directory / "server.log").read_text()[-2000:]
            ended = "llmkg_shutdown_operations_total"
            wait_until(lambda: _finds(found, ended), "the last push")
            yield found
        finally:
            for process in (server, scraping):
                process.kill()
                process.wait()
            agent.close()
            gateway.close()


def _start_prometheus(
    program: str, directory: Path, port: int, jobs: dict[str, list[str]]
) -> subprocess.Popen[bytes]:
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {"job_name": job, "honor_labels": job == "collected", "static_configs": [{"targets": targets}]}
            for job, targets in jobs.items()
        ],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [program, f"--config.file={directory / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (directory / "prometheus.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--enable-feature=exemplar-storage"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _start_server(directory: Path, mcp_port: int, ops_port: int, agent: Collector) -> subprocess.Popen[bytes]:
    environment = {
        "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_BSP_MAX_QUEUE_SIZE": "40",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "40",
        "OTEL_BLRP_MAX_QUEUE_SIZE": "4",
        "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "4",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{agent.grpc}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with (directory / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "support.faulted", str(directory), str(mcp_port), str(ops_port)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _finds(found: Prometheus, expr: str) -> bool:
    found.ended = time.time()
    with contextlib.suppress(OSError):  # not listening yet
        if http_get(f"{found.url}/-/ready").status == 200:
            return bool(found.ask(expr))
    return False


@pytest.mark.timeout(900)
@pytest.mark.parametrize("query", QUERIES)
def test_a_query_finds_what_it_is_about(query: Any, prometheus: Prometheus) -> None:
    series = prometheus.ask(query.expr)
    assert series or (query.quiet and any(name in query.expr for name in UNPROVOKED))
    told = {label for each in series for label in each["metric"]}
    assert not series or set(re.findall(r"{{(\w+)}}", query.legend)) <= told


@pytest.mark.timeout(900)
def test_a_dot_in_a_graph_of_durations_leads_to_a_trace(prometheus: Prometheus) -> None:
    found = prometheus.exemplars("llmkg_operation_duration_seconds_bucket")
    assert any(each["labels"].get("trace_id") for series in found for each in series["exemplars"])
