"""An app of which several workers are started: each makes its own system when it starts, not before."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from llmkg_otel import ProductionConfig, create_production_system
from llmkg_otel.config import ServerConfig, ShutdownConfig
from llmkg_otel.server.ops import OpsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request


@asynccontextmanager
async def lifespan(running: Starlette) -> AsyncIterator[None]:
    shutdown = ShutdownConfig(lame_duck_seconds=0, graceful_timeout_seconds=1)
    config = ProductionConfig(server=ServerConfig(ops_port=0), shutdown=shutdown)
    async with create_production_system(object(), config) as system:
        with OpsServer(system) as ops:
            running.state.system, running.state.ops_url = system, ops.url
            yield


async def call(request: Request) -> JSONResponse:
    async def work() -> dict[str, object]:
        return {"worker": os.getpid(), "ops_url": request.app.state.ops_url}

    return JSONResponse(await request.app.state.system.execute_protected_operation("op", work))


app = Starlette(routes=[Route("/call", call)], lifespan=lifespan)
