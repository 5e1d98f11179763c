"""Serving: the MCP listener, the operators' port and the system's life, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Literal

import uvicorn
from fastmcp import FastMCP

from llmkg_otel.server.auth import refuse_open_server
from llmkg_otel.server.mcp import build_server
from llmkg_otel.server.ops import OpsServer, listen, url_of
from llmkg_otel.shutdown.report import ShutdownReport
from llmkg_otel.shutdown.signals import shutdown_signals
from llmkg_otel.system import ProductionSystem

__all__ = ["serve"]

_log = logging.getLogger(__name__)

LISTENER_CLOSE_SECONDS = 5


class _Listener(uvicorn.Server):
    """uvicorn without its own signal handlers: the shutdown sequence decides when the listener closes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(system: ProductionSystem, *, transport: Literal["http", "stdio"] = "http") -> ShutdownReport:
    """Serve MCP and the operators' port until SIGTERM or SIGINT (or the end of stdin); return the report.

    At the first signal a graceful shutdown begins: the listener stays open through the lame duck and the
    drain, and closes before the engine does. A second signal cuts the waits short. Main thread only.
    Raises ConfigurationError if MCP would be open to other machines, OSError if an address is taken.
    """
    if transport == "http":
        refuse_open_server(system.config)
    # FastMCP logs a traceback for each failed attempt; outcomes are logged and counted by the system.
    logging.getLogger("fastmcp.server.server").setLevel(logging.CRITICAL)
    mcp_server = build_server(system)
    ops = OpsServer(system)
    stop = asyncio.Event()
    with contextlib.closing(_Stopped(ops)), shutdown_signals(stop.set, system.force_shutdown):
        await system.start()
        serving = asyncio.create_task(_serve(system, mcp_server, transport))
        ops.start()
        _log.info("operators' port: %s", ops.url)
        await _first_of(serving, stop)
        report = await system.shutdown()
        await _end(serving)
    return report


async def _serve(system: ProductionSystem, server: FastMCP, transport: str) -> None:
    if transport == "stdio":
        await server.run_stdio_async(show_banner=False)
        return
    config = system.config.server
    app = server.http_app(path=config.path, stateless_http=True, json_response=True)
    listener = _Listener(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=LISTENER_CLOSE_SECONDS,
        )
    )
    with listen(config.host, config.port) as socket:
        _log.info("MCP: %s%s", url_of(config.host, socket), config.path)
        serving = asyncio.create_task(listener.serve(sockets=[socket]))

        async def close() -> None:
            listener.should_exit = True
            await serving

        system.register_shutdown_handler("listener", close)
        await asyncio.shield(serving)


async def _first_of(serving: asyncio.Task[None], stop: asyncio.Event) -> None:
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _end(serving: asyncio.Task[None]) -> None:
    """Let the transport end; one that waits for input which will not come is cancelled."""
    if not serving.done():
        serving.cancel()
    await asyncio.wait({serving})
    if not serving.cancelled() and (error := serving.exception()) is not None:
        raise error
