"""FastMCP lifespan that gives a ProductionSystem the life of the server it protects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastmcp.server.lifespan import Lifespan, lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastmcp import FastMCP

    from llmkg_otel.system import ProductionSystem

__all__ = ["production_lifespan"]


def production_lifespan(system: ProductionSystem) -> Lifespan:
    """Return a lifespan that starts `system` with the server and shuts it down gracefully at its end.

    Give it to FastMCP as `lifespan=`; `|` joins it with others. A system starts once, so the server
    serves once. FastMCP ends its lifespan after its listener has closed: nobody is turned away in the
    lame duck then, which only takes time unless `shutdown.lame_duck_seconds` is 0.
    """

    @lifespan
    async def started(_server: FastMCP) -> AsyncIterator[dict[str, Any]]:
        async with system:
            yield {}

    return started
