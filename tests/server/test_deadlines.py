"""Whatever hangs, `llmkg-otel serve` has ended when the time it was given is over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mcp import Client
from support import hanging_server
from support.servers import http_get, wait_until

from llmkg_otel.config import ProductionConfig
from llmkg_otel.shutdown.budget import shutdown_deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.servers import RunningServer, Servers

QUICK = {
    "lame_duck_seconds": "0.1",
    "graceful_timeout_seconds": "0.3",
    "cleanup_timeout_seconds": "0.3",
    "flush_timeout_seconds": "0.5",
}
ENVIRONMENT = {f"LLMKG_SHUTDOWN__{name.upper()}": value for name, value in QUICK.items()}
TOTAL = shutdown_deadline(ProductionConfig(shutdown=QUICK))
HANGING = [sys.executable, str(Path(hanging_server.__file__))]


def seconds_to_end(server: RunningServer) -> float:
    began = time.monotonic()
    server.terminate()
    return time.monotonic() - began


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Give a port whose connections are accepted and never answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]


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
def test_a_collector_that_accepts_and_never_answers(servers: Servers, protocol: str) -> None:
    with black_hole() as port:
        server = servers.start(
            env={
                **ENVIRONMENT,
                **{f"OTEL_{what}_EXPORTER": "otlp" for what in ("TRACES", "METRICS", "LOGS")},
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            }
        )
        assert seconds_to_end(server) < TOTAL
        assert server.process.returncode == 1
    bad = {phase["name"] for phase in server.report()["phases"] if phase["outcome"] != "ok"}
    assert bad == {"flushing"}
    assert "Timeout (" not in server.log.read_text()  # it ended by itself, nobody had to end it


@pytest.mark.parametrize("how", ["waits", "blocks"])
async def test_an_engine_call_that_hangs(servers: Servers, how: str) -> None:
    server = servers.start(env=ENVIRONMENT, program=[*HANGING, "find_facts", how])
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
def test_an_engine_that_does_not_close(servers: Servers, how: str) -> None:
    server = servers.start(env=ENVIRONMENT, program=[*HANGING, "aclose", how])
    assert seconds_to_end(server) < TOTAL + 0.5
    assert server.process.returncode == 1
    if how == "waits":
        assert "engine: not done within 0.3 s" in server.log.read_text()


def test_a_backup_that_hangs(servers: Servers, tmp_path: Path) -> None:
    saving = {"LLMKG_CHECKPOINT__DIRECTORY": str(tmp_path), "LLMKG_CHECKPOINT__TIMEOUT_SECONDS": "0.3"}
    server = servers.start(env=ENVIRONMENT | saving, program=[*HANGING, "backup", "waits"])
    assert seconds_to_end(server) < TOTAL + 0.3
    assert server.process.returncode == 1
    bad = {phase["name"] for phase in server.report()["phases"] if phase["outcome"] != "ok"}
    assert bad == {"checkpointing"}
