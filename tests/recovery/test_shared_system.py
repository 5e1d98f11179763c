"""A system whose store is killed, or hangs, under load: no call pays for it, and operators see it."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import SecretStr
from support.servers import wait_until

from llmkg_otel.config import (
    CircuitBreakerConfig,
    CircuitSharingConfig,
    OperationConfig,
    RateLimitConfig,
    RateLimitRule,
    RetryConfig,
)
from llmkg_otel.errors import CircuitOpenError, RateLimitedError
from llmkg_otel.recovery import fleet
from llmkg_otel.recovery.fleet import FLEET_SECONDS
from llmkg_otel.testing import attributes_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.fleet import Instance
    from support.redis import RedisServer

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

SLACK_SECONDS = 0.1
"""What a busy machine may add to a wait."""


@pytest.fixture
def shared_system(
    make_system: Callable[..., ProductionSystem], redis_server: RedisServer
) -> ProductionSystem:
    return make_system(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=2, recovery_timeout=0.02, success_threshold=1),
        circuit_sharing=CircuitSharingConfig(storage_uri=SecretStr(redis_server.uri)),
        rate_limiting=RateLimitConfig(enabled=False),
        retry=RetryConfig(max_retries=0),
    )


@pytest.fixture
def _no_pauses() -> Iterator[None]:
    """Keep the collector away: all the spans in memory make it stop everything for up to 0.4 s."""
    gc.disable()
    yield
    gc.enable()


class Load:
    """Calls a steady operation and a doomed one, by turns, and keeps how long each took."""

    def __init__(self, system: ProductionSystem) -> None:
        self._system = system
        self.seconds: dict[str, list[float]] = {"steady": [], "doomed": []}
        self.unexpected: list[Exception] = []

    async def run(self, seconds: float) -> None:
        async def steady() -> None:
            pass

        async def doomed() -> None:
            raise ConnectionError

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self._call("steady", steady, ())
            await self._call("doomed", doomed, (ConnectionError, CircuitOpenError))
            await asyncio.sleep(0.001)

    async def _call(self, name: str, operation: Any, expected: tuple[type[Exception], ...]) -> None:
        started = time.monotonic()
        try:
            await self._system.execute_protected_operation(name, operation)
        except expected:
            pass
        except Exception as error:  # noqa: BLE001
            self.unexpected.append(error)
        self.seconds[name].append(time.monotonic() - started)


async def health_of_sharing(system: ProductionSystem) -> str:
    await system.health.run_once()
    (found,) = [each for each in system.health.components() if each.name == "circuit_sharing"]
    assert not found.essential
    return found.status.value


def storage_status(telemetry: CapturedTelemetry) -> dict[str, Any]:
    points = telemetry.metric("llmkg.circuit_breaker.storage.status")
    return {state: points[attributes_key({"state": state})] for state in ("primary", "slow", "fallback")}


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("trouble", ["kill", "pause"])
async def test_no_call_fails_or_waits_over_50_ms_when_the_store_is_lost_under_load(
    trouble: str,
    shared_system: ProductionSystem,
    redis_server: RedisServer,
    telemetry: CapturedTelemetry,
) -> None:
    load = Load(shared_system)
    async with shared_system as system:
        assert await health_of_sharing(system) == "pass"
        assert storage_status(telemetry) == {"primary": 1, "slow": 0, "fallback": 0}
        await load.run(0.5)
        getattr(redis_server, trouble)()
        await load.run(1.5)
        assert await health_of_sharing(system) == "warn"
        assert storage_status(telemetry) == {"primary": 0, "slow": 0, "fallback": 1}
        (redis_server.restart if trouble == "kill" else redis_server.resume)()
        shared = system.shared_circuits
        assert shared is not None
        await asyncio.to_thread(wait_until, lambda: shared.status == "primary", "the store's return")
        await load.run(0.2)
        assert await health_of_sharing(system) == "pass"
        assert redis_server.client.hget("llmkg:circuit:doomed", "state") == b"open"

    assert load.unexpected == []
    assert len(load.seconds["steady"]) > 100
    assert max(load.seconds["doomed"]) < FLEET_SECONDS + SLACK_SECONDS
    assert max(load.seconds["steady"]) < SLACK_SECONDS


async def test_a_system_starts_and_serves_without_its_store(
    shared_system: ProductionSystem, redis_server: RedisServer
) -> None:
    redis_server.kill()
    async with shared_system as system:
        assert system.lifecycle.state == "serving"
        assert await health_of_sharing(system) == "warn"
        assert system.probes.readiness().ok
        assert await system.execute_protected_operation("op", lambda: 1) == 1


@pytest.mark.parametrize("known_at_start", [True, False])
async def test_a_new_process_sends_no_call_to_an_engine_that_its_fleet_has_given_up(
    known_at_start: bool,
    make: Callable[..., Instance],
    make_system: Callable[..., ProductionSystem],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "FLEET_SECONDS", 10)  # a busy machine is late now and then
    make().fail_for_all(redis_server)
    system = make_system(
        circuit_sharing=CircuitSharingConfig(storage_uri=SecretStr(redis_server.uri)),
        rate_limiting=RateLimitConfig(enabled=False),
        operations={"search": OperationConfig()} if known_at_start else {},
    )
    reached = 0

    async def dead() -> None:
        nonlocal reached
        reached += 1
        raise ConnectionError

    async with system:
        calls = [system.execute_protected_operation("search", dead) for _ in range(50)]
        fates = await asyncio.gather(*calls, return_exceptions=True)
    assert reached == 0
    assert {type(fate) for fate in fates} == {CircuitOpenError}


async def test_a_probe_that_the_shutdown_cancels_is_given_back(
    shared_system: ProductionSystem, redis_server: RedisServer
) -> None:
    async def doomed() -> None:
        raise ConnectionError

    async def call(operation: Any) -> None:
        await shared_system.execute_protected_operation("op", operation)

    async with shared_system:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await call(doomed)
        await asyncio.sleep(0.03)  # the recovery timeout
        begun = asyncio.Event()

        async def hangs() -> None:
            begun.set()
            await asyncio.Event().wait()

        probe = asyncio.create_task(call(hangs))
        await begun.wait()
        assert redis_server.client.hget("llmkg:circuit:op", "token") != b"0"
    await asyncio.wait({probe})
    assert redis_server.client.hget("llmkg:circuit:op", "token") == b"0"
    assert shared_system.shared_circuits is not None
    assert shared_system.shared_circuits.status == "fallback"


@pytest.mark.parametrize("mode", ["exact", "leases"])
async def test_of_shared_rate_limits_too_a_call_within_a_call_meets_only_its_operations_own(
    mode: Literal["exact", "leases"], make_system: Callable[..., ProductionSystem], redis_server: RedisServer
) -> None:
    own = RateLimitRule(requests_per_second=1 / 3600, burst_capacity=2)
    limits = RateLimitConfig(
        requests_per_second=1 / 3600,
        burst_capacity=1,
        storage_uri=SecretStr(redis_server.uri),
        storage_mode=mode,
    )
    system = make_system(rate_limiting=limits, operations={"op": OperationConfig(rate_limit=own)})

    async def outer() -> str:
        for _ in range(2):
            await system.execute_protected_operation("unlimited", lambda: 1)
            await system.execute_protected_operation("op", lambda: 1)
        with pytest.raises(RateLimitedError) as refused:
            await system.execute_protected_operation("op", lambda: 1)
        return refused.value.scope

    async with system:
        assert await system.execute_protected_operation("outer", outer) == "operation"


def test_a_system_without_a_store_has_neither_check_nor_metric(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    assert system.shared_circuits is None
    assert "circuit_sharing" not in {each.name for each in system.health.components()}
    assert "llmkg.circuit_breaker.storage.status" not in telemetry.metrics()
