"""Recovery through the whole system: what its options, its timing and its signals come to for a caller."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import (
    asynchronous,
    everything_given_back,
    exits,
    failing_first,
    in_a_thread,
    in_the_calling_thread,
)

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, RetryConfig
from llmkg_otel.errors import CircuitOpenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

WAYS: list[Path] = [asynchronous, in_a_thread, in_the_calling_thread]
NO_RETRY = RetryConfig(max_retries=0)


async def quickest(of: Callable[[], Awaitable[object]], runs: int = 3) -> float:
    """Return the seconds of the quickest run: a busy neighbour only ever adds."""
    seconds = []
    for _ in range(runs):
        began = time.monotonic()
        await of()
        seconds.append(time.monotonic() - began)
    return min(seconds)


@pytest.mark.parametrize("fails_first", [False, True], ids=["in the operation", "before a retry"])
async def test_a_caller_that_waits_a_tenth_of_a_second_waits_no_longer(
    fails_first: bool, make_system: MakeSystem
) -> None:
    patient = RetryConfig(base_delay_ms=5000, max_delay_ms=5000, jitter_factor=0)
    system = make_system(operations={"op": OperationConfig(retry=patient, max_concurrent=1)})

    async def operation() -> None:
        if fails_first:
            raise ConnectionError
        await asyncio.sleep(5)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(system.execute_protected_operation("op", operation), 0.1)

    tasks = asyncio.all_tasks()
    with everything_given_back(system):
        assert 0.1 <= await quickest(impatient) < 0.2
    assert asyncio.all_tasks() == tasks
    (op,) = system.operations
    assert op.retry.calls == {}


async def test_eight_threads_of_a_tenth_of_a_second_take_little_longer(
    system: ProductionSystem,
) -> None:
    with ThreadPoolExecutor(8) as threads:

        async def together() -> None:
            call = system.execute_protected_operation_sync
            list(threads.map(lambda _: call("op", lambda: time.sleep(0.1)), range(8)))

        assert await quickest(together) < 0.2
    (op,) = system.operations
    assert op.breaker.calls["success"] == 24


async def test_fifty_tasks_of_a_tenth_of_a_second_take_little_longer(system: ProductionSystem) -> None:
    async def operation() -> None:
        await asyncio.sleep(0.1)

    async def together() -> None:
        await asyncio.gather(*(system.execute_protected_operation("op", operation) for _ in range(50)))

    assert await quickest(together) < 0.3


def test_a_signal_that_interrupts_a_call_ends_the_program_and_is_nobodys_failure(
    make_system: MakeSystem,
) -> None:
    system = make_system(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
        operations={"op": OperationConfig(max_concurrent=1)},
    )
    attempts = count()

    async def operation() -> None:
        next(attempts)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(5)

    async def main() -> None:
        await system.execute_protected_operation("op", operation)

    with everything_given_back(system):
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        with pytest.raises(KeyboardInterrupt):
            system.execute_protected_operation_sync("op", lambda: signal.raise_signal(signal.SIGINT))
    (op,) = system.operations
    assert next(attempts) == 1
    assert op.breaker.calls == {"success": 0, "failure": 0, "ignored": 2, "rejected": 0}
    assert op.retry.calls == {}


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_that_succeeds_at_once_never_enters_tenacity(
    way: Path, system: ProductionSystem
) -> None:
    entered: list[str] = []

    def profile(frame: Any, event: str, _arg: object) -> None:
        if event == "call" and "/tenacity/" in frame.f_code.co_filename:
            entered.append(frame.f_code.co_qualname)

    async def profiled(step: Callable[[], object]) -> bool:
        entered.clear()
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            await way(system, step)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return bool(entered)

    assert not await profiled(lambda: None)
    assert await profiled(failing_first(lambda: None))


async def test_when_the_call_that_probes_is_cancelled_another_is_let_through(make_system: MakeSystem) -> None:
    once = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, recovery_timeout=1e-3)
    system = make_system(retry=NO_RETRY, circuit_breaker=once)
    with pytest.raises(ConnectionError):
        await asynchronous(system, exits(ConnectionError()))
    await asyncio.sleep(0.01)
    reached = asyncio.Event()

    async def probe() -> None:
        reached.set()
        await asyncio.Event().wait()

    holder = asyncio.create_task(system.execute_protected_operation("op", probe))
    await reached.wait()
    with pytest.raises(CircuitOpenError, match="half open"):
        await asynchronous(system, lambda: "refused")
    holder.cancel()
    await asyncio.wait({holder})
    assert await asynchronous(system, lambda: "let through") == "let through"
    (op,) = system.operations
    assert op.breaker.state == "closed"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [{"sliding_window_calls": 10}, {"sliding_window_seconds": 3600}])
async def test_half_of_the_calls_failing_open_the_circuit_though_never_two_in_a_row(
    way: Path, window: dict[str, float], make_system: MakeSystem
) -> None:
    half = CircuitBreakerConfig(failure_rate_threshold=0.5, minimum_calls=10, **window)
    system = make_system(retry=NO_RETRY, circuit_breaker=half)
    for number in range(10):
        if number % 2:
            await way(system, lambda: None)
        else:
            with pytest.raises(ConnectionError):
                await way(system, exits(ConnectionError()))
    with pytest.raises(CircuitOpenError) as refused:
        await way(system, lambda: None)
    assert refused.value.limit == "50% of calls failed"


@pytest.mark.parametrize("way", WAYS)
async def test_slow_calls_open_the_circuit_though_all_of_them_succeed(
    way: Path, make_system: MakeSystem
) -> None:
    slow = CircuitBreakerConfig(slow_call_rate_threshold=0.5, slow_call_seconds=0.01, minimum_calls=4)
    system = make_system(circuit_breaker=slow)
    for number in range(4):
        await way(system, (lambda: time.sleep(0.02)) if number % 2 else (lambda: None))
    with pytest.raises(CircuitOpenError) as refused:
        await way(system, lambda: None)
    assert refused.value.limit == "50% of calls were slow"


async def test_of_forty_calls_that_fail_together_eight_are_tried_again(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(enabled=False))
    together, again, entered = asyncio.Barrier(40), asyncio.Barrier(8), count(1)

    async def operation() -> str:
        if next(entered) <= 40:
            await together.wait()
            raise ConnectionError
        await again.wait()
        return "found"

    calls = (system.execute_protected_operation("op", operation) for _ in range(40))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results.count("found") == 8
    (op,) = system.operations
    assert op.retry.calls == {"recovered": 8, "budget_exhausted": 32}
    assert system.retry_budget.usage == 0


def test_of_forty_threads_whose_calls_fail_together_eight_try_again(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(enabled=False))
    together, refused = threading.Barrier(40), threading.Barrier(33)
    entered, everybody_else_gave_up = count(1), threading.Event()

    def operation() -> str:
        if next(entered) <= 40:
            together.wait(20)
            raise ConnectionError
        everybody_else_gave_up.wait(20)
        return "found"

    def call() -> str:
        try:
            return system.execute_protected_operation_sync("op", operation)
        except ConnectionError:
            refused.wait(20)
            return "failed"

    with ThreadPoolExecutor(40) as threads:
        calls = [threads.submit(call) for _ in range(40)]
        refused.wait(20)
        everybody_else_gave_up.set()
    assert [each.result() for each in calls].count("found") == 8
    assert system.retry_budget.usage == 0


async def test_an_operation_under_new_policies_keeps_circuit_window_counts_and_permits(
    make_system: MakeSystem,
) -> None:
    half = CircuitBreakerConfig(failure_rate_threshold=0.5, minimum_calls=4, recovery_timeout=1e6)
    before = OperationConfig(circuit_breaker=half, retry=NO_RETRY, max_concurrent=2)
    system = make_system(operations={"op": before})
    (op,) = system.operations
    hold, reached = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        reached.set()
        await hold.wait()

    waiting = asyncio.create_task(system.execute_protected_operation("op", held))
    await reached.wait()
    await asynchronous(system, lambda: None)
    with pytest.raises(ConnectionError):
        await asynchronous(system, exits(ConnectionError()))
    stricter = half.model_copy(update={"failure_rate_threshold": 0.6, "minimum_calls": 3})
    after = before.model_copy(update={"circuit_breaker": stricter, "max_concurrent": 5})
    system.configure_operation("op", after)
    assert op.breaker.rates == {"calls": 2, "failure_rate": 0.5, "slow_call_rate": 0}
    assert [pool.usage for pool in op.pools] == [1, 1]
    with pytest.raises(ConnectionError):
        await asynchronous(system, exits(ConnectionError()))
    assert op.breaker.state == "open"
    system.configure_operation("op", before)
    with pytest.raises(CircuitOpenError):
        await asynchronous(system, lambda: None)
    soon = half.model_copy(update={"recovery_timeout": 1e-9})
    system.configure_operation("op", before.model_copy(update={"circuit_breaker": soon}))
    await asynchronous(system, lambda: None)
    hold.set()
    await waiting
    assert op.breaker.state == "half_open"
    assert op.breaker.calls == {"success": 3, "failure": 2, "ignored": 0, "rejected": 1}
    assert [pool.usage for pool in op.pools] == [0, 0]
