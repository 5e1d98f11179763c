"""Measure MCP calls a second with the layer and without: `python benchmarks/mcp_throughput.py` (about 40 s).

Four servers, each a child process on a loopback port of its own, take turns in answering the same clients:
bare   FastMCP with the same tools on the same engine, no middleware, under uvicorn
ours   what `llmkg-otel serve` runs: middleware, policies, probes, JSON logs
each with and without `get_tool_input_schema`, which spares mcp a whole tools/list before every call and
which `build_server` sets. All have the same SDK: spans in batches to nowhere, a Prometheus reader.

Clients and server share the machine. What a call costs the server alone is in the last column: CPU time of
its process, which does not depend on how fast the clients are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psutil
import uvicorn
from _measure import Contestant, Times, aligned, alternate, machine, verdict
from fastmcp import Client, FastMCP
from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from protected_call import PLENTY, Sdk
from startup import running, spare_ports

from llmkg_otel import EmbeddedKnowledgeEngine, ProductionConfig, create_production_system
from llmkg_otel.engine.protocol import Fact
from llmkg_otel.server import serve as serving
from llmkg_otel.server.mcp import _engine_tools, build_server
from llmkg_otel.server.ops import listen
from llmkg_otel.telemetry.logs import JsonLogs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

BARE, OURS = "bare", "ours"
KINDS = {  # what is shown -> (which server, whether it has the schema look-up)
    BARE: ("bare", False),
    "bare, schema look-up": ("bare", True),
    OURS: ("ours", True),
    "ours, no schema look-up": ("ours", False),
}
AT_LEAST = 0.9
CALL = ("find_facts", {"subject": "person7"})
READY_SECONDS = 30.0


# The children


def with_look_up(server: FastMCP, schemas: Mapping[str, Any] | None) -> FastMCP:
    server._mcp_server.get_tool_input_schema = None if schemas is None else schemas.get
    return server


def bare_server(engine: EmbeddedKnowledgeEngine, *, look_up: bool) -> FastMCP:
    server = FastMCP("bare")
    schemas = {tool.__name__: server.add_tool(tool).parameters for tool in _engine_tools(engine)}
    return with_look_up(server, schemas if look_up else None)


async def serve_bare(engine: EmbeddedKnowledgeEngine, port: int, *, look_up: bool) -> None:
    reader = PrometheusMetricReader()
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
    app = bare_server(engine, look_up=look_up).http_app(path="/mcp", stateless_http=True, json_response=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")
    await uvicorn.Server(config).serve(sockets=[listen("127.0.0.1", port)])


async def serve_ours(engine: EmbeddedKnowledgeEngine, port: int, ops_port: int, *, look_up: bool) -> None:
    metrics.set_meter_provider(MeterProvider())  # the system adds its Prometheus reader
    limits = {"rate_limit": PLENTY, "idempotent": True}
    config = ProductionConfig(
        server={"port": port, "ops_port": ops_port},
        rate_limiting=PLENTY | {"per_user": PLENTY},
        operations={CALL[0]: limits},
        resources={"max_cpu_percent": 100},
        shutdown={"lame_duck_seconds": 0},
    )
    with contextlib.ExitStack() as stack:
        if not look_up:
            without = patch.object(serving, "build_server", lambda s: with_look_up(build_server(s), None))
            stack.enter_context(without)
        stack.enter_context(JsonLogs("info"))
        await serving.serve(create_production_system(engine, config))


async def child(kind: str, directory: Path, port: int, ops_port: int) -> None:
    trace.set_tracer_provider(Sdk.make().tracer_provider)
    server, look_up = KINDS[kind]
    engine = EmbeddedKnowledgeEngine(directory / f"{port}.db")
    await engine.store_facts([Fact(f"person{i % 100}", "knows", f"person{i}") for i in range(1000)])
    if server == "bare":
        await serve_bare(engine, port, look_up=look_up)
    else:
        await serve_ours(engine, port, ops_port, look_up=look_up)


# The parent


@contextlib.contextmanager
def server_process(kind: str, directory: Path) -> Iterator[tuple[psutil.Process, int]]:
    port, ops_port = spare_ports(2)
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "LLMKG_"))}
    arguments = ["--child", json.dumps([kind, str(directory), port, ops_port])]
    command = [sys.executable, __file__, *arguments]
    with running(command, settings, directory / f"{port}.log") as process:
        yield psutil.Process(process.pid), port


async def until_listening(process: psutil.Process, port: int) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
    raise RuntimeError(f"the server on port {port} ended")


class Load:
    """Clients of one server that share out the calls of a slice, one call in flight each."""

    def __init__(self, process: psutil.Process, clients: list[Client[Any]]) -> None:
        self._process = process
        self._clients = clients
        self.cpu = 0.0
        self.calls = 0

    async def __call__(self, count: int) -> None:
        before = self._cpu()
        each = count // len(self._clients)
        await asyncio.gather(*(self._drive(client, each) for client in self._clients))
        self.cpu += self._cpu() - before
        self.calls += count

    async def _drive(self, client: Client[Any], count: int) -> None:
        for _ in range(count):
            result = await client.call_tool_mcp(CALL[0], CALL[1])
            if result.is_error:
                raise RuntimeError(f"refused: {result.content}")

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextlib.asynccontextmanager
async def loads(clients: int) -> AsyncIterator[dict[str, Load]]:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = {kind: stack.enter_context(server_process(kind, directory)) for kind in KINDS}
        made = {}
        for kind, (process, port) in started.items():
            await until_listening(process, port)
            url = f"http://127.0.0.1:{port}/mcp"
            connected = [await stack.enter_async_context(Client(url)) for _ in range(clients)]
            made[kind] = Load(process, connected)
        yield made


async def measure(slices: int, calls: int, clients: int) -> tuple[dict[str, Times], dict[str, float]]:
    """Return times a call, and the server's CPU seconds a call."""
    async with loads(clients) as made:
        contestants: dict[str, Contestant] = dict(made)
        measured = await alternate(contestants, slices=slices, calls=calls)
        return measured, {kind: load.cpu / load.calls for kind, load in made.items()}


def report(measured: Mapping[str, Times], cpu: Mapping[str, float]) -> Iterator[str]:
    bare = measured[BARE]
    rows = [["", "calls/s best", "p90", "median", "best x", "p90 x", "median x", "server CPU ms/call"]]
    for kind, times in measured.items():
        rates = [f"{1 / seconds:.0f}" for seconds in times]
        ratios = [f"{x:.2f}" for x in bare.ratios(times)]
        rows.append([kind, *rates, *ratios, f"{cpu[kind] * 1000:.2f}"])
    yield aligned(rows)
    yield ""
    yield verdict("calls/s of ours / bare, p90", bare.p10 / measured[OURS].p10, AT_LEAST, at_most=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=30, help="slices of each server (30)")
    parser.add_argument("--calls", type=int, default=32, help="calls in a slice (32)")
    parser.add_argument("--clients", type=int, default=8, help="clients of each server (8)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, directory, port, ops_port = json.loads(options.child)
        asyncio.run(child(kind, Path(directory), port, ops_port))
        return
    calls = options.calls // options.clients * options.clients
    print(f"{machine()}; {options.clients} clients, {options.slices} slices of {calls} calls each\n")
    print("\n".join(report(*asyncio.run(measure(options.slices, calls, options.clients)))))


if __name__ == "__main__":
    main()
