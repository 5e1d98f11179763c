"""A system around a stub engine whose telemetry stays in memory; the global providers are left alone."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from support.engines import StubEngine

from llmkg_otel.config import AlertingConfig, ProductionConfig, RetryConfig, ShutdownConfig
from llmkg_otel.system import ProductionSystem
from llmkg_otel.testing import CapturedTelemetry, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK = {
    "alerting": AlertingConfig(default_rules=False),
    "retry": RetryConfig(max_retries=2, base_delay_ms=0, max_delay_ms=0),
    "shutdown": ShutdownConfig(
        lame_duck_seconds=0,
        graceful_timeout_seconds=0.05,
        cleanup_timeout_seconds=2,
        flush_timeout_seconds=2,
    ),
}


@pytest.fixture
def telemetry() -> Iterator[CapturedTelemetry]:
    """Providers in memory; the library's log records go to them too."""
    logger = logging.getLogger("llmkg_otel")
    level = logger.level
    with captured_telemetry() as captured:
        handler = LoggingHandler(logger_provider=captured.logger_provider)
        logger.addHandler(handler)
        yield captured
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def make_system(telemetry: CapturedTelemetry) -> Callable[..., ProductionSystem]:
    """Make a system with these sections of the configuration; one a test, its series would mix."""

    def make(engine: object | None = None, **sections: Any) -> ProductionSystem:
        return ProductionSystem(
            StubEngine() if engine is None else engine,
            ProductionConfig(**QUICK | sections),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )

    return make


@pytest.fixture
def system(make_system: Callable[..., ProductionSystem]) -> ProductionSystem:
    """Make a system with defaults, but no waits between retries and a quick shutdown."""
    return make_system()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a test that was skipped because something is not installed is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and any("not installed" in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
