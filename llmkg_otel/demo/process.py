"""The server as a child process: configure, start, wait until ready, signal, and read its report."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmkg_otel.testing import OtlpReceiver

__all__ = ["ServerFailedError", "ServerProcess", "configuration", "fetch"]

COMMAND = ("-m", "llmkg_otel.demo.server")
_READY_SECONDS = 20.0
_EXIT_SECONDS = 30.0


class ServerFailedError(RuntimeError):
    """The server ended, or did not do what it was told in time; the message ends with its last words."""


def configuration(directory: Path, tokens: Mapping[str, str]) -> dict[str, Any]:
    """Return the server's configuration: spare ports, limits that a busy client meets, quick recovery.

    The circuit recovers in 2 s, where a default would outlast the run, and the CPU limit is off:
    clients and server share a small machine here.
    """
    mcp_port, ops_port = _spare_ports(2)
    return {
        "server": {"port": mcp_port, "ops_port": ops_port},
        "engine": {"path": str(directory / "knowledge.db")},
        "auth_tokens": dict(tokens),
        "rate_limiting": {
            "requests_per_second": 1000,
            "burst_capacity": 2000,
            "per_user": {"requests_per_second": 10, "burst_capacity": 10},
        },
        "resources": {"max_cpu_percent": 100},
        "retry": {"base_delay_ms": 50, "max_delay_ms": 500},
        "circuit_breaker": {"recovery_timeout": 2, "success_threshold": 2, "timeout": 5},
        "shutdown": {"lame_duck_seconds": 1, "graceful_timeout_seconds": 10},
    }


class ServerProcess:
    """One run of `python -m llmkg_otel.demo.server`, with its log and its report in a directory.

    Use from one event loop. It has a session of its own, so Ctrl-C in the terminal does not reach it:
    whoever started it decides when it ends. `close()` kills it if it still runs.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self._config_file = directory / "config.yaml"
        self._report_file = directory / "shutdown.json"
        self._log_file = directory / "server.log"
        self._config_file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        self._config_file.chmod(0o600)  # it holds the tokens
        self._process: asyncio.subprocess.Process | None = None
        server = config["server"]
        self.mcp_url = f"http://127.0.0.1:{server['port']}/mcp"
        self.ops_url = f"http://127.0.0.1:{server['ops_port']}"

    async def start(self, receiver: OtlpReceiver) -> None:
        """Start it, exporting to `receiver`, and wait for /readyz; raise ServerFailedError if it fails."""
        with self._log_file.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(*COMMAND, str(self._config_file), str(self._report_file)),
                env=_environment(receiver),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.returncode is not None:
                raise self._failed(f"the server ended with code {self._process.returncode}")
            if await fetch(f"{self.ops_url}/readyz") is not None:
                return
            await asyncio.sleep(0.05)
        raise self._failed(f"the server was not ready within {_READY_SECONDS:g} s")

    def send(self, signal_number: int) -> None:
        """Send a signal; do nothing when the process has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal_number)

    async def ended(self) -> dict[str, Any]:
        """Wait for the end; return the shutdown report. Raise ServerFailedError unless it exits with 0."""
        process = self._process
        if process is None:
            raise self._failed("the server was never started")
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                code = await process.wait()
        except TimeoutError:
            raise self._failed(f"the server did not end within {_EXIT_SECONDS:g} s") from None
        if code != 0 or not self._report_file.exists():
            raise self._failed(f"the server ended with code {code}")
        report: dict[str, Any] = json.loads(self._report_file.read_text(encoding="utf-8"))
        return report

    async def close(self) -> None:
        """Kill the process if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def _failed(self, what: str) -> ServerFailedError:
        log = self._log_file.read_text(errors="replace") if self._log_file.exists() else ""
        return ServerFailedError("\n".join([what, *log.splitlines()[-15:]]))


async def fetch(url: str) -> str | None:
    """Return the body of a 2xx answer, or None for anything else."""
    return await asyncio.to_thread(_fetch, url)


def _fetch(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own http URL
            body: bytes = response.read()
            return body.decode()
    except (OSError, urllib.error.URLError, ValueError):
        return None


def _environment(receiver: OtlpReceiver) -> dict[str, str]:
    """Return ours without the caller's settings for this layer, and with queues that drop nothing."""
    ours = ("LLMKG_", "OTEL_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    queues = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "200000",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2048",
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
        "OTEL_BLRP_MAX_QUEUE_SIZE": "200000",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
        "OTEL_SERVICE_NAME": "llmkg-demo",
    }
    return inherited | receiver.environment() | queues


def _spare_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; all are held at once, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
