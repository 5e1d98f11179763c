"""A FastMCP of somebody else's with event streams: a stream is the answer to a call, and ends with it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastmcp
import httpx2
import mcp
import pytest
from support import streaming_server
from support.servers import DEADLINE_SECONDS, http_get, wait_until

from llmkg_otel.errors import ConfigurationError
from llmkg_otel.server.middleware import ProductionMiddleware
from llmkg_otel.server.serve import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.servers import RunningServer, Servers

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

PROGRAM = [sys.executable, str(Path(streaming_server.__file__))]
STEPS = 15
POST = {"accept": "application/json, text/event-stream"}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "research", "arguments": {"steps": 2}, "_meta": {"progressToken": 7}},
}


async def research_through(client: Any, told: list[float], **how: Any) -> Any:
    async def progress(done: float, _total: float | None, _message: str | None) -> None:
        told.append(done)

    how["progress_handler" if isinstance(client, fastmcp.Client) else "progress_callback"] = progress
    return await client.call_tool("research", {"steps": STEPS}, **how)


def connect(kind: str, url: str) -> Any:
    return fastmcp.Client(url) if kind == "fastmcp" else mcp.Client(url, mode=kind)


@pytest.mark.parametrize("kind", ["legacy", "auto", "2026-07-28", "fastmcp"])
async def test_a_stream_that_is_open_at_sigterm_ends_with_its_answer_and_all_its_progress(
    servers: Servers, kind: str
) -> None:
    server = servers.start(env={"LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "3"}, program=PROGRAM)
    told: list[float] = []
    async with connect(kind, server.mcp_url) as client:
        call = asyncio.create_task(research_through(client, told))
        await asyncio.to_thread(wait_until, lambda: told, "progress")
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: "lame_duck" in readiness(server), "the lame duck")
        result = await call
        assert not result.is_error
        assert result.content[0].text == "found"
    assert told == [float(step) for step in range(1, STEPS + 1)]
    assert await asyncio.to_thread(server.process.wait, DEADLINE_SECONDS) == 0


async def test_a_stream_in_the_drain_ends_with_its_answer_too(servers: Servers) -> None:
    server = servers.start(program=PROGRAM)
    told: list[float] = []
    async with mcp.Client(server.mcp_url, mode="2026-07-28") as client:
        await client.list_tools()
        call = asyncio.create_task(research_through(client, told))
        await asyncio.to_thread(wait_until, lambda: told, "progress")
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: "draining" in readiness(server), "the drain")
        assert not (await call).is_error
    assert len(told) == STEPS
    assert await asyncio.to_thread(server.process.wait, DEADLINE_SECONDS) == 0


def readiness(server: RunningServer) -> str:
    return http_get(f"{server.ops_url}/readyz").body


@pytest.mark.parametrize(("option", "kind"), [((), "text/event-stream"), (("--json",), "application/json")])
def test_an_answer_is_a_stream_only_where_that_was_asked_for_and_nothing_else_can_be_opened(
    servers: Servers, option: tuple[str, ...], kind: str
) -> None:
    server = servers.start(*option, program=PROGRAM)
    answer = httpx2.post(server.mcp_url, json=CALL, headers=POST)
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert ("notifications/progress" in answer.text) == (kind == "text/event-stream")
    assert "found" in answer.text
    for version in ("2025-06-18", "2026-07-28"):
        headers = {"accept": "text/event-stream", "mcp-protocol-version": version}
        assert httpx2.get(server.mcp_url, headers=headers).status_code == 405
    assert server.terminate() == 0


async def test_a_server_of_ones_own_is_not_open_to_others_though_tokens_are_configured(
    make_system: MakeSystem,
) -> None:
    system = make_system(
        server={"host": "0.0.0.0", "port": 0, "ops_port": 0}, auth_tokens={"ann": "secret-of-ann"}
    )
    open_to_all = fastmcp.FastMCP("theirs", middleware=[ProductionMiddleware(system)])
    with pytest.raises(ConfigurationError, match="give a server of your own its `auth`"):
        await serve(system, open_to_all)
