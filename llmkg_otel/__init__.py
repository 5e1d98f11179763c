"""Production protection and OpenTelemetry for any Python knowledge engine."""

from importlib.metadata import version

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
