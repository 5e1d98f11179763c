"""Whatever hangs, `llmkg-otel serve` has ended when the time it was given is over."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mcp import Client
from support import hanging_server
from support.servers import SCRIPTS, Servers, http_get, wait_until

from llmkg_otel.config import ProductionConfig
from llmkg_otel.shutdown.budget import shutdown_deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.servers import RunningServer

QUICK = {
    "lame_duck_seconds": "0.1",
    "graceful_timeout_seconds": "0.3",
    "cleanup_timeout_seconds": "0.3",
    "flush_timeout_seconds": "0.5",
}
ENVIRONMENT = {f"LLMKG_SHUTDOWN__{name.upper()}": value for name, value in QUICK.items()}
TOTAL = shutdown_deadline(ProductionConfig(shutdown=QUICK))
HANGING = [sys.executable, str(Path(hanging_server.__file__))]


CASES: dict[str, list[str]] = {
    "grpc": [],
    "http/protobuf": [],
    "call waits": [*HANGING, "find_facts", "waits"],
    "call blocks": [*HANGING, "find_facts", "blocks"],
    "close waits": [*HANGING, "aclose", "waits"],
    "close blocks": [*HANGING, "aclose", "blocks"],
    "backup waits": [*HANGING, "backup", "waits"],
}
"""What hangs, and the program that makes it hang."""


def environment(case: str, directory: Path, port: int) -> dict[str, str]:
    if case == "backup waits":
        saving = {"DIRECTORY": str(directory / "saved"), "TIMEOUT_SECONDS": "0.3"}
        return ENVIRONMENT | {f"LLMKG_CHECKPOINT__{name}": value for name, value in saving.items()}
    if case in ("grpc", "http/protobuf"):
        exporters = {f"OTEL_{what}_EXPORTER": "otlp" for what in ("TRACES", "METRICS", "LOGS")}
        endpoint = {"ENDPOINT": f"http://127.0.0.1:{port}", "PROTOCOL": case}
        return ENVIRONMENT | exporters | {f"OTEL_EXPORTER_OTLP_{k}": v for k, v in endpoint.items()}
    return ENVIRONMENT


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningServer]]:
    """A server for each case, started side by side; the collector accepts and never answers."""
    directory = tmp_path_factory.mktemp("hanging")
    servers = Servers(directory)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as black_hole:
        port = black_hole.getsockname()[1]
        started = {
            case: servers.start(
                env=environment(case, directory, port),
                program=program or [str(SCRIPTS / "llmkg-otel")],
                engine=f"{number}.db",
                wait=False,
            )
            for number, (case, program) in enumerate(CASES.items())
        }
        for server in started.values():
            server.wait_ready()
        yield started
    servers.kill_remaining()


def seconds_to_end(server: RunningServer) -> float:
    began = time.monotonic()
    server.terminate()
    return time.monotonic() - began


def bad_phases(server: RunningServer) -> set[str]:
    return {phase["name"] for phase in server.report()["phases"] if phase["outcome"] != "ok"}


async def call_in_flight(server: RunningServer) -> asyncio.Task[None]:
    """Return a call that the engine has begun, and will not end."""

    async def call() -> None:
        async with Client(server.mcp_url) as client:
            await client.call_tool("find_facts", {"subject": "x"})

    calling = asyncio.create_task(call())
    begun = 'llmkg_operation_active{llmkg_operation_name="find_facts"} 1.0'
    await asyncio.to_thread(
        wait_until, lambda: begun in http_get(f"{server.ops_url}/metrics").body, "a call in flight"
    )
    return calling


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_accepts_and_never_answers(hanging: dict[str, RunningServer], protocol: str) -> None:
    server = hanging[protocol]
    assert seconds_to_end(server) < TOTAL
    assert server.process.returncode == 1
    assert bad_phases(server) == {"flushing"}
    assert "Timeout (" not in server.log.read_text()  # it ended by itself, nobody had to end it


@pytest.mark.parametrize("how", ["waits", "blocks"])
async def test_an_engine_call_that_hangs(hanging: dict[str, RunningServer], how: str) -> None:
    server = hanging[f"call {how}"]
    calling = await call_in_flight(server)
    assert await asyncio.to_thread(seconds_to_end, server) < TOTAL + 0.5
    assert server.process.returncode == 1
    calling.cancel()
    await asyncio.wait({calling})
    if how == "waits":
        (cancelled,) = server.report()["cancelled"]
        assert cancelled["name"] == "find_facts"
        assert cancelled["age"] > 0.3
    else:  # nobody can report what the loop has no turn to see: the stacks tell where it hangs
        assert "hanging_server.py" in server.log.read_text()


@pytest.mark.parametrize("how", ["waits", "blocks"])
def test_an_engine_that_does_not_close(hanging: dict[str, RunningServer], how: str) -> None:
    server = hanging[f"close {how}"]
    assert seconds_to_end(server) < TOTAL + 0.5
    assert server.process.returncode == 1
    if how == "waits":
        assert "engine: not done within 0.3 s" in server.log.read_text()


def test_a_backup_that_hangs(hanging: dict[str, RunningServer]) -> None:
    server = hanging["backup waits"]
    assert seconds_to_end(server) < TOTAL + 0.3
    assert server.process.returncode == 1
    assert bad_phases(server) == {"checkpointing"}
