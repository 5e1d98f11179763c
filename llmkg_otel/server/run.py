"""`llmkg-otel serve`: the embedded engine, in production dress."""

from __future__ import annotations

import faulthandler
import logging
from typing import TYPE_CHECKING, Literal

from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.server.serve import serve
from llmkg_otel.shutdown.budget import shutdown_deadline
from llmkg_otel.system import create_production_system
from llmkg_otel.telemetry.logs import JsonLogs
from llmkg_otel.telemetry.records import EVENT_NAME
from llmkg_otel.telemetry.semconv import SHUTDOWN_COMPLETED
from llmkg_otel.telemetry.setup import bound_exit

if TYPE_CHECKING:
    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.shutdown.report import ShutdownReport

__all__ = ["run_embedded"]

_log = logging.getLogger(__name__)


async def run_embedded(config: ProductionConfig, *, transport: Literal["http", "stdio"]) -> ShutdownReport:
    """Serve the engine file that the configuration names until a signal; return the shutdown report.

    Over stdio there is no lame duck: nobody else could be sent the calls, and a client that ends its
    server gives it a few seconds. A signal also sets the process's last hour: what hangs then, the loop
    itself or a thread that Python would wait for, is written to stderr, and the process ends with status 1.
    """
    if transport == "stdio":
        at_once = config.shutdown.model_copy(update={"lame_duck_seconds": 0})
        config = config.model_copy(update={"shutdown": at_once})

    def end_in_time() -> None:
        faulthandler.dump_traceback_later(shutdown_deadline(config), exit=True)

    with JsonLogs(config.monitoring.log_level, redact=config.monitoring.redact_secrets):
        engine = EmbeddedKnowledgeEngine(config.engine.path, max_nodes=config.engine.max_nodes)
        system = create_production_system(engine, config)
        bound_exit()
        report = await serve(system, transport=transport, at_once=end_in_time)
        _log.info("shutdown report", extra={EVENT_NAME: SHUTDOWN_COMPLETED, "report": report.to_dict()})
    return report
