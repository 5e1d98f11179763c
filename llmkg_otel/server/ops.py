"""The operators' HTTP port: probes, metrics, status. On a thread and event loop of its own."""

from __future__ import annotations

import hmac
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from llmkg_otel.errors import InvalidInputError
from llmkg_otel.health.status import HealthStatus
from llmkg_otel.server.auth import is_loopback
from llmkg_otel.server.log_query import LogQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from llmkg_otel.health.probes import ProbeResult
    from llmkg_otel.system import ProductionSystem

__all__ = ["OpsServer", "listen", "ops_app", "url_of"]

STOP_SECONDS = 2.0
LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""A Host header that can mean this machine only."""


def ops_app(system: ProductionSystem) -> Starlette:
    """Return the app: /livez /readyz /startupz /healthz /metrics /status /alerts /logs.

    Probes answer 200 or 503 with the reasons as text. /alerts has the form of Prometheus' /api/v1/alerts.
    /logs gives the last `limit` (100) log records that match `correlation_id`, `event` and, as the lowest,
    `level`. These two and /status need the operator token unless the port is bound to loopback; there, a
    request for a host of any other name is refused with 421. Nothing here waits for the engine: it all
    reads what is known already.
    """

    async def livez(_request: Request) -> Response:
        return _probe(system.probes.liveness())

    async def readyz(_request: Request) -> Response:
        return _probe(system.probes.readiness())

    async def startupz(_request: Request) -> Response:
        return _probe(system.probes.startup())

    async def healthz(_request: Request) -> Response:
        report = system.read_health_report()
        status = 503 if report.status is HealthStatus.CRITICAL else 200
        return JSONResponse(report.to_health_json(), status, media_type="application/health+json")

    def metrics(request: Request) -> Response:
        content_type, body = system.telemetry.collected.expose(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    def status(request: Request) -> Response:
        return _for_operators(system, request, system.read_status)

    def alerts(request: Request) -> Response:
        return _for_operators(system, request, system.alerts.as_prometheus)

    def logs(request: Request) -> Response:
        return _for_operators(system, request, lambda: _logs(system, request.query_params))

    endpoints = (livez, readyz, startupz, healthz, metrics, status, alerts, logs)
    return Starlette(
        routes=[Route(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints],
        middleware=[Middleware(_LoopbackOnly)] if is_loopback(system.config.server.ops_host) else [],
    )


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


def _probe(result: ProbeResult) -> Response:
    return PlainTextResponse("\n".join(result.reasons) or "ok", 200 if result.ok else 503)


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
    given = headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), server.operator_token.get_secret_value().encode())


def _problem(status: int, code: str, detail: str) -> Response:
    """Answer as RFC 9457 problem details."""
    body: dict[str, Any] = {"title": code, "status": status, "detail": detail}
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class OpsServer:
    """Serves `ops_app` on a daemon thread, so that it answers while the main loop is busy.

    Binds when built, serves while entered. Raises OSError that names the address if it is taken.
    """

    def __init__(self, system: ProductionSystem) -> None:
        config = system.config.server
        self._socket = listen(config.ops_host, config.ops_port)
        self.url = url_of(config.ops_host, self._socket)
        self._server = uvicorn.Server(
            uvicorn.Config(ops_app(system), log_config=None, access_log=False, lifespan="off")
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="llmkg-ops", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._socket.close()


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
