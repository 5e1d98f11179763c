"""Measure how soon probes answer, idle and saturated: `python benchmarks/probes.py` (about 60 s).

A child process has the real engine and the real ports. Told to, it saturates both: 64 tasks store and search
through the protected call, and code that never awaits keeps the loop for 0.1 s at a time. Probes come from
here on new connections, as an orchestrator's do; slices without load, with it, and with it under Python's own
switch interval take turns. The floor is a process that does nothing but answer: what it loses under load is
the machine's doing, the rest is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc
from _measure import aligned, machine, verdict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmkg_otel import EmbeddedKnowledgeEngine, HealthCheckConfig, ProductionConfig, ProductionSystem
from llmkg_otel.engine.protocol import Fact
from llmkg_otel.health.monitor import HealthMonitor
from llmkg_otel.server.grpc_health import GrpcHealthServer
from llmkg_otel.server.ops import OpsServer
from llmkg_otel.server.serve import SWITCH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATHS = ("/livez", "/readyz", "/startupz", "/healthz")
TASKS = 64
BLOCK_SECONDS = 0.1
GRPC = "gRPC Check"
FLOOR = "floor: a bare process"
STATES = {"idle": SWITCH_SECONDS, "busy": SWITCH_SECONDS, "busy, 5 ms": 0.005}
"""Each state's switch interval."""
BARE = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\nok")
    connection.close()
"""
NO_LIMITS = {
    "rate_limiting": {"enabled": False},
    "resources": {"max_memory_bytes": 10**12, "max_cpu_percent": 100},
    "server": {"ops_port": 0, "grpc_health_port": 0},
    "shutdown": {"lame_duck_seconds": 0},
}


async def serve() -> None:
    """Be the child: print the addresses, then be in the state that each line of stdin names until it ends."""
    with tempfile.TemporaryDirectory() as directory:
        system = ProductionSystem(
            EmbeddedKnowledgeEngine(Path(directory) / "k.db"), ProductionConfig(**NO_LIMITS)
        )
        with OpsServer(system) as ops, GrpcHealthServer(system) as grpc_server:
            async with system:
                print(ops.url.removeprefix("http://"), grpc_server.address, flush=True)
                await take_orders(system)


async def take_orders(system: ProductionSystem) -> None:
    busy = asyncio.Event()
    load = [asyncio.create_task(saturate(system, busy, number)) for number in range(TASKS)]
    load.append(asyncio.create_task(block(busy)))
    while order := (await asyncio.to_thread(sys.stdin.readline)).strip():
        sys.setswitchinterval(STATES[order])
        (busy.clear if order == "idle" else busy.set)()
        print(order, flush=True)
    for task in load:
        task.cancel()
    await asyncio.wait(load)


async def saturate(system: ProductionSystem, busy: asyncio.Event, number: int) -> None:
    engine: EmbeddedKnowledgeEngine = system.engine
    for turn in count():
        await busy.wait()
        facts = [Fact(f"subject {number}", "knows", f"object {turn % 100}")]
        store, search = partial(engine.store_facts, facts), partial(engine.search, "subject object", limit=50)
        await system.execute_protected_operation("store_facts", store)
        await system.execute_protected_operation("search", search)


async def block(busy: asyncio.Event) -> None:
    while True:
        await busy.wait()
        end = time.monotonic() + BLOCK_SECONDS
        while time.monotonic() < end:
            sum(range(100))
        await asyncio.sleep(0)


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    silent = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | silent,
    ) as process:
        yield process
        pipe(process.stdin).close()
        process.terminate()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def ask_http(address: str, path: str) -> Callable[[], None]:
    def ask() -> None:
        with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
            connection.request("GET", path)
            connection.getresponse().read()

    return ask


def ask_grpc(address: str) -> Callable[[], None]:
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(address))
    return lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=10)


def measure(slices: int, probes: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every probe, by what was asked and by the child's state."""
    with child("-c", BARE) as bare, child(__file__, "--serve") as served:
        floor = pipe(bare.stdout).readline().strip()
        http_address, grpc_address = pipe(served.stdout).readline().split()
        asked = {FLOOR: ask_http(floor, "/")}
        asked |= {path: ask_http(http_address, path) for path in PATHS} | {GRPC: ask_grpc(grpc_address)}
        taken: dict[str, dict[str, list[float]]] = {name: {state: [] for state in STATES} for name in asked}
        for state in [*STATES] * slices:
            pipe(served.stdin).write(state + "\n")
            pipe(served.stdin).flush()
            pipe(served.stdout).readline()
            time.sleep(0.2)
            for _ in range(probes):
                for name, ask in asked.items():
                    began = time.perf_counter()
                    ask()
                    taken[name][state].append(time.perf_counter() - began)
                    time.sleep(0.002)
    return taken


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1e3


def report(taken: dict[str, dict[str, list[float]]]) -> list[str]:
    header = [f"{state} {q}" for state in STATES for q in ("p50", "p99")]
    rows = [["ms", *header, "busy p50 x", "busy p99 x"]]
    floor = [quantile(taken[FLOOR]["busy"], q) for q in (0.5, 0.99)]
    for name, times in taken.items():
        values = [quantile(times[state], q) for state in STATES for q in (0.5, 0.99)]
        ratios = [f"{quantile(times['busy'], q) / at:.1f}" for q, at in zip((0.5, 0.99), floor, strict=True)]
        rows.append([name, *(f"{value:.2f}" for value in values), *ratios])
    worst = max(quantile(times["busy"], 0.99) for name, times in taken.items() if name != FLOOR)
    told = f"{len(taken[FLOOR]['busy'])} probes of each kind in each state; ratios are to the floor"
    return [told, aligned(rows), verdict("worst p99 while busy", worst, 5, at_most=True, unit=" ms"), ""]


class Silent:
    def on_event(self, _event: object) -> None:
        pass


async def fifty_checks(kind: str, rounds: int) -> float:
    """Return the median seconds that 50 checks of 0.1 s take together."""

    async def on_loop() -> None:
        await asyncio.sleep(0.1)

    def on_thread() -> None:
        time.sleep(0.1)

    monitor = HealthMonitor(HealthCheckConfig(), Silent())
    for number in range(50):
        asynchronous = kind == "async" or (kind == "both" and number % 2)
        monitor.register(f"component-{number}", on_loop if asynchronous else on_thread)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await monitor.run_once()
        times.append(time.perf_counter() - began)
    return sorted(times)[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=10, help="slices of each state (10)")
    parser.add_argument("--probes", type=int, default=30, help="probes of each kind in a slice (30)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    print(f"{machine()}\n")
    print("\n".join(report(measure(options.slices, options.probes))))
    for kind in ("async", "sync", "both"):
        seconds = asyncio.run(fifty_checks(kind, 9))
        print(verdict(f"50 checks of 0.1 s, {kind},", seconds, 0.15, at_most=True, unit=" s"))


if __name__ == "__main__":
    main()
