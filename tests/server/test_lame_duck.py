"""MCP clients of every kind in a shutdown: what they began ends well, and so does what follows."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastmcp
import httpx2
import mcp
from support import hanging_server
from support.servers import DEADLINE_SECONDS, http_get, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.servers import RunningServer, Servers

    Connect = Callable[[str], Any]

CLIENTS: dict[str, Connect] = {
    "mcp legacy": lambda url: mcp.Client(url, mode="legacy"),
    "mcp auto": lambda url: mcp.Client(url, mode="auto"),
    "mcp 2026-07-28": lambda url: mcp.Client(url, mode="2026-07-28"),
    "fastmcp": fastmcp.Client,
}
QUESTION = {"subject": "x"}
SLOW_SERVER = [sys.executable, str(Path(hanging_server.__file__)), "find_facts", "dawdles"]


def phase(server: RunningServer) -> str:
    return http_get(f"{server.ops_url}/readyz").body


async def reached(server: RunningServer, state: str) -> None:
    await asyncio.to_thread(wait_until, lambda: phase(server) == f"lifecycle: {state}", state)


async def in_flight(server: RunningServer, calls: int) -> None:
    begun = f'llmkg_operation_active{{llmkg_operation_name="find_facts"}} {calls}.0'
    await asyncio.to_thread(
        wait_until, lambda: begun in http_get(f"{server.ops_url}/metrics").body, f"{calls} calls in flight"
    )


async def test_what_is_in_flight_at_sigterm_completes_and_all_are_served_in_the_lame_duck(
    servers: Servers,
) -> None:
    server = servers.start(env={"LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "3"}, program=SLOW_SERVER)
    async with AsyncExitStack() as stack:
        warmed = [await stack.enter_async_context(make(server.mcp_url)) for make in CLIENTS.values()]
        for client in warmed:
            await client.call_tool("get_stats", {})
        cold = [await stack.enter_async_context(make(server.mcp_url)) for make in CLIENTS.values()]
        begun = [asyncio.create_task(client.call_tool("find_facts", QUESTION)) for client in (*warmed, *cold)]
        await in_flight(server, len(begun))
        server.process.send_signal(signal.SIGTERM)
        await reached(server, "lame_duck")
        for make in CLIENTS.values():  # who comes now is served from the first handshake on
            async with make(server.mcp_url) as newcomer:
                assert not (await newcomer.call_tool("get_stats", {})).is_error
        for result in await asyncio.gather(*begun):
            assert not result.is_error
        for client in (*warmed, *cold):
            await client.list_tools()
            assert not (await client.call_tool("get_stats", {})).is_error
        assert phase(server) == "lifecycle: lame_duck"
    assert await asyncio.to_thread(server.process.wait, DEADLINE_SECONDS) == 0
    assert server.report()["clean"]


async def test_a_call_in_the_drain_completes_and_new_ones_are_told_to_go_elsewhere(servers: Servers) -> None:
    server = servers.start(program=SLOW_SERVER)
    async with mcp.Client(server.mcp_url) as busy, mcp.Client(server.mcp_url) as other:
        call = asyncio.create_task(busy.call_tool("find_facts", QUESTION))
        await in_flight(server, 1)
        server.process.send_signal(signal.SIGTERM)
        await reached(server, "draining")
        refused = await other.call_tool("get_stats", {})
        assert refused.structured_content is not None
        assert refused.structured_content["code"] == "draining"
        assert refused.structured_content["retry_after_ms"] > 0
        elsewhere = httpx2.post(server.mcp_url, headers={"x-llmkg-send-elsewhere": "1"}, json={})
        assert (elsewhere.status_code, elsewhere.headers["retry-after"]) == (503, "1")
        assert not (await call).is_error
    assert await asyncio.to_thread(server.process.wait, DEADLINE_SECONDS) == 0
    assert server.report()["operations"] == {"drained": 1, "cancelled": 0, "refused": 1}


def test_there_is_no_stream_to_cut_and_a_connection_held_open_does_not_hold_up_the_end(
    servers: Servers,
) -> None:
    server = servers.start()
    stream = httpx2.get(server.mcp_url, headers={"accept": "text/event-stream"})
    assert stream.status_code == 405  # answers are JSON, each on its own request: nothing outlives a call
    host, port = server.mcp_url.removeprefix("http://").removesuffix("/mcp").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /mcp HTTP/1.1\r\nhost: x\r\n")
        assert server.terminate() == 0
        assert connection.recv(1) == b""
    assert server.report()["clean"]
