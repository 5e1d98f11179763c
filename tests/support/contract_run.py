"""A system under every kind of fault, so that it emits all that the contract names."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from fastmcp import Client, FastMCP
from pydantic import SecretStr

from llmkg_otel import EmbeddedKnowledgeEngine, LLMKGInstrumentor
from llmkg_otel.config import (
    AlertingConfig,
    CheckpointConfig,
    CircuitBreakerConfig,
    CircuitSharingConfig,
    HealthCheckConfig,
    InstrumentationConfig,
    LoadSheddingConfig,
    MonitoringConfig,
    NotifyConfig,
    OperationConfig,
    ProductionConfig,
    RateLimitConfig,
    RateLimitRule,
    RetryConfig,
    ShutdownConfig,
)
from llmkg_otel.errors import InvalidInputError, LlmkgOtelError
from llmkg_otel.limiting.resources import ResourceUsage
from llmkg_otel.server.middleware import ProductionMiddleware
from llmkg_otel.system import ProductionSystem
from support.calls import failing_first
from support.span_ends import SpanEnds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llmkg_otel.testing import CapturedTelemetry

USER = "user-7f3a-planted"
OPERATIONS = {"steady", "flaky", "doomed", "narrow", "limited", "laddered", "overdue", "connected"}
TOOLS = ("steady", "doomed")
"""Operations that an MCP server has as tools, too."""
ALERT = """
groups:
  - name: planted
    rules:
      - alert: Planted
        expr: llmkg_health_status{component="engine",state="pass"} == 1
        labels: {severity: warning}
"""


def configuration(rule_file: Path) -> ProductionConfig:
    once = RateLimitRule(requests_per_second=1e-3, burst_capacity=1)
    return ProductionConfig(
        rate_limiting=RateLimitConfig(
            per_user=RateLimitRule(requests_per_second=1000),
            storage_uri=SecretStr("redis://127.0.0.1:1/0"),  # nobody there
        ),
        retry=RetryConfig(max_retries=1, base_delay_ms=0, max_delay_ms=0),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=2),
        circuit_sharing=CircuitSharingConfig(storage_uri=SecretStr("redis://127.0.0.1:1/0")),  # nobody there
        monitoring=MonitoringConfig(
            log_level="debug", alert_check_interval_seconds=1000, enable_performance_tracking=True
        ),
        alerting=AlertingConfig(
            rule_files=(rule_file,),
            notify={"nobody": NotifyConfig(url=SecretStr("http://127.0.0.1:1"), max_retries=0)},
        ),
        health=HealthCheckConfig(failure_threshold=1),
        load_shedding=LoadSheddingConfig(mode="shadow"),
        checkpoint=CheckpointConfig(directory=rule_file.parent / "checkpoints"),
        shutdown=ShutdownConfig(lame_duck_seconds=0, graceful_timeout_seconds=0.05),
        operations={
            "limited": OperationConfig(rate_limit=once),
            "narrow": OperationConfig(max_concurrent=1),
            "overdue": OperationConfig(circuit_breaker=CircuitBreakerConfig(timeout=0.001)),
        },
    )


class Engine:
    """Pings until it is told not to."""

    broken = False

    async def backup(self, dest: Path) -> None:
        await asyncio.to_thread(dest.write_text, "all that is known")

    async def ping(self) -> None:
        if self.broken:
            raise ConnectionError("no route")


async def workload(telemetry: CapturedTelemetry, rule_file: Path) -> str:
    engine = Engine()
    system = ProductionSystem(
        engine,
        configuration(rule_file),
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )

    async def call(name: str, operation: Callable[[], Any]) -> None:
        with suppress(ConnectionError, LlmkgOtelError):
            await system.execute_protected_operation(
                name, operation, user_id=USER, correlation_id="correlated-1"
            )

    await system.start()
    system.alerts._loop.run_once()
    for channel in system.alerts._channels:
        channel.stop()
    engine.broken = True
    await system.health.run_once()
    system.alerts._loop.run_once()

    def fails() -> None:
        raise ConnectionError(f"{USER} is not known here")

    await call("steady", lambda: None)
    await call("flaky", failing_first(lambda: None))
    for _ in range(2):
        await call("doomed", fails)
        await call("limited", lambda: None)
    assert system.load_shedding is not None
    system.load_shedding._told = 100  # so that its limit has moved
    await wait_for_a_connection(system, call)
    await serve_tools(system, telemetry, fails)
    await use_an_engine(telemetry, rule_file.with_name("k.db"))
    await fall_back(system, fails)
    overrun(system)
    block_the_loop(system)
    turn = threading.Event()
    first = asyncio.create_task(call("narrow", turn.wait))
    await asyncio.sleep(0)
    second = asyncio.create_task(call("narrow", lambda: None))
    await asyncio.sleep(0)
    turn.set()
    await asyncio.gather(first, second)
    system.resources.observe(ResourceUsage(memory=1e15))
    await call("steady", lambda: None)
    system.resources.observe(ResourceUsage(memory=1e6))
    break_telemetry_once(telemetry)
    await call("steady", lambda: None)
    text = system.get_prometheus_metrics()

    hanging = asyncio.create_task(call("steady", asyncio.Event().wait))
    await asyncio.sleep(0)
    await system.shutdown()
    await asyncio.wait({hanging})
    await call("steady", lambda: None)
    return text


async def fall_back(system: ProductionSystem, fails: Callable[[], Any]) -> None:
    rungs: dict[str, Callable[[], None]] = {"broken": fails, "cached": lambda: None}
    await system.execute_protected_operation("laddered", fails, fallbacks=rungs)


async def serve_tools(
    system: ProductionSystem, telemetry: CapturedTelemetry, fails: Callable[[], Any]
) -> None:
    """Serve calls over MCP, in spans of FastMCP's: of tools that do well and badly, and of none there is."""
    server = FastMCP("contract")
    for name, tool in zip(TOOLS, (lambda: "well", fails), strict=True):
        server.tool(tool, name=name)
    server.add_middleware(ProductionMiddleware(system))
    with pytest.MonkeyPatch.context() as patch:  # FastMCP asks the global provider, which tests leave alone
        patch.setattr("fastmcp.telemetry.otel_get_tracer", telemetry.tracer_provider.get_tracer)
        async with Client(server) as client:
            for name in (*TOOLS, "no_such_tool"):
                await client.call_tool(name, raise_on_error=False)


async def use_an_engine(telemetry: CapturedTelemetry, file: Path) -> None:
    """Use an engine that is instrumented, rightly and wrongly."""
    with instrumented(telemetry):
        engine = EmbeddedKnowledgeEngine(file)
        await engine.search("capital")
        with suppress(InvalidInputError):
            await engine.search("capital", limit=-1)
        await engine.aclose()


@contextmanager
def instrumented(telemetry: CapturedTelemetry) -> Iterator[None]:
    LLMKGInstrumentor().instrument(
        config=ProductionConfig(instrumentation=InstrumentationConfig(capture_text=True)),
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )
    try:
        yield
    finally:
        LLMKGInstrumentor().uninstrument()


async def wait_for_a_connection(system: ProductionSystem, call: Callable[..., Any]) -> None:
    """Let a call wait in vain for the one connection that there is."""
    pool = system.add_connection_pool(
        "store", object, close=lambda _connection: None, max_size=1, acquire_timeout=0.01
    )

    async def connect() -> None:
        async with pool.connection():
            pass

    async with pool.connection():
        await call("connected", connect)
    await call("connected", connect)


def overrun(system: ProductionSystem) -> None:
    """Let a sync operation return after its time."""
    system.execute_protected_operation_sync("overdue", lambda: time.sleep(0.002))


def block_the_loop(system: ProductionSystem) -> None:
    """Let the watchdog see a heart that has not beaten for a minute."""
    assert system.heartbeat._last is not None
    system.heartbeat._last -= 60
    system._watchdog.look()


def break_telemetry_once(telemetry: CapturedTelemetry) -> None:
    errors: Iterator[Exception] = iter([OSError("an exporter's own")])

    def on_end(_span: object) -> None:
        for error in errors:
            raise error

    telemetry.tracer_provider.add_span_processor(SpanEnds(on_end))
