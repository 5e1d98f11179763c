from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import CircuitBreakerConfig, ResourceLimits, RetryConfig
from llmkg_otel.recovery.budget import RetryBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem


@pytest.mark.parametrize("in_flight", [0, 1, 14, 15, 19, 20, 99, 100, 1000, 12_345])
def test_a_fifth_of_the_calls_in_flight_may_be_retrying_and_three_always(in_flight: int) -> None:
    budget = RetryBudget(lambda: in_flight)
    allowed = max(3, in_flight // 5)
    assert budget.limit == allowed
    assert [budget.try_acquire() for _ in range(allowed + 2)] == [True] * allowed + [False] * 2
    assert budget.usage == allowed


@given(st.lists(st.one_of(st.sampled_from(["take", "keep", "give"]), st.integers(0, 100))))
def test_a_place_is_given_exactly_while_fewer_retries_run_than_are_allowed(steps: list[str | int]) -> None:
    in_flight = used = 0
    budget = RetryBudget(lambda: in_flight)
    for step in steps:
        if isinstance(step, int):
            in_flight = step
        elif step == "take":
            free = used < max(3, in_flight // 5)
            assert budget.try_acquire() is free
            used += free
        elif step == "keep" and used:
            kept = used <= max(3, in_flight // 5)
            assert budget.keep() is kept
            used -= not kept
        elif used:
            budget.release()
            used -= 1
        assert budget.usage == used


def test_threads_never_take_more_than_there_is_and_leave_nothing_behind() -> None:
    budget = RetryBudget(lambda: 20)
    start, count = threading.Barrier(8), threading.Lock()
    retrying = most = refused = 0

    def worker() -> None:
        nonlocal retrying, most, refused
        start.wait(5)
        for _ in range(300):
            if budget.try_acquire():
                with count:
                    retrying += 1
                    most = max(most, retrying)
                with count:
                    retrying -= 1
                budget.release()
            else:
                refused += 1

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(worker) for _ in range(8)]:
            done.result()
    assert 1 <= most <= budget.limit == 4
    assert budget.usage == 0


def test_of_many_threads_at_once_exactly_as_many_as_allowed_get_a_place() -> None:
    budget = RetryBudget(lambda: 50)
    start = threading.Barrier(32)

    def take() -> bool:
        start.wait(5)
        return budget.try_acquire()

    with ThreadPoolExecutor(32) as threads:
        assert sum(done.result() for done in [threads.submit(take) for _ in range(32)]) == 10


async def test_calls_that_wait_for_a_permit_allow_no_retries(
    make_system: Callable[..., ProductionSystem],
) -> None:
    system = make_system(
        resources=ResourceLimits(max_concurrent_operations=20, max_queue_wait_seconds=60),
        retry=RetryConfig(max_retries=1, base_delay_ms=5000),
        circuit_breaker=CircuitBreakerConfig(enabled=False),
    )
    system.operations.named("op").retry._sleep = lambda _: release.wait()  # type: ignore[assignment,return-value]
    release, failing = asyncio.Event(), asyncio.Event()

    async def operation() -> None:
        await failing.wait()
        raise ConnectionError

    calls = [asyncio.ensure_future(system.execute_protected_operation("op", operation)) for _ in range(100)]
    for _ in range(10):
        await asyncio.sleep(0)
    (pool,) = system.operations.pools()
    assert (pool.usage, pool.pending, system.retry_budget.limit) == (20, 80, 4)
    failing.set()
    seen = 0
    while len(system.calls) > system.retry_budget.usage:
        await asyncio.sleep(0)
        seen = max(seen, system.retry_budget.usage)
    assert seen == 4
    assert pool.usage == 4  # a call that waits before a retry keeps what it was admitted with
    release.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert system.retry_budget.usage == 0


async def test_calls_that_retry_give_their_places_back_when_the_healthy_ones_have_gone(
    make_system: Callable[..., ProductionSystem],
) -> None:
    """20 of 100 may retry; of those only, as they leave, ever fewer, down to 3."""
    system = make_system(
        resources=ResourceLimits(max_concurrent_operations=100),
        retry=RetryConfig(max_retries=2, base_delay_ms=0, max_delay_ms=0),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1000),
    )
    healthy, second, third = asyncio.Event(), asyncio.Event(), 0
    attempts: Counter[int] = Counter()

    async def works() -> None:
        await healthy.wait()

    async def fails(number: int) -> None:
        nonlocal third
        attempts[number] += 1
        if attempts[number] == 2:
            await second.wait()
        third += attempts[number] == 3
        raise ConnectionRefusedError

    async def call(number: int) -> None:
        await system.execute_protected_operation("op", lambda: fails(number))

    async with asyncio.TaskGroup() as tasks:
        good = [tasks.create_task(system.execute_protected_operation("op", works)) for _ in range(80)]
        await wait_until(lambda: system.calls.by_operation().get("op") == 80)
        failing = [asyncio.create_task(call(number)) for number in range(20)]
        await wait_until(lambda: sum(attempts.values()) == 40)
        assert system.retry_budget.usage == 20
        healthy.set()
        await asyncio.gather(*good)
        second.set()
        await asyncio.gather(*failing, return_exceptions=True)
    assert third == 3
    (op,) = system.operations
    assert op.retry.calls == {"budget_exhausted": 17, "exhausted": 3}


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - several calls make it true together
        await asyncio.sleep(0)
