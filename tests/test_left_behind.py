"""What outlives its call: a thread that nothing can stop, a task that the operation started."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from support.calls import ONCE_MORE, everything_given_back, join_operations

from llmkg_otel.call import current_call, remaining_time
from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, ResourceLimits, RetryConfig
from llmkg_otel.errors import OperationTimeoutError, OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]


class Hung:
    """A sync operation that hangs until it is let go, and notes how many are in it."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.released = threading.Event()
        self.calls = 0

    def __call__(self) -> float | None:
        self.calls += 1
        self._loop.call_soon_threadsafe(self.entered.set)
        self.released.wait()
        return remaining_time()


@pytest.fixture
async def hung() -> AsyncIterator[Hung]:
    hung = Hung()
    yield hung
    hung.released.set()
    join_operations()


async def enter_and_cancel(system: ProductionSystem, hung: Hung) -> None:
    call = asyncio.create_task(system.execute_protected_operation("op", hung))
    await hung.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_thread_that_was_given_up_keeps_its_permit_until_it_ends(
    make_system: MakeSystem, hung: Hung
) -> None:
    system = make_system(
        operations={"op": OperationConfig(max_concurrent=1)},
        resources=ResourceLimits(max_queue_wait_seconds=0.01),
    )
    with everything_given_back(system):
        await enter_and_cancel(system, hung)
        for _ in range(5):
            with pytest.raises(OverloadedError):
                await system.execute_protected_operation("op", hung)
        assert (hung.calls, [pool.usage for pool in system.operations.pools()]) == (1, [1, 1])
        hung.released.set()
        join_operations()
    await system.execute_protected_operation("op", hung)
    assert hung.calls == 2


async def test_a_call_whose_thread_still_runs_is_not_tried_again(make_system: MakeSystem, hung: Hung) -> None:
    again = RetryConfig(max_retries=3, base_delay_ms=0, max_delay_ms=0)
    quick = CircuitBreakerConfig(timeout=0.02)
    op = OperationConfig(idempotent=True, retry=again, circuit_breaker=quick)
    system = make_system(operations={"op": op})
    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", hung)
    assert hung.calls == 1
    (operation,) = system.operations
    assert operation.retry.calls == {"not_retryable": 1}


async def test_code_that_was_given_up_can_see_that_nobody_waits(system: ProductionSystem, hung: Hung) -> None:
    seen: list[float | None] = []

    def operation() -> None:
        seen.append(remaining_time())
        seen.append(hung())

    call = asyncio.create_task(system.execute_protected_operation("op", operation))
    await hung.entered.wait()
    call.cancel()
    await asyncio.wait({call})
    hung.released.set()
    join_operations()
    before, after = seen
    assert before is not None
    assert after is not None
    assert before > 0 >= after


async def test_what_a_task_does_after_the_call_that_started_it_is_a_call_of_its_own(
    make_system: MakeSystem,
) -> None:
    system = make_system(operations={"inner": ONCE_MORE})
    over, attempts = asyncio.Event(), 0

    async def inner() -> tuple[bool, str | None, float]:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionError
        call = current_call()
        assert call is not None
        return call.nested, call.user_id, call.remaining()

    async def later() -> tuple[bool, str | None, float]:
        await over.wait()
        return await system.execute_protected_operation("inner", inner)

    async def outer() -> asyncio.Task[tuple[bool, str | None, float]]:
        return asyncio.create_task(later())

    system.configure_operation("outer", OperationConfig(timeout=5))
    task = await system.execute_protected_operation("outer", outer, user_id="alice")
    over.set()
    nested, user, remaining = await task
    assert (nested, user, attempts) == (False, None, 2)
    assert remaining > 20  # not what is left of outer's 5 seconds


async def test_a_shutdown_refuses_what_a_task_left_behind_begins(system: ProductionSystem) -> None:
    over = asyncio.Event()

    async def noop() -> None:
        """Do nothing."""

    async def later() -> None:
        await over.wait()
        await system.execute_protected_operation("inner", noop)

    async def outer() -> asyncio.Task[None]:
        return asyncio.create_task(later())

    async with system:
        task = await system.execute_protected_operation("outer", outer)
    over.set()
    with pytest.raises(ShuttingDownError):
        await task


async def test_a_thread_left_within_a_call_keeps_that_calls_permit_and_stops_its_retries(
    make_system: MakeSystem, hung: Hung
) -> None:
    system = make_system(
        operations={"outer": OperationConfig(max_concurrent=1)},
        resources=ResourceLimits(max_queue_wait_seconds=0.01),
    )
    system.configure_operation("inner", OperationConfig(circuit_breaker=CircuitBreakerConfig(timeout=0.02)))

    async def outer() -> None:
        try:
            await system.execute_protected_operation("inner", hung)
        except OperationTimeoutError:
            raise ConnectionError from None

    with everything_given_back(system):
        with pytest.raises(ConnectionError):
            await system.execute_protected_operation("outer", outer)
        with pytest.raises(OverloadedError):
            await system.execute_protected_operation("outer", outer)
        assert hung.calls == 1
        hung.released.set()
        join_operations()
