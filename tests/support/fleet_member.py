"""One process of a fleet: calls a backend through a ProductionSystem until its input ends.

Arguments: the store's URI, the backend's port, and how many operations it calls by turns, each with a
circuit of its own. Tells the backend the operation. Prints a line for each call: when it ended (monotonic
seconds, the same clock for all processes), how long it took, what became of it; at the end, the store's
status.
"""

from __future__ import annotations

import asyncio
import sys
import time

from pydantic import SecretStr

from llmkg_otel.config import (
    AlertingConfig,
    CircuitBreakerConfig,
    CircuitSharingConfig,
    ProductionConfig,
    RateLimitConfig,
    RetryConfig,
    ShutdownConfig,
)
from llmkg_otel.errors import error_type
from llmkg_otel.system import ProductionSystem
from llmkg_otel.testing import captured_telemetry

RECOVERY_SECONDS = 0.5
PAUSE_SECONDS = 0.02


def configuration(uri: str) -> ProductionConfig:
    return ProductionConfig(
        alerting=AlertingConfig(default_rules=False),
        circuit_breaker=CircuitBreakerConfig(
            failure_threshold=3, recovery_timeout=RECOVERY_SECONDS, success_threshold=2, timeout=2
        ),
        circuit_sharing=CircuitSharingConfig(storage_uri=SecretStr(uri)),
        rate_limiting=RateLimitConfig(enabled=False),
        retry=RetryConfig(max_retries=0),
        shutdown=ShutdownConfig(lame_duck_seconds=0),
    )


async def call(port: int, operation: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(operation.encode() + b"\n")
    answer = await reader.read()
    writer.close()
    if answer != b"ok":
        raise ConnectionError("the backend is dead")


async def keep_calling(system: ProductionSystem, port: int, name: str, ended: asyncio.Future[str]) -> None:
    while not ended.done():
        started, fate = time.monotonic(), "ok"
        try:
            await system.execute_protected_operation(name, lambda: call(port, name))
        except Exception as error:  # noqa: BLE001 - each fate is told
            fate = error_type(error)
        now = time.monotonic()
        sys.stdout.write(f"{now:.6f} {now - started:.6f} {fate}\n")
        sys.stdout.flush()
        await asyncio.sleep(PAUSE_SECONDS)


async def run(uri: str, port: int, operations: int) -> None:
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    with captured_telemetry() as telemetry:
        system = ProductionSystem(
            None,
            configuration(uri),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        async with system:
            async with asyncio.TaskGroup() as callers:
                for number in range(operations):
                    callers.create_task(keep_calling(system, port, f"ask {number}", ended))
            assert system.shared_circuits is not None
            sys.stdout.write(f"{system.shared_circuits.status}\n")


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
