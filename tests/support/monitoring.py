"""A real Prometheus and a real Alertmanager of the test's own, on spare loopback ports."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import yaml

from support.servers import spare_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass
class Daemon:
    """A server that can be stopped, hung, killed and started again at the same address."""

    command: list[str]
    url: str
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=self.log.parent
            )
        wait_until(self._is_ready, f"{self.command[0]}'s readiness")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def get(self, path: str, **parameters: str) -> Any:
        query = f"?{urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=5) as response:
            return json.load(response)


def _installed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@dataclass
class Alertmanager(Daemon):
    """Tells a webhook, as soon as it is told."""

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """Return the active alerts with these labels."""
        found: list[dict[str, Any]] = self.get("/api/v2/alerts", active="true")
        return [alert for alert in found if labels.items() <= alert["labels"].items()]

    def received(self, status: str) -> float:
        """Return how many alerts in this status it has been told since it started."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            page = response.read().decode()
        pattern = rf'^alertmanager_alerts_received_total{{status="{status}",version="v2"}} (\S+)'
        found = re.search(pattern, page, re.MULTILINE)
        assert found is not None, page
        return float(found[1])


def alertmanager(directory: Path, webhook: str, **route: str) -> Alertmanager:
    """Return one that is not started yet; what it is told it tells the webhook, in groups as `route` says."""
    directory.mkdir()
    [port] = spare_ports(1)
    quick = {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h", **route}
    config = {
        "route": {"receiver": "test", "group_by": ["alertname"], **quick},
        "receivers": [{"name": "test", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
    }
    (directory / "alertmanager.yaml").write_text(yaml.safe_dump(config))
    command = [
        *(_installed("prometheus-alertmanager"), f"--config.file={directory / 'alertmanager.yaml'}"),
        *(f"--storage.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
        "--cluster.listen-address=",  # alone: it would wait ten seconds for its peers
    ]
    return Alertmanager(command, f"http://127.0.0.1:{port}", directory / "log")


def prometheus(directory: Path, config: Mapping[str, Any], *flags: str) -> Daemon:
    """Return one with this configuration that is not started yet."""
    directory.mkdir()
    [port] = spare_ports(1)
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(dict(config)))
    command = [
        *(_installed("prometheus"), f"--config.file={directory / 'prometheus.yaml'}"),
        *(f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
        *flags,
    ]
    return Daemon(command, f"http://127.0.0.1:{port}", directory / "log")
