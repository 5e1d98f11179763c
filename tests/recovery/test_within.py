"""Calls within calls: of one system or of two, on engines that hang, with what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import join_operations

from llmkg_otel.call import Call, current_call, remaining_time
from llmkg_otel.config import (
    CircuitBreakerConfig,
    OperationConfig,
    ProductionConfig,
    RateLimitConfig,
    RetryConfig,
)
from llmkg_otel.errors import OperationTimeoutError, RateLimitedError, ShuttingDownError
from llmkg_otel.system import ProductionSystem
from llmkg_otel.testing import CapturedTelemetry, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeSystem = Callable[..., ProductionSystem]

HANGS = CircuitBreakerConfig(failure_threshold=2, timeout=0.3)


async def hangs() -> None:
    await asyncio.Event().wait()


async def model_down(system: ProductionSystem) -> None:
    await system.execute_protected_operation("model", hangs)


async def in_a_task(system: ProductionSystem) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(model_down(system))


async def as_a_rung(system: ProductionSystem) -> None:
    async def fails() -> None:
        raise ConnectionRefusedError

    await system.execute_protected_operation("answer", fails, fallbacks={"model": lambda: model_down(system)})


def with_limits(make_system: MakeSystem, inner: float = 0.3) -> ProductionSystem:
    system = make_system(retry=RetryConfig(max_retries=0))
    for name in ("answer", "between"):
        system.configure_operation(name, OperationConfig(circuit_breaker=HANGS))
    breaker = CircuitBreakerConfig(failure_threshold=2, timeout=inner)
    system.configure_operation("model", OperationConfig(circuit_breaker=breaker))
    return system


@pytest.mark.parametrize("way", [model_down, in_a_task], ids=lambda way: way.__name__)
@pytest.mark.parametrize("between", [False, True])
async def test_an_inner_engine_that_hangs_opens_its_own_circuit_though_the_outer_timer_rings_first(
    make_system: MakeSystem, way: Callable[[ProductionSystem], Any], *, between: bool
) -> None:
    system = with_limits(make_system)

    async def answer() -> None:
        if between:
            await system.execute_protected_operation("between", lambda: way(system))
        else:
            await way(system)

    for _ in range(2):
        with pytest.raises(OperationTimeoutError):
            await system.execute_protected_operation("answer", answer)
    assert system.circuit_breaker("model").calls["failure"] == 2
    assert system.circuit_breaker("model").state == "open"
    assert system.circuit_breaker("answer").state == "open"


async def test_a_rung_that_hangs_in_a_protected_call_opens_the_circuit_of_that(
    make_system: MakeSystem,
) -> None:
    system = with_limits(make_system)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await as_a_rung(system)
    assert system.circuit_breaker("model").state == "open"


async def test_a_caller_who_cancels_opens_no_circuit_within(make_system: MakeSystem) -> None:
    system = with_limits(make_system)
    for _ in range(3):
        task = asyncio.create_task(system.execute_protected_operation("answer", lambda: model_down(system)))
        while not system.calls.by_operation().get("model"):  # noqa: ASYNC110 - nobody has an event for it
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert system.circuit_breaker("model").calls == {
        "success": 0,
        "failure": 0,
        "ignored": 3,
        "rejected": 0,
    }


async def test_an_outer_call_in_a_hurry_blames_no_inner_engine(make_system: MakeSystem) -> None:
    system = with_limits(make_system, inner=30)
    for _ in range(3):
        with pytest.raises(OperationTimeoutError):
            await system.execute_protected_operation(
                "answer", lambda: model_down(system), timeout_seconds=0.01
            )
    assert system.circuit_breaker("model").calls["ignored"] == 3


@pytest.fixture
def other_system() -> Iterator[Callable[..., ProductionSystem]]:
    with captured_telemetry() as telemetry:
        yield lambda **sections: ProductionSystem(
            None,
            ProductionConfig(**sections),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )


async def test_a_system_within_another_ones_call_keeps_its_own_limits(
    make_system: MakeSystem, other_system: Callable[..., ProductionSystem]
) -> None:
    outer = make_system()
    inner = other_system(rate_limiting=RateLimitConfig(requests_per_second=0.001, burst_capacity=1))
    inner.configure_operation("op", OperationConfig(max_concurrent=1))
    seen: list[Call] = []

    async def store() -> None:
        call = current_call()
        assert call is not None
        assert call.parent is not None
        assert call.deadline == call.parent.deadline
        seen.append(call)

    async def op() -> None:
        await inner.execute_protected_operation("op", store)
        with pytest.raises(RateLimitedError):
            await inner.execute_protected_operation("op", store)

    await outer.execute_protected_operation("op", op, user_id="ada", correlation_id="correlated")
    (call,) = seen
    assert not call.nested
    assert (call.user_id, call.correlation_id) == ("ada", "correlated")


async def test_a_call_back_into_the_first_system_was_admitted_there(
    make_system: MakeSystem, other_system: Callable[..., ProductionSystem]
) -> None:
    outer, inner = make_system(), other_system()
    outer.configure_operation("op", OperationConfig(max_concurrent=1))

    async def done() -> str:
        return "done"

    async def back() -> str:
        return await outer.execute_protected_operation("op", done)

    async def into() -> str:
        return await inner.execute_protected_operation("op", back)

    assert await outer.execute_protected_operation("op", into) == "done"


async def test_only_the_outermost_call_retries_whatever_system_it_is_of(
    make_system: MakeSystem, other_system: Callable[..., ProductionSystem]
) -> None:
    retry = RetryConfig(max_retries=2, base_delay_ms=0, max_delay_ms=0)
    outer, inner = make_system(retry=retry), other_system(retry=retry)
    entered = 0

    async def fails() -> None:
        nonlocal entered
        entered += 1
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        await outer.execute_protected_operation("op", lambda: inner.execute_protected_operation("op", fails))
    assert entered == 3


async def test_a_system_that_drains_refuses_what_comes_out_of_another_ones_calls(
    make_system: MakeSystem, other_system: Callable[..., ProductionSystem]
) -> None:
    outer, inner = make_system(), other_system()
    inner.calls.stop_accepting()

    async def op() -> None:
        await inner.execute_protected_operation("op", hangs)

    with pytest.raises(ShuttingDownError):
        await outer.execute_protected_operation("op", op)


class Page:
    """Something large."""


async def test_what_sync_calls_within_a_call_returned_is_let_go(system: ProductionSystem) -> None:
    left: list[weakref.ref[Page]] = []

    def read() -> int:
        page = Page()
        left.append(weakref.ref(page))
        return id(page)

    async def walk() -> None:
        for _ in range(5):
            await system.execute_protected_operation("read", lambda: (read(), Page())[1])
        call = current_call()
        assert call is not None
        assert not call.threads

    await system.execute_protected_operation("walk", walk)


class Waiting:
    """A sync operation that says that it has begun, and waits for its release."""

    def __init__(self) -> None:
        self.began, self.release = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        self.release.wait(30)


async def test_a_thread_left_within_a_call_holds_its_permits_until_it_ends(make_system: MakeSystem) -> None:
    system = make_system(retry=RetryConfig(max_retries=0))
    system.configure_operation("outer", OperationConfig(max_concurrent=1))
    inner = Waiting()

    task = asyncio.create_task(
        system.execute_protected_operation(
            "outer", lambda: system.execute_protected_operation("inner", inner)
        )
    )
    while not inner.began.is_set():  # noqa: ASYNC110 - a thread's event
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    usage = [pool.usage for pool in system.operations.pools()]
    inner.release.set()
    join_operations()
    assert usage == [1, 1]
    assert [pool.usage for pool in system.operations.pools()] == [0, 0]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("case", ["no_retries", "not_retryable", "nested"])
def test_a_failed_call_leaves_nothing_for_the_garbage_collector(
    make_system: MakeSystem, case: str, *, sync: bool
) -> None:
    system = make_system(
        retry=RetryConfig(max_retries=0 if case == "no_retries" else 3, base_delay_ms=0),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=10**6),
    )
    error = TimeoutError if case == "not_retryable" else ConnectionRefusedError

    def fails() -> None:
        raise error

    async def fails_async() -> None:
        raise error

    async def one() -> None:
        with suppress(error):
            if sync:
                system.execute_protected_operation_sync("op", fails)
            else:
                await system.execute_protected_operation("op", fails_async)

    async def many() -> int:
        await one()
        gc.collect()
        for _ in range(10):
            await one()
        return gc.collect()

    async def within() -> int:
        return await system.execute_protected_operation("outer", many)

    gc.disable()
    try:
        left = asyncio.run(within() if case == "nested" else many())
    finally:
        gc.enable()
    assert system.circuit_breaker("op").calls["failure"] == 11
    assert left == 0


class RefusedError(Exception):
    """One that can be referred to weakly."""


@pytest.mark.parametrize("sync", [False, True])
async def test_the_errors_of_a_call_that_has_tried_again_are_let_go_with_it(
    system: ProductionSystem, *, sync: bool
) -> None:
    """With all that their tracebacks hold: the arguments of the engine, its answers so far."""
    errors: list[weakref.ref[RefusedError]] = []

    def fails() -> None:
        error = RefusedError()
        errors.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def fails_async() -> None:
        fails()

    gc.disable()
    try:
        with suppress(RefusedError):
            if sync:
                system.execute_protected_operation_sync("op", fails)
            else:
                await system.execute_protected_operation("op", fails_async)
        assert [error() for error in errors] == [None, None, None]
    finally:
        gc.enable()


async def test_a_sync_call_that_goes_on_in_the_background_is_not_charged_to_the_call_that_began_it(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    inner = Waiting()

    async def outer() -> asyncio.Task[None]:
        task = asyncio.create_task(system.execute_protected_operation("inner", inner))
        await asyncio.to_thread(inner.began.wait, 30)
        return task

    background = await system.execute_protected_operation("outer", outer)
    usage = [pool.usage for pool in system.operations.pools()]
    inner.release.set()
    await background
    assert usage == [0]
    assert limits_ignored(telemetry) == 0


async def test_a_caller_who_cancels_a_sync_call_is_no_limit_that_was_ignored(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    waits = Waiting()

    call = asyncio.create_task(system.execute_protected_operation("op", waits))
    await asyncio.sleep(0)
    await asyncio.to_thread(waits.began.wait, 30)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (op,) = system.operations
    assert len(op.abandoned) == 1
    waits.release.set()
    join_operations()
    assert limits_ignored(telemetry) == 0


def limits_ignored(telemetry: CapturedTelemetry) -> int:
    name = "llmkg.operation.time_limit_ignored"
    return sum(each.log_record.event_name == name for each in telemetry.logs())


async def test_work_that_starts_its_successor_makes_no_chain(system: ProductionSystem) -> None:
    lengths: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def job(left: int) -> None:
        around, length = current_call(), 0
        while around is not None:
            around, length = around.parent, length + 1
        lengths.append(length)
        if left:
            successor = system.execute_protected_operation("job", lambda: job(left - 1))
            tasks.append(asyncio.create_task(successor))
            await asyncio.sleep(0)

    await job(20)
    while len(lengths) < 21:
        await asyncio.gather(*tasks)
    assert max(lengths) <= 3


def test_time_that_the_outer_call_has_left_is_what_an_inner_one_is_told_of(system: ProductionSystem) -> None:
    def outer() -> None:
        while (left := remaining_time()) is not None and left > 0:
            time.sleep(left)
        system.execute_protected_operation_sync("inner", lambda: None)

    with pytest.raises(OperationTimeoutError, match=r"inner did not finish within its total deadline of 0 s"):
        system.execute_protected_operation_sync("outer", outer, timeout_seconds=0.01)


async def test_a_call_that_is_dropped_from_another_context_gives_back_what_it_held(
    make_system: MakeSystem,
) -> None:
    """As the interpreter does with the tasks of a loop that is gone."""
    system = make_system()
    coroutine = system.execute_protected_operation("op", hangs)
    copy_context().run(coroutine.send, None)
    copy_context().run(coroutine.close)
    assert len(system.calls) == 0
    assert [pool.usage for pool in system.operations.pools()] == [0]
    assert system.circuit_breaker("op").calls["ignored"] == 1


async def test_a_limit_that_was_ignored_is_told_of_also_where_rungs_have_failed_since(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system, waits = make_system(circuit_breaker=CircuitBreakerConfig(timeout=0.02)), Waiting()

    async def fails() -> None:
        raise ConnectionRefusedError

    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", waits, fallbacks={"rung": fails})
    waits.release.set()
    join_operations()
    assert limits_ignored(telemetry) == 1
