"""How much time a call has: its operation's, less if its caller or the call around it allows less."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.call import remaining_time
from llmkg_otel.config import CircuitBreakerConfig, OperationConfig
from llmkg_otel.errors import InvalidInputError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]

ONE_FAILURE = CircuitBreakerConfig(failure_threshold=1)


async def forever() -> None:
    await asyncio.Event().wait()


async def left() -> float:
    seconds = remaining_time()
    assert seconds is not None
    return seconds


@pytest.mark.parametrize(("allowed", "most"), [(None, 30), (5, 5), (1000, 30)])
async def test_a_caller_can_allow_less_time_and_not_more(
    allowed: float | None, most: float, system: ProductionSystem
) -> None:
    seconds = await system.execute_protected_operation("op", left, timeout_seconds=allowed)
    assert most - 1 < seconds <= most
    in_a_thread = system.execute_protected_operation_sync("op", remaining_time, timeout_seconds=allowed)
    assert in_a_thread is not None
    assert most - 1 < in_a_thread <= most


@pytest.mark.parametrize("allowed", [0, -1, math.nan, math.inf])
async def test_no_time_at_all_is_the_callers_mistake(allowed: float, system: ProductionSystem) -> None:
    with pytest.raises(InvalidInputError, match="timeout"):
        await system.execute_protected_operation("op", left, timeout_seconds=allowed)


async def test_an_impatient_caller_closes_the_door_to_nobody_else(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE)
    for _ in range(3):
        with pytest.raises(OperationTimeoutError) as caught:
            await system.execute_protected_operation("op", forever, timeout_seconds=0.01)
        assert (caught.value.kind, caught.value.seconds) == ("deadline", 0.01)
    assert system.circuit_breaker("op").state == "closed"


async def test_neither_does_the_deadline_of_a_call_around_it(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE, operations={"outer": OperationConfig(timeout=0.02)})

    async def outer() -> None:
        await system.execute_protected_operation("inner", forever)

    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("outer", outer)
    assert system.circuit_breaker("inner").state == "closed"
    assert system.circuit_breaker("outer").state == "open"


async def test_an_operation_that_misses_its_own_deadline_fails(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE, operations={"op": OperationConfig(timeout=0.02)})
    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", forever)
    assert system.circuit_breaker("op").state == "open"


async def test_a_sync_operation_that_ignores_its_limit_is_reported(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    quick = OperationConfig(circuit_breaker=CircuitBreakerConfig(timeout=0.01))
    system = make_system(operations={"op": quick})
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> str:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()
        return "late"

    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", slow)
    (op,) = system.operations
    assert len(op.abandoned) == 1
    assert next(iter(telemetry.metric("llmkg.operation.abandoned").values())) == 1
    (record,) = [each for each in telemetry.logs() if "thread runs on" in str(each.log_record.body)]
    assert record.log_record.event_name == "llmkg.operation.time_limit_ignored"
    (thread,) = op.abandoned
    released.set()
    await asyncio.wrap_future(thread)
    assert next(iter(telemetry.metric("llmkg.operation.abandoned").values())) == 0
