"""The Collector that `make collector` builds, as a child process on spare ports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.servers import http_get, spare_ports, wait_until

REPOSITORY = Path(__file__).parents[2]
CONFIGURATIONS = REPOSITORY / "collector"
QUICK = {
    "COLLECTOR_DECISION_WAIT": "2s",
    "COLLECTOR_SPANMETRICS_INTERVAL": "1s",
    "COLLECTOR_UPSTREAM_INSECURE": "true",
    "COLLECTOR_SELF_HOST": "127.0.0.1",
}


def collector_binary() -> str:
    """Return where it is, built now if need be (some minutes); skip without Go."""
    done = subprocess.run(
        [REPOSITORY / "scripts" / "collector.sh"], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip("Go is not installed, and no Collector was built before")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class Collector:
    """One of the configurations, running; a restart keeps its ports and its storage."""

    binary: str
    directory: Path
    configurations: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: spare_ports(5))

    def __post_init__(self) -> None:
        self._log = self.directory / "collector.log"
        self._began = False
        self.directory.mkdir(parents=True, exist_ok=True)

    def _environment(self) -> dict[str, str]:
        grpc, http, health, own, prometheus = self.ports
        addresses = {"GRPC": grpc, "HTTP": http, "HEALTH": health, "PROMETHEUS": prometheus}
        return {
            **os.environ,
            **QUICK,
            **{f"COLLECTOR_{name}": f"127.0.0.1:{port}" for name, port in addresses.items()},
            "COLLECTOR_SELF_PORT": str(own),
            "COLLECTOR_STORAGE": str(self.directory / "storage"),
            **self.environment,
        }

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    @property
    def prometheus(self) -> str:
        return f"http://127.0.0.1:{self.ports[4]}/metrics"

    def arguments(self) -> list[str]:
        return [part for name in self.configurations for part in ("--config", str(CONFIGURATIONS / name))]

    def start(self) -> None:
        """Start, and wait until it is ready; another's connection may have taken a port meanwhile."""
        for _ in range(5):
            before = self._log.stat().st_size if self._log.exists() else 0
            self._run()
            if wait_until(lambda: self._is_ready() or self._process.poll() is not None, "a start") and (
                self._process.poll() is None
            ):
                self._began = True
                return
            said = self._log.read_text()[before:]
            assert "address already in use" in said, said[-3000:]
            if self._began:
                time.sleep(0.5)  # those who know its address keep it
            else:
                self.ports = spare_ports(5)
        raise AssertionError(f"no ports are free: {self.ports}")

    def _run(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *self.arguments()],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _is_ready(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return http_get(f"http://127.0.0.1:{self.ports[2]}").status == 200
        return False

    def terminate(self) -> None:
        self._end(signal.SIGTERM)
        assert self._process.returncode == 0, self._log.read_text()[-3000:]

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        self._process.send_signal(number)
        self._process.wait(30)

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()

    def own(self, name: str) -> float:
        """Return the sum of one of its own metrics."""
        text = http_get(f"http://127.0.0.1:{self.ports[3]}/metrics").body
        return total(text, name)


def total(exposition: str, name: str) -> float:
    """Return the sum over a metric's series in Prometheus text."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == name
    )
