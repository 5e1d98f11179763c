"""Readiness for proxies that have no health checks: 503 while not ready, so that a call is sent elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from llmkg_otel.health.probes import Probes

__all__ = ["SendElsewhere"]

ASKS = "x-llmkg-send-elsewhere"


class SendElsewhere:
    """Answers 503 to requests with the header `x-llmkg-send-elsewhere` while readiness fails.

    A proxy that sets it promises to try another instance; so it turns away at the beginning of a lame
    duck, as one with health checks does. Without the header nothing changes: whoever calls is served as
    long as that is possible, and an MCP client is told in MCP's own way when it is not.
    """

    def __init__(self, app: ASGIApp, probes: Probes) -> None:
        self._app = app
        self._probes = probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        answer = self._app
        if scope["type"] == "http" and ASKS in Headers(scope=scope):
            ready = self._probes.readiness()
            answer = self._app if ready.ok else _not_ready("; ".join(ready.reasons))
        await answer(scope, receive, send)


def _not_ready(why: str) -> JSONResponse:
    body = {"title": "not_ready", "status": 503, "detail": why}
    return JSONResponse(body, 503, {"retry-after": "1"}, media_type="application/problem+json")
