"""Somebody's own FastMCP, served with event streams: `python streaming_server.py serve OPTIONS`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from fastmcp import Context, FastMCP

from llmkg_otel import EmbeddedKnowledgeEngine, ProductionConfig, ProductionSystem
from llmkg_otel.server.middleware import ProductionMiddleware
from llmkg_otel.server.serve import serve
from llmkg_otel.telemetry.logs import JsonLogs


async def research(steps: int, ctx: Context) -> str:
    """Take a tenth of a second a step, and tell of each."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps)
        await asyncio.sleep(0.1)
    return "found"


async def main() -> int:
    parser = argparse.ArgumentParser()
    for option, kind in {"--port": int, "--ops-port": int, "--engine-path": str, "--host": str}.items():
        parser.add_argument(option, type=kind)
    parser.add_argument("--json", action="store_true")
    options, _ = parser.parse_known_args()
    given: dict[str, Any] = {"port": options.port, "ops_port": options.ops_port}
    if options.host:
        given["host"] = options.host
    system = ProductionSystem(EmbeddedKnowledgeEngine(options.engine_path), ProductionConfig(server=given))
    server = FastMCP("theirs", middleware=[ProductionMiddleware(system)])
    server.tool(research)
    report = await serve(system, server, streaming=not options.json)
    return 0 if report.clean else 1


if __name__ == "__main__":
    with JsonLogs("info"):
        sys.exit(asyncio.run(main()))
