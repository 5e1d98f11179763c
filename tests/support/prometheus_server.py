"""A Prometheus of the test's own, on a spare port, that scrapes what the test names every second."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from support.servers import DEADLINE_SECONDS, http_get, spare_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["PrometheusServer", "running_prometheus"]


@dataclass(frozen=True)
class PrometheusServer:
    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of `/api/v1/{path}`, which must succeed."""
        answer = http_get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert answer.status == 200, answer.body
        return json.loads(answer.body)["data"]

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return an instant vector by its labels, less `instance` and `job`."""
        found = self.ask("query", query=expression)["result"]
        outer = ("instance", "job")
        return {
            tuple(sorted((k, v) for k, v in each["metric"].items() if k not in outer)): float(
                each["value"][1]
            )
            for each in found
        }

    def is_ready(self) -> bool:
        with contextlib.suppress(urllib.error.URLError):  # not listening yet
            return http_get(f"{self.url}/-/ready").status == 200
        return False


@contextmanager
def running_prometheus(
    directory: Path, targets: Sequence[str], *flags: str, rule_files: Sequence[str] = ()
) -> Iterator[PrometheusServer]:
    """Start one that scrapes `/metrics` of each host:port, or skip the test where none is installed."""
    path = shutil.which("prometheus")
    if path is None:
        pytest.skip("prometheus is not installed")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "test", "static_configs": [{"targets": list(targets)}]}],
        "rule_files": list(rule_files),
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    (port,) = spare_ports(1)
    command = [
        path,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        *flags,
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        server = PrometheusServer(f"http://127.0.0.1:{port}")
        wait_until(server.is_ready, "Prometheus's readiness")
        yield server
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)
