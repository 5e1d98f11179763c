"""Production protection and OpenTelemetry for any Python knowledge engine."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from llmkg_otel.telemetry.variables import check_before_import

if TYPE_CHECKING:
    from llmkg_otel.config import (
        AlertingConfig,
        CircuitBreakerConfig,
        HealthCheckConfig,
        MonitoringConfig,
        OperationConfig,
        ProductionConfig,
        RateLimitConfig,
        ResourceLimits,
        RetryConfig,
        ShutdownConfig,
    )
    from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
    from llmkg_otel.engine.protocol import KnowledgeEngine
    from llmkg_otel.health.report import SystemHealthReport
    from llmkg_otel.health.status import HealthStatus
    from llmkg_otel.instrumentation import LLMKGInstrumentor
    from llmkg_otel.shutdown.report import ShutdownReport
    from llmkg_otel.system import ProductionSystem, create_production_system

__all__ = [
    "AlertingConfig",
    "CircuitBreakerConfig",
    "EmbeddedKnowledgeEngine",
    "HealthCheckConfig",
    "HealthStatus",
    "KnowledgeEngine",
    "LLMKGInstrumentor",
    "MonitoringConfig",
    "OperationConfig",
    "ProductionConfig",
    "ProductionSystem",
    "RateLimitConfig",
    "ResourceLimits",
    "RetryConfig",
    "ShutdownConfig",
    "ShutdownReport",
    "SystemHealthReport",
    "create_production_system",
]

__version__ = version("llmkg-otel")

_MODULES = {
    "config": [name for name in __all__ if name.endswith(("Config", "Limits"))],
    "engine.embedded": ["EmbeddedKnowledgeEngine"],
    "engine.protocol": ["KnowledgeEngine"],
    "health.report": ["SystemHealthReport"],
    "health.status": ["HealthStatus"],
    "instrumentation": ["LLMKGInstrumentor"],
    "shutdown.report": ["ShutdownReport"],
    "system": ["ProductionSystem", "create_production_system"],
}


if not TYPE_CHECKING:  # else a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for: most commands of the CLI need no OpenTelemetry.

        Raises ConfigurationError for an `OTEL_*` variable that the import of OpenTelemetry would fail on.
        """
        for module, names in _MODULES.items():
            if name in names:
                check_before_import()
                value = globals()[name] = getattr(import_module(f"llmkg_otel.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
