"""Servers of several worker processes: what they export, each for itself, adds up to what was called."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.servers import DEADLINE_SECONDS, http_get, spare_ports

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
APP = "support.worker_app:app"
DURATION = "llmkg.operation.duration"
CALL_SECONDS = 40.0
"""Two workers import everything first, on two cores that others use as well."""
SERVERS = {
    "uvicorn": ["uvicorn", APP, "--workers", "2", "--port", "{port}", "--log-level", "warning"],
    "gunicorn": [
        *("gunicorn", APP, "--workers", "2", "--bind", "127.0.0.1:{port}", "--log-level", "warning"),
        *("--worker-class", "uvicorn_worker.UvicornWorker", "--worker-tmp-dir", "/dev/shm"),
    ],
}


@contextmanager
def serving(server: str, environment: dict[str, str], log: Path) -> Iterator[str]:
    (port,) = spare_ports(1)
    command = [sys.executable, "-m", *(part.format(port=port) for part in SERVERS[server])]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "LLMKG_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=inherited | {"PYTHONPATH": path} | environment, stdout=output, stderr=output
        )
    try:
        yield f"http://127.0.0.1:{port}/call"
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(DEADLINE_SECONDS)


def called(url: str) -> dict[str, Any] | None:
    """Call once; None: nobody listened. A call that is given up might be counted, so none is."""
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        with urllib.request.urlopen(url, timeout=CALL_SECONDS) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told
    return None


def counts_of(ops_url: str) -> float:
    """Return how many calls one worker's own /metrics tells of."""
    families: Any = text_string_to_metric_families(http_get(f"{ops_url}/metrics").body)
    name = "llmkg_operation_duration_seconds_count"
    return float(sum(each.value for family in families for each in family.samples if each.name == name))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", SERVERS)
def test_two_workers_push_and_serve_what_each_was_called(server: str, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with OtlpReceiver() as collector:
        environment = collector.environment() | {"OTEL_METRIC_EXPORT_INTERVAL": "300"}
        with serving(server, environment, log) as url:
            calls: Counter[int] = Counter()
            addresses = {}

            def call() -> None:
                if (told := called(url)) is not None:
                    calls[told["worker"]] += 1
                    addresses[told["worker"]] = told["ops_url"]

            while len(calls) < 2:  # as long as the test may take
                call()
                time.sleep(0.02)
            for _ in range(40):
                call()
            assert {worker: counts_of(ops_url) for worker, ops_url in addresses.items()} == calls
            assert collector.wait_until(lambda r: pushed(r) == sorted(calls.values()), 15), pushed(collector)
        assert pushed(collector) == sorted(calls.values())  # the last push, at the end, is the same
        assert len(collector.instances()) == 2
    assert "Traceback" not in log.read_text()


def pushed(collector: OtlpReceiver) -> list[int]:
    """Return how many calls each worker has told of."""
    each = [collector.metric(DURATION, instance=instance) for instance in collector.instances()]
    return sorted(sum(point.count for point in points.values()) for points in each)
