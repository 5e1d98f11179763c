"""Every way out of a call, on every way into one: recorded once, and everything given back."""

from __future__ import annotations

import asyncio
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import (
    ONCE_MORE,
    PATHS,
    SIMPLE,
    assert_told_once,
    asynchronous,
    everything_given_back,
    exits,
    join_operations,
)

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, ResourceLimits, RetryConfig
from llmkg_otel.errors import OperationTimeoutError, error_type

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]
    Waiting = Callable[[ProductionSystem], Coroutine[Any, Any, None]]

PROBING = CircuitBreakerConfig(failure_threshold=1, recovery_timeout=1e-9, timeout=5)
"""A failure opens the circuit, and the very next attempt is a probe: one that is lost would be missed."""
EXITS = [ValueError, TimeoutError, KeyboardInterrupt, SystemExit, GeneratorExit]
"""What an engine may raise. A CancelledError of its own is a failure: see recovery/test_deadlines.py."""


@pytest.fixture
def probing(make_system: MakeSystem) -> ProductionSystem:
    """Make a system whose one permit and one probe would be missed."""
    return make_system(
        retry=RetryConfig(max_retries=0),
        circuit_breaker=PROBING,
        resources=ResourceLimits(max_queue_wait_seconds=20),
        operations={"op": OperationConfig(max_concurrent=1)},
    )


def half_open(system: ProductionSystem) -> None:
    for op in system.operations:
        op.breaker.failed(op.breaker.admit_sync(), ConnectionError())


@pytest.mark.parametrize("path", PATHS)
async def test_a_call_that_returns_gives_its_result_and_everything_back(
    path: Path, probing: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    half_open(probing)
    result = object()
    with everything_given_back(probing):
        assert await path(probing, lambda: result) is result
    assert_told_once(probing, telemetry, None)


@pytest.mark.parametrize("exit_", EXITS)
@pytest.mark.parametrize("path", PATHS)
async def test_what_the_engine_raises_arrives_as_the_same_object_and_everything_is_given_back(
    path: Path, exit_: type[BaseException], probing: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    half_open(probing)
    raised = exit_("from the engine")
    with everything_given_back(probing):
        with pytest.raises(exit_) as caught:
            await path(probing, exits(raised))
        assert caught.value is raised
    assert_told_once(probing, telemetry, error_type(raised))


@pytest.mark.parametrize("exit_", EXITS[2:])
@pytest.mark.parametrize("path", SIMPLE)
async def test_an_exit_is_never_retried_and_never_held_against_the_engine(
    path: Path, exit_: type[BaseException], system: ProductionSystem
) -> None:
    reached = count()

    def step() -> None:
        next(reached)
        raise exit_

    with pytest.raises(exit_):
        await path(system, step)
    (op,) = system.operations
    assert next(reached) == 1
    assert op.breaker.calls == {"success": 0, "failure": 0, "ignored": 1, "rejected": 0}
    assert op.retry.calls == {}


async def forever() -> None:
    await asyncio.Event().wait()


async def waits_in_the_operation(system: ProductionSystem) -> None:
    await system.execute_protected_operation("op", forever)


async def waits_in_a_thread(system: ProductionSystem) -> None:
    ended = threading.Event()
    try:
        await system.execute_protected_operation("op", ended.wait)
    finally:
        ended.set()
        join_operations()


async def waits_in_a_nested_call(system: ProductionSystem) -> None:
    async def outer() -> None:
        await waits_in_the_operation(system)

    await system.execute_protected_operation("outer", outer)


async def waits_for_a_permit(system: ProductionSystem) -> None:
    pool = next(pool for pool in system.operations.pools() if pool.name == "op")
    assert pool.try_acquire()
    try:
        await system.execute_protected_operation("op", forever)
    finally:
        pool.release()


async def waits_before_a_retry(system: ProductionSystem) -> None:
    long = RetryConfig(max_retries=1, base_delay_ms=20_000, max_delay_ms=20_000)
    system.configure_operation("op", OperationConfig(retry=long, max_concurrent=1))
    await asynchronous(system, exits(ConnectionError()))


async def waits_in_the_second_attempt(system: ProductionSystem) -> None:
    system.configure_operation("op", ONCE_MORE)
    attempts = count()

    async def operation() -> None:
        if next(attempts) == 0:
            raise ConnectionError
        await forever()

    await system.execute_protected_operation("op", operation)


WAITS: list[tuple[Waiting, int]] = [
    (waits_in_the_operation, 1),
    (waits_in_a_thread, 1),
    (waits_in_a_nested_call, 1),
    (waits_for_a_permit, 1),
    (waits_before_a_retry, 1),
    (waits_in_the_second_attempt, 2),
]


@pytest.mark.parametrize("exit_", EXITS[2:])
@pytest.mark.parametrize(("waiting", "steps"), WAITS)
async def test_an_exit_that_comes_while_a_call_waits_leaves_nothing_behind(
    waiting: Waiting,
    steps: int,
    exit_: type[BaseException],
    probing: ProductionSystem,
    telemetry: CapturedTelemetry,
) -> None:
    thrown = exit_()
    with everything_given_back(probing):
        coroutine = waiting(probing)
        for _ in range(steps):  # by hand: the event loop would not survive a KeyboardInterrupt
            coroutine.send(None)
        assert len(probing.calls) > 0
        with pytest.raises(exit_) as caught:
            coroutine.throw(thrown)
        assert caught.value is thrown
    assert_told_once(probing, telemetry, error_type(thrown))


@pytest.mark.parametrize(("waiting", "_steps"), WAITS)
async def test_a_task_cancelled_while_its_call_waits_ends_cancelled(
    waiting: Waiting,
    _steps: int,
    probing: ProductionSystem,
    telemetry: CapturedTelemetry,
) -> None:
    with everything_given_back(probing):
        task = asyncio.create_task(waiting(probing))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
    assert_told_once(probing, telemetry, "cancelled")


@pytest.mark.parametrize("where", ["for a permit", "before a retry"])
def test_a_signal_that_comes_while_a_thread_waits_leaves_nothing_behind(
    where: str, probing: ProductionSystem, telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    probing.configure_operation("op", ONCE_MORE)
    (op,) = probing.operations
    op.retry._sleep_sync = interrupted
    with everything_given_back(probing):
        if held := where == "for a permit" and op.pools[0].try_acquire():
            monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            probing.execute_protected_operation_sync("op", exits(ConnectionError()))
        if held:
            op.pools[0].release()
    assert_told_once(probing, telemetry, "KeyboardInterrupt")


@pytest.mark.parametrize("kind", ["attempt", "deadline"])
@pytest.mark.parametrize("path", [waits_in_the_operation, waits_in_a_thread, waits_in_the_second_attempt])
async def test_a_call_that_runs_out_of_time_says_which_time(
    path: Waiting,
    kind: str,
    make_system: MakeSystem,
    telemetry: CapturedTelemetry,
) -> None:
    short, long = 0.02, 20
    breaker = PROBING.model_copy(update={"timeout": short if kind == "attempt" else long})
    limits = ResourceLimits(operation_timeout_seconds=long if kind == "attempt" else short)
    bulkhead = {"op": OperationConfig(max_concurrent=1)}
    system = make_system(circuit_breaker=breaker, resources=limits, operations=bulkhead)
    with everything_given_back(system):
        with pytest.raises(OperationTimeoutError) as caught:
            await path(system)
        assert (caught.value.kind, caught.value.seconds) == (kind, short)
    assert_told_once(system, telemetry, "deadline_exceeded")
