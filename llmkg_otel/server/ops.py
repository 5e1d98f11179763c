"""The operators' HTTP port: probes, metrics, status. On a thread and event loop of its own."""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmkg_otel.errors import InvalidInputError
from llmkg_otel.server.auth import is_loopback
from llmkg_otel.server.log_query import LogQuery
from llmkg_otel.server.probe_thread import ProbeThread, probes_of, quick_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from llmkg_otel.server.probe_thread import Probe
    from llmkg_otel.system import ProductionSystem

__all__ = ["OpsServer", "listen", "ops_app", "url_of"]

STOP_SECONDS = 2.0
LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""A Host header that can mean this machine only."""
ABSOLUTE_FORM = re.compile(rb"https?://([^/]+)(/.*)?", re.IGNORECASE)


def ops_app(system: ProductionSystem) -> Starlette:
    """Return the app: /livez /readyz /startupz /healthz /metrics /status /alerts /logs.

    Probes answer 200 or 503 with the reasons as text. /alerts has the form of Prometheus' /api/v1/alerts.
    /logs gives the last `limit` (100) log records that match `correlation_id`, `event` and, as the lowest,
    `level`. These two and /status need the operator token unless the port is bound to loopback; there, a
    request for a host of any other name is refused with 421. Nothing here waits for the engine: it all
    reads what is known already.
    """
    loopback = is_loopback(system.config.server.ops_host)

    def metrics(request: Request) -> Response:
        content_type, body = system.telemetry.collected.expose(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    def status(request: Request) -> Response:
        return _for_operators(system, request, system.read_status)

    def alerts(request: Request) -> Response:
        return _for_operators(system, request, system.alerts.as_prometheus)

    def logs(request: Request) -> Response:
        return _for_operators(system, request, lambda: _logs(system, request.query_params))

    endpoints = (metrics, status, alerts, logs)
    return Starlette(
        routes=[
            *(Route(path, _endpoint(probe)) for path, probe in probes_of(system).items()),
            *(Route(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints),
        ],
        middleware=[Middleware(_OriginForm), *([Middleware(_LoopbackOnly)] if loopback else [])],
    )


class _OriginForm:
    """Takes a whole URL as the request's target, as proxies send it; its host is the one that counts.

    Source: RFC 9112, 3.2.2. uvicorn passes the URL on as if it were a path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (url := ABSOLUTE_FORM.fullmatch(scope.get("raw_path") or b"")):
            host, path = url[1], url[2] or b"/"
            headers = [(b"host", host), *(each for each in scope["headers"] if each[0] != b"host")]
            scope = {**scope, "headers": headers, "raw_path": path, "path": unquote(path.decode("ascii"))}
        await self._app(scope, receive, send)


class _LoopbackOnly:
    """Refuses what was sent to another host's name: a browser may be made to believe that it is ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host")  # None: an old probe; every browser sends one
            if host is not None and not LOOPBACK_HOST.fullmatch(host):
                app = _problem(421, "misdirected_request", "this port answers to loopback names only")
        await app(scope, receive, send)


def _endpoint(probe: Probe) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        status, media_type, body = probe()
        return Response(body, status, media_type=media_type)

    return endpoint


def _for_operators(
    system: ProductionSystem, request: Request, read: Callable[[], dict[str, Any]]
) -> Response:
    if not _may_operate(system, request.headers):
        return _problem(401, "unauthorized", "this needs the operator token as a bearer token")
    try:
        return JSONResponse(read())
    except InvalidInputError as error:
        return _problem(400, "invalid_input", str(error))


def _logs(system: ProductionSystem, parameters: Mapping[str, str]) -> dict[str, Any]:
    return {"logs": system.telemetry.recent_logs.read(**LogQuery.of(parameters).model_dump())}


def _may_operate(system: ProductionSystem, headers: Mapping[str, str]) -> bool:
    server = system.config.server
    if server.operator_token is None:
        return is_loopback(server.ops_host)
    scheme, _, given = headers.get("authorization", "").partition(" ")
    token = server.operator_token.get_secret_value()
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _problem(status: int, code: str, detail: str) -> Response:
    """Answer as RFC 9457 problem details."""
    body: dict[str, Any] = {"title": code, "status": status, "detail": detail}
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class OpsServer:
    """Serves `ops_app` on threads of its own, so that it answers while the main loop is busy.

    One answers plain probes, and hands every other connection to a uvicorn on the other. Binds when built,
    serves while entered. Raises OSError that names the address if it is taken.
    """

    def __init__(self, system: ProductionSystem) -> None:
        config = system.config.server
        self._socket = listen(config.ops_host, config.ops_port)
        self.url = url_of(config.ops_host, self._socket)
        self._server = uvicorn.Server(
            uvicorn.Config(
                ops_app(system),
                http="h11",  # whatever else is installed: what is read of a request is the same everywhere
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
            )
        )
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="llmkg-ops", daemon=True
        )
        hosts = LOOPBACK_HOST if is_loopback(config.ops_host) else None
        self._probes = ProbeThread(
            self._socket, partial(quick_answer, probes=probes_of(system), hosts=hosts), self._take
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self._probes.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._probes.stop()
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._socket.close()

    async def _serve(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        await self._server.serve(sockets=[])

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        asyncio.run_coroutine_threadsafe(self._adopt(connection), self._loop.result())

    async def _adopt(self, connection: socket.socket) -> None:
        """Go on with a connection as uvicorn does with one that it has accepted."""
        config, state = self._server.config, self._server.server_state
        made: Callable[..., asyncio.Protocol] = config.http_protocol_class
        protocol = partial(made, config=config, server_state=state, app_state={})
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; an OSError names the address.

    Its protocol is spelled out because asyncio sets TCP_NODELAY only where it is: with the 0 that
    socket.create_server leaves, every answer waited 40 ms for a delayed ACK.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the http URL of a listening socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
