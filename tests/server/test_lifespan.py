"""A FastMCP server of somebody else's, with a system that lives as long as it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmcp import Client, FastMCP

from llmkg_otel.server.lifespan import production_lifespan
from llmkg_otel.server.middleware import ProductionMiddleware

if TYPE_CHECKING:
    from llmkg_otel import ProductionSystem


async def test_the_system_starts_with_the_server_and_shuts_down_with_it(system: ProductionSystem) -> None:
    server = FastMCP(
        "theirs", lifespan=production_lifespan(system), middleware=[ProductionMiddleware(system)]
    )

    @server.tool
    async def in_flight() -> dict[str, int]:
        return dict(system.calls.by_operation())

    async with Client(server) as client:
        assert (await client.call_tool("in_flight")).data == {"in_flight": 1}
        assert system.lifecycle.state == "serving"
        assert system.probes.readiness().ok
        assert {each.name: each.status for each in system.health.components()}["engine"] == "pass"
    assert system.closed
    assert system.engine.closed == 1
