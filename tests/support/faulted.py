"""A real server in trouble: `python -m support.faulted DIRECTORY MCP_PORT OPS_PORT`, until SIGTERM.

Everything that a dashboard shows happens in it again and again: failures, refusals of every kind, retries,
fallbacks, waits, alerts that fire and cannot be told, health that comes and goes, telemetry that breaks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import Client
from opentelemetry import trace
from pydantic import SecretStr

from llmkg_otel import EmbeddedKnowledgeEngine, LLMKGInstrumentor, ProductionConfig, create_production_system
from llmkg_otel.config import (
    AlertingConfig,
    CircuitBreakerConfig,
    CircuitSharingConfig,
    HealthCheckConfig,
    LoadSheddingConfig,
    MonitoringConfig,
    NotifyConfig,
    OperationConfig,
    RateLimitConfig,
    RateLimitRule,
    ResourceLimits,
    RetryConfig,
    ServerConfig,
    ShutdownConfig,
)
from llmkg_otel.demo.faults import FaultyEngine
from llmkg_otel.errors import LlmkgOtelError
from llmkg_otel.limiting.resources import ResourceUsage
from llmkg_otel.server.serve import serve
from llmkg_otel.telemetry.semconv import METER_NAME
from support.calls import failing_first
from support.span_ends import SpanEnds

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem

NOBODY = SecretStr("redis://127.0.0.1:1/0")
RULES = """
groups:
  - name: planted
    rules:
      - alert: Planted
        expr: llmkg_operation_active >= 0
        labels: {severity: warning}
      - alert: PlantedForLong
        expr: llmkg_operation_active >= 0
        for: 1h
        labels: {severity: warning}
"""


def configuration(directory: Path, mcp_port: int, ops_port: int) -> ProductionConfig:
    rules = directory / "rules.yaml"
    rules.write_text(RULES)
    quick = CircuitBreakerConfig(failure_threshold=4, recovery_timeout=0.5, timeout=0.3)
    return ProductionConfig(
        server=ServerConfig(port=mcp_port, ops_port=ops_port),
        rate_limiting=RateLimitConfig(per_user=RateLimitRule(requests_per_second=1000), storage_uri=NOBODY),
        retry=RetryConfig(max_retries=1, base_delay_ms=5, max_delay_ms=5),
        circuit_breaker=quick,
        circuit_sharing=CircuitSharingConfig(storage_uri=NOBODY),
        monitoring=MonitoringConfig(alert_check_interval_seconds=0.5, enable_performance_tracking=True),
        alerting=AlertingConfig(
            rule_files=(rules,),
            notify={"nobody": NotifyConfig(url=SecretStr("http://127.0.0.1:1"), max_retries=0)},
        ),
        health=HealthCheckConfig(check_interval_seconds=0.3, failure_threshold=1),
        load_shedding=LoadSheddingConfig(mode="on", min_concurrent_operations=2),
        resources=ResourceLimits(max_cpu_percent=100, max_concurrent_operations=8),
        shutdown=ShutdownConfig(lame_duck_seconds=2, graceful_timeout_seconds=6),
        operations={
            "limited": OperationConfig(rate_limit=RateLimitRule(requests_per_second=1, burst_capacity=1)),
            "narrow": OperationConfig(max_concurrent=1),
            "overdue": OperationConfig(timeout=0.1),
            "long": OperationConfig(circuit_breaker=CircuitBreakerConfig(timeout=9), criticality="critical"),
        },
    )


async def trouble(system: ProductionSystem, engine: FaultyEngine) -> None:
    """Make one round of trouble after the other, until the shutdown is over."""
    pool = system.add_connection_pool(
        "graph", object, close=lambda _: None, max_size=1, acquire_timeout=0.02, idle_timeout=0.03
    )
    moods = itertools.cycle((True, True, False))

    def mood() -> None:
        if not next(moods):
            raise ConnectionError

    system.register_health_check("mood", mood)
    _break_a_hook_now_and_then()
    for number in itertools.takewhile(lambda _: not system.closed, itertools.count()):
        engine.switch(on=number % 2 == 0)
        system.resources.observe(ResourceUsage(memory=1e15 if number % 4 == 3 else 1e6))
        for line in range(20):  # at once, so that a queue of four log records has to drop some
            logging.getLogger("engine").warning("line %d", line)
        with suppress(LlmkgOtelError):
            await engine.search("nothing", limit=-1)
        await asyncio.gather(*_calls(system), _borrow(pool, 0.04), _borrow(pool, 0.01), _borrow(pool, 0.05))
        await asyncio.sleep(0.1)


async def linger(system: ProductionSystem) -> None:
    """Have a long call in flight when the shutdown begins, and calls that come too late."""
    while system.lifecycle.state in ("starting", "serving"):  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.05)
    long = asyncio.create_task(_call(system, "long", lambda: asyncio.sleep(4)))
    while not long.done():
        await _call(system, "late", lambda: None)
        await asyncio.sleep(0.1)


def _calls(system: ProductionSystem) -> list[Any]:
    async def briefly() -> None:
        await asyncio.sleep(0.02)

    def fails() -> None:
        raise ConnectionError

    rungs: dict[str, Callable[[], None]] = {"cached": lambda: None}
    return [
        _call(system, "steady", briefly),
        _call(system, "flaky", failing_first(lambda: None)),
        *(_call(system, "doomed", fails) for _ in range(3)),
        *(_call(system, "limited", briefly) for _ in range(3)),
        *(_call(system, "narrow", briefly, criticality="sheddable") for _ in range(4)),
        *(_call(system, "burst", briefly, criticality="sheddable") for _ in range(60)),
        _call(system, "overdue", lambda: time.sleep(0.3)),
        _call(system, "laddered", fails, fallbacks=rungs),
    ]


async def _call(system: ProductionSystem, name: str, operation: Callable[[], Any], **options: Any) -> None:
    with suppress(ConnectionError, LlmkgOtelError):
        await system.execute_protected_operation(name, operation, user_id="somebody", **options)


async def _borrow(pool: Any, seconds: float) -> None:
    with suppress(LlmkgOtelError):
        async with pool.connection():
            await asyncio.sleep(seconds)


def _break_a_hook_now_and_then() -> None:
    numbers = itertools.count()

    def on_end(span: Any) -> None:
        if span.instrumentation_scope.name == METER_NAME and next(numbers) % 50 == 0:
            raise OSError("an exporter's own")

    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(SpanEnds(on_end))


async def ask(system: ProductionSystem, port: int) -> None:
    """Be an MCP client, from when the server listens until the shutdown begins."""
    while not await _listens(port):  # noqa: ASYNC110 - a port sets no event
        await asyncio.sleep(0.05)
    async with Client(f"http://127.0.0.1:{port}/mcp") as client:
        for number in itertools.takewhile(lambda _: system.lifecycle.state == "serving", itertools.count()):
            await client.call_tool("store_fact", {"subject": f"s{number}", "predicate": "p", "object": "o"})
            await client.call_tool("no_such_tool", {})
            await asyncio.sleep(0.05)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def main(directory: Path, mcp_port: int, ops_port: int) -> None:
    logging.disable(logging.INFO)
    LLMKGInstrumentor().instrument()
    engine = FaultyEngine(EmbeddedKnowledgeEngine(directory / "k.db"))
    system = create_production_system(engine, configuration(directory, mcp_port, ops_port))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(trouble(system, engine))
        tasks.create_task(linger(system))
        tasks.create_task(ask(system, mcp_port))
        await serve(system)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
