"""The demo's server process: the real one, on an engine whose faults signals switch.

    python -m llmkg_otel.demo.server CONFIG.yaml REPORT.json

SIGUSR1 turns faults on, SIGUSR2 off; SIGHUP makes every call slow. After a graceful shutdown the report
is in REPORT.json.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from llmkg_otel import EmbeddedKnowledgeEngine, ProductionConfig, ShutdownReport, create_production_system
from llmkg_otel.demo.faults import FaultyEngine
from llmkg_otel.server.serve import serve

__all__ = ["main"]


async def _serve(config_file: Path) -> ShutdownReport:
    config = ProductionConfig.load(config_file)
    embedded = EmbeddedKnowledgeEngine(config.engine.path, max_nodes=config.engine.max_nodes)
    engine = FaultyEngine(embedded)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, engine.switch, True)
    loop.add_signal_handler(signal.SIGUSR2, engine.switch, False)
    loop.add_signal_handler(signal.SIGHUP, engine.slow_down)
    return await serve(create_production_system(engine, config))


def main() -> None:
    """Serve with the configuration and report file named on the command line."""
    config_file, report_file = map(Path, sys.argv[1:])
    report = asyncio.run(_serve(config_file))
    report_file.write_text(json.dumps(report.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    main()
