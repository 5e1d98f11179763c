"""One process of a fleet: calls a backend through a ProductionSystem until its input ends.

Arguments: the store's URI, and the backend's port. Prints a line for each call: when it ended (monotonic
seconds, the same clock for all processes), how long it took, what became of it.
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
PAUSE_SECONDS = 0.01


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


async def call(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = await reader.read()
    writer.close()
    if answer != b"ok":
        raise ConnectionError("the backend is dead")


async def run(uri: str, port: int) -> None:
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    with captured_telemetry() as telemetry:
        system = ProductionSystem(
            None,
            configuration(uri),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        async with system:
            while not ended.done():
                started, fate = time.monotonic(), "ok"
                try:
                    await system.execute_protected_operation("ask", lambda: call(port))
                except Exception as error:  # noqa: BLE001 - each fate is told
                    fate = error_type(error)
                now = time.monotonic()
                sys.stdout.write(f"{now:.6f} {now - started:.6f} {fate}\n")
                sys.stdout.flush()
                await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
