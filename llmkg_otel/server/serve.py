"""Serving: the MCP listener, the operators' port and the system's life, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import uvicorn

from llmkg_otel.errors import ConfigurationError
from llmkg_otel.server.auth import is_loopback, refuse_open_server
from llmkg_otel.server.elsewhere import SendElsewhere
from llmkg_otel.server.mcp import build_server
from llmkg_otel.server.ops import OpsServer, listen, url_of
from llmkg_otel.shutdown.signals import shutdown_signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from fastmcp import FastMCP
    from starlette.applications import Starlette

    from llmkg_otel.shutdown.report import ShutdownReport
    from llmkg_otel.system import ProductionSystem

    Run: TypeAlias = Callable[[], Coroutine[None, None, None]]

__all__ = ["serve"]

_log = logging.getLogger(__name__)

LISTENER_CLOSE_SECONDS = 5
ANSWER_SECONDS = 0.5
"""How long the answers to calls that have ended may take to be written to stdout, before the end."""
SWITCH_SECONDS = 0.0001
"""How long one thread may keep the others from the interpreter while serving.

A probe's answer must get it twice: with Python's own 5 ms, /livez took 7 ms at the median while loop and
engine were saturated, with this 1 ms; calls took no longer (docs/benchmarks.md).
"""
ENVELOPE_BYTES = 65_536
"""What a request may have around the arguments that `max_request_size_bytes` is about."""


class _Listener(uvicorn.Server):
    """uvicorn without its own signal handlers: the shutdown sequence decides when the listener closes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    system: ProductionSystem,
    server: FastMCP | None = None,
    *,
    transport: Literal["http", "stdio"] = "http",
    streaming: bool = False,
    at_once: Callable[[], object] = lambda: None,
) -> ShutdownReport:
    """Serve MCP and the operators' port until SIGTERM or SIGINT (or the end of stdin); return the report.

    `server` is a FastMCP of your own, with `ProductionMiddleware` and without `production_lifespan`; None:
    the engine's tools. With `streaming` an answer over HTTP is an event stream, which carries the progress
    and the messages of a tool; without it they are dropped, and an answer is JSON.

    At the first signal a graceful shutdown begins: the listener stays open through the lame duck and the
    drain, and closes before the engine does. A second signal cuts the waits short. Main thread only.
    Over stdio the operators' port is bound only if the configuration sets `server.ops_port`; a lame duck
    is of no use, for the client will kill us; and after a signal the thread that reads stdin waits on:
    leave the process by os._exit then. `at_once` is called in the first signal's handler: see
    `shutdown_signals`. Raises ConfigurationError if MCP would be open to other machines, or it is unclear
    who may call; OSError if an address is taken.
    """
    # FastMCP logs a traceback for each failed attempt; outcomes are logged and counted by the system.
    logging.getLogger("fastmcp.server.server").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    stop = asyncio.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_SECONDS)
        _serve_grpc_health(system, stack)
        server = server or build_server(system)
        run = (
            _http(system, server, stack, streaming=streaming)
            if transport == "http"
            else _stdio(system, server)
        )
        if transport == "http" or "ops_port" in system.config.server.model_fields_set:
            ops = stack.enter_context(OpsServer(system))
            _log.info("operators' port: %s", ops.url)
        stack.enter_context(shutdown_signals(stop.set, system.force_shutdown, at_once))
        async with system:
            serving = asyncio.create_task(run())
            await _first_of(serving, stop)
        await _end(serving)
    return await system.shutdown()


def _serve_grpc_health(system: ProductionSystem, stack: contextlib.ExitStack) -> None:
    if system.config.server.grpc_health_port is None:
        return
    try:
        from llmkg_otel.server.grpc_health import GrpcHealthServer  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"server.grpc_health_port needs {error.name}: pip install 'llmkg-otel[grpc-health]'"
        ) from None
    _log.info("gRPC health: %s", stack.enter_context(GrpcHealthServer(system)).address)


def _stdio(system: ProductionSystem, server: FastMCP) -> Run:
    async def run() -> None:
        ended = asyncio.create_task(server.run_stdio_async(show_banner=False))

        async def write_answers() -> None:
            await asyncio.wait({ended}, timeout=ANSWER_SECONDS)

        system.register_shutdown_handler("stdout", write_answers)
        await asyncio.shield(ended)  # it could not be cancelled: a thread of its own waits for input

    return run


def _http(system: ProductionSystem, server: FastMCP, stack: contextlib.ExitStack, *, streaming: bool) -> Run:
    """Bind the address now, so that a taken one is an error before anything starts; return what serves."""
    config = system.config
    refuse_open_server(config, guarded=server.auth is not None)
    socket = stack.enter_context(listen(config.server.host, config.server.port))
    app = server.http_app(
        path=config.server.path,
        stateless_http=True,
        json_response=not streaming,
        # Not "auto" elsewhere: it asks which address a request came in by, and a proxy's comes by loopback.
        host_origin_protection=is_loopback(config.server.host),
    )
    app.add_middleware(SendElsewhere, probes=system.probes)
    _allow_bodies_of(app, config.resources.max_request_size_bytes + ENVELOPE_BYTES)
    listener = _Listener(
        uvicorn.Config(
            app,
            ws="none",
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

    return run


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
