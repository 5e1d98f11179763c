"""Serving: the MCP listener, the operators' port and the system's life, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Literal

import uvicorn

from llmkg_otel.server.auth import refuse_open_server
from llmkg_otel.server.mcp import build_server
from llmkg_otel.server.ops import OpsServer, listen, url_of
from llmkg_otel.shutdown.signals import shutdown_signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from starlette.applications import Starlette

    from llmkg_otel.shutdown.report import ShutdownReport
    from llmkg_otel.system import ProductionSystem

__all__ = ["serve"]

_log = logging.getLogger(__name__)

LISTENER_CLOSE_SECONDS = 5
ENVELOPE_BYTES = 65_536
"""What a request may have around the arguments that `max_request_size_bytes` is about."""


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
    # FastMCP logs a traceback for each failed attempt; outcomes are logged and counted by the system.
    logging.getLogger("fastmcp.server.server").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    stop = asyncio.Event()
    with contextlib.ExitStack() as stack:
        run = _http(system, stack) if transport == "http" else _stdio(system)
        ops = stack.enter_context(OpsServer(system))
        _log.info("operators' port: %s", ops.url)
        stack.enter_context(shutdown_signals(stop.set, system.force_shutdown))
        async with system:
            serving = asyncio.create_task(run)
            await _first_of(serving, stop)
        await _end(serving)
    return await system.shutdown()


async def _stdio(system: ProductionSystem) -> None:
    await build_server(system).run_stdio_async(show_banner=False)


def _http(system: ProductionSystem, stack: contextlib.ExitStack) -> Coroutine[None, None, None]:
    """Bind the address now, so that a taken one is an error before anything starts; serve when awaited."""
    config = system.config
    refuse_open_server(config)
    socket = stack.enter_context(listen(config.server.host, config.server.port))
    app = build_server(system).http_app(path=config.server.path, stateless_http=True, json_response=True)
    _allow_bodies_of(app, config.resources.max_request_size_bytes + ENVELOPE_BYTES)
    listener = _Listener(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # uvicorn would believe any X-Forwarded-For from loopback; see caller.py
            lifespan="on",
            timeout_graceful_shutdown=LISTENER_CLOSE_SECONDS,
        )
    )

    async def run() -> None:
        _log.info("MCP: %s%s", url_of(config.server.host, socket), config.server.path)
        closed = asyncio.create_task(listener.serve(sockets=[socket]))

        async def close() -> None:
            listener.should_exit = True
            await closed

        system.register_shutdown_handler("listener", close)
        await asyncio.shield(closed)

    return run()


def _allow_bodies_of(app: Starlette, limit: int) -> None:
    """Let the MCP SDK take bodies up to `limit` bytes; it answers 413 above its own 4 MiB otherwise.

    FastMCP has no option for it, and makes the object that holds the limit when the app starts.
    """
    start = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(running: Starlette) -> AsyncIterator[Any]:
        async with start(running) as state:
            for route in running.routes:
                endpoint = getattr(route, "app", None)
                while endpoint is not None and not hasattr(endpoint, "session_manager"):
                    endpoint = getattr(endpoint, "app", None)
                if endpoint is not None:
                    endpoint.session_manager.asgi_app.max_body_size = limit
            yield state

    app.router.lifespan_context = lifespan


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
