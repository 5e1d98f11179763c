"""Real processes for tests: servers started on spare loopback ports, and polite waiting."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEADLINE_SECONDS = 20.0
SCRIPTS = Path(sys.executable).parent


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str


def http_get(url: str, headers: dict[str, str] | None = None) -> Answer:
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return Answer(response.status, dict(response.headers), response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read().decode())


def spare_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; all are held at once, so they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Poll until the condition is true; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


@dataclass
class RunningServer:
    """`llmkg-otel serve` as a child process, its addresses read from its log."""

    process: subprocess.Popen[bytes]
    log: Path
    mcp_url: str = ""
    ops_url: str = ""

    def wait_ready(self) -> None:
        self.ops_url = self._logged(r"operators' port: (http://[^\"]+)")
        self.mcp_url = self._logged(r"MCP: (http://[^\"]+)")
        wait_until(self._is_ready, "readiness")

    def _logged(self, pattern: str) -> str:
        found = wait_until(lambda: re.search(pattern, self.log.read_text()), f"{pattern} in {self.log}")
        return str(found[1])

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(urllib.error.URLError):  # not listening yet
            return http_get(f"{self.ops_url}/readyz").status == 200
        return False

    def report(self) -> dict[str, Any]:
        """Return the shutdown report, as the last lines of the log tell it."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        report: dict[str, Any] = next(line["report"] for line in lines if "report" in line)
        return report

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_SECONDS)


@dataclass
class Servers:
    directory: Path
    started: list[RunningServer] = field(default_factory=list)

    def start(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        wait: bool = True,
        program: Sequence[str] = (str(SCRIPTS / "llmkg-otel"),),
        engine: str = "k.db",
    ) -> RunningServer:
        """Start `llmkg-otel serve`; OTEL_INSTRUMENT in `env` runs it under opentelemetry-instrument."""
        log = self.directory / f"server-{len(self.started)}.log"
        environment = {"LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "0", **(env or {})}
        instrumented = environment.pop("OTEL_INSTRUMENT", None) is not None
        command = [*program, "serve", "--port", "0", "--ops-port", "0", *arguments]
        command += ["--engine-path", str(self.directory / engine)]
        if instrumented:
            command = [str(SCRIPTS / "opentelemetry-instrument"), *command]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
            )
        server = RunningServer(process, log)
        self.started.append(server)
        if wait:
            server.wait_ready()
        return server

    def kill_remaining(self) -> None:
        for server in self.started:
            if server.process.poll() is None:
                server.process.kill()
            server.process.wait(DEADLINE_SECONDS)
