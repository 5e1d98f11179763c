"""Instances behind a real load balancer are restarted one by one; no client notices.

RESTARTS=15, five rounds over the three instances, is what docs/faults.md reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import mcp
import pytest
from support.servers import Servers, http_get, spare_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from support.servers import RunningServer

    Balancer = Callable[["Instances", Path], contextlib.AbstractContextManager[str]]

RESTARTS = int(os.environ.get("RESTARTS", "1"))
DEPLOY = Path(__file__).parents[2] / "deploy"
ENVIRONMENT = {
    "LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "1.5",
    "LLMKG_RESOURCES__MAX_CPU_PERCENT": "100",
    "LLMKG_RATE_LIMITING__ENABLED": "false",
}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "find_facts", "arguments": {"subject": "x"}},
}

pytestmark = pytest.mark.timeout(60 + 15 * RESTARTS)


@dataclass
class Instances:
    """Three servers, each at an address that it keeps over restarts."""

    servers: Servers
    ports: list[tuple[int, int]]
    running: list[RunningServer] = field(default_factory=list)

    def start(self, number: int, *, wait: bool = True) -> RunningServer:
        mcp_port, ops_port = self.ports[number]
        return self.servers.start(
            *("--port", str(mcp_port), "--ops-port", str(ops_port)),
            env=ENVIRONMENT,
            engine=f"{number}.db",
            wait=wait,
        )

    def start_all(self) -> None:
        self.running = [self.start(number, wait=False) for number in range(len(self.ports))]
        for server in self.running:
            server.wait_ready()

    def restart(self, number: int) -> None:
        assert self.running[number].terminate() == 0
        self.running[number] = self.start(number)


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    ports = spare_ports(6)
    made = Instances(
        Servers(tmp_path_factory.mktemp("instances")), list(zip(ports[:3], ports[3:], strict=True))
    )
    made.start_all()
    yield made
    made.servers.kill_remaining()


@contextlib.contextmanager
def haproxy(instances: Instances, directory: Path) -> Iterator[str]:
    """Run the example configuration; give the URL of MCP behind it."""
    (port,) = spare_ports(1)
    addresses = {"MCP_BIND": f"127.0.0.1:{port}"}
    for number, (mcp_port, ops_port) in enumerate(instances.ports, 1):
        addresses |= {f"MCP_{number}": f"127.0.0.1:{mcp_port}", f"OPS_{number}": str(ops_port)}
    command = ["haproxy", "-db", "-f", str(DEPLOY / "haproxy" / "haproxy.cfg")]
    with running(command, directory, addresses):
        yield _serving(port)


@contextlib.contextmanager
def nginx(instances: Instances, directory: Path) -> Iterator[str]:
    """Run the example configuration, its names replaced by addresses."""
    (port,) = spare_ports(1)
    example = (DEPLOY / "nginx" / "llmkg.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
    for number, (mcp_port, _) in enumerate(instances.ports, 1):
        example = example.replace(f"llmkg-{number}:8000", f"127.0.0.1:{mcp_port}")
    scratch = "".join(
        f"{what}_temp_path {directory}/{what};"
        for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; events {{}}"
        f" http {{ access_log off; {scratch} {example} }}"
    )
    with running(["nginx", "-p", str(directory), "-c", str(config)], directory, {}):
        yield _serving(port)


@contextlib.contextmanager
def running(command: list[str], directory: Path, environment: dict[str, str]) -> Iterator[None]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    with (directory / f"{command[0]}.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def _serving(port: int) -> str:
    url = f"http://127.0.0.1:{port}/mcp"
    wait_until(lambda: _serves(url), "a balancer that serves")
    return url


def _serves(url: str) -> bool:
    with contextlib.suppress(OSError):
        return http_get(url).status == 405
    return False


@dataclass
class Load:
    """Clients that call on and on, and what did not go well."""

    url: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    failures: list[str] = field(default_factory=list)

    async def repeat(self, call: Callable[[], Awaitable[Any]]) -> None:
        while not self.stop.is_set():
            self.calls += 1
            try:
                problem = await call()
            except Exception as error:  # noqa: BLE001 - each is a failed request
                problem = repr(error)
            if problem:
                self.failures.append(str(problem))

    async def http_client(self) -> None:
        headers = {"accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(headers=headers, timeout=10) as client:

            async def call() -> str | None:
                answer = await client.post(self.url, json=CALL)
                well = answer.status_code == 200 and not answer.json()["result"].get("isError")
                return None if well else f"{answer.status_code} {answer.text[:200]}"

            await self.repeat(call)

    async def mcp_client(self, mode: str) -> None:
        async with mcp.Client(self.url, mode=mode) as client:

            async def call() -> str | None:
                result = await client.call_tool(
                    "store_fact", {"subject": "a", "predicate": "b", "object": "c"}
                )
                return str(result.content) if result.is_error else None

            await self.repeat(call)

    async def newcomers(self) -> None:
        async def call() -> str | None:
            async with mcp.Client(self.url) as client:
                result = await client.call_tool("find_facts", {"subject": "x"})
                return str(result.content) if result.is_error else None

        await self.repeat(call)


@contextlib.asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    running = Load(url)
    clients = [
        *(running.http_client() for _ in range(3)),
        *(running.mcp_client(mode) for mode in ("legacy", "2026-07-28")),
        running.newcomers(),
    ]
    tasks = [asyncio.create_task(client) for client in clients]
    try:
        yield running
    finally:
        running.stop.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("balancer", [haproxy, nginx])
async def test_a_rolling_restart_behind_a_balancer_fails_no_request(
    instances: Instances, tmp_path: Path, balancer: Balancer
) -> None:
    with balancer(instances, tmp_path) as url:
        async with load(url) as calling:
            for number in range(RESTARTS):
                await asyncio.to_thread(instances.restart, number % 3)
    assert calling.failures == []
    assert calling.calls > 30 * RESTARTS
