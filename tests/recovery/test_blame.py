"""Whose fault a failure is: callers' mistakes and our own refusals open no circuit and are not retried."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.calls import SIMPLE, exits

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, RetryConfig
from llmkg_otel.engine.embedded import EngineBusyError, EngineClosedError
from llmkg_otel.engine.protocol import CapacityExceededError
from llmkg_otel.errors import (
    CircuitOpenError,
    ConfigurationError,
    InvalidInputError,
    OperationTimeoutError,
    RateLimitedError,
    ResourceExhaustedError,
    ResponseTooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem

NOBODYS = [
    InvalidInputError("wrong"),
    ConfigurationError("wrong"),
    CapacityExceededError("full"),
    ResponseTooLargeError("ask for less"),
    RateLimitedError("later", operation="other", scope="a rule"),
    ResourceExhaustedError("too large", operation="other", scope="a rule"),
    CircuitOpenError("of another operation", operation="other", scope="a rule"),
]
THE_ENGINES = [
    ConnectionError("down"),
    EngineBusyError("locked"),
    EngineClosedError("closed"),
    OperationTimeoutError("other", "attempt", 1.0),
]


@pytest.mark.parametrize("error", NOBODYS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("path", SIMPLE)
async def test_errors_that_say_nothing_of_the_engine_open_no_circuit_and_are_final(
    path: Path, error: Exception, make_system: Callable[..., ProductionSystem]
) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    for _ in range(3):
        with pytest.raises(type(error)):
            await path(system, exits(error))
    (op,) = system.operations
    assert (op.breaker.state, op.breaker.calls["ignored"]) == ("closed", 3)


@pytest.mark.parametrize("error", THE_ENGINES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("path", SIMPLE)
async def test_errors_of_the_engine_open_the_circuit(
    path: Path, error: Exception, make_system: Callable[..., ProductionSystem]
) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    with pytest.raises(type(error)):
        await path(system, exits(error))
    (op,) = system.operations
    assert op.breaker.state == "open"


async def test_an_engine_that_was_busy_is_asked_again(system: ProductionSystem) -> None:
    answers: list[Exception | None] = [EngineBusyError("locked"), None]

    async def operation() -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return "stored"

    assert await system.execute_protected_operation("op", operation) == "stored"


async def test_a_wait_in_our_own_queue_is_no_fault_of_the_engines(
    make_system: Callable[..., ProductionSystem],
) -> None:
    op = OperationConfig(timeout=0.2, max_concurrent=1, retry=RetryConfig(max_retries=0))
    system = make_system(operations={"op": op}, circuit_breaker=CircuitBreakerConfig(failure_threshold=1))

    async def operation() -> None:
        await asyncio.sleep(0.15)

    run = system.execute_protected_operation
    first, second = await asyncio.gather(run("op", operation), run("op", operation), return_exceptions=True)
    assert first is None
    assert isinstance(second, OperationTimeoutError)
    assert system.circuit_breaker("op").state == "closed"


def test_work_that_has_yet_to_be_awaited_is_no_success(system: ProductionSystem) -> None:
    async def operation() -> None:
        """Never awaited."""

    def begin() -> object:
        return operation()

    with pytest.raises(InvalidInputError, match="it returned an awaitable"):
        system.execute_protected_operation_sync("op", begin)
    assert system.circuit_breaker("op").calls["success"] == 0
