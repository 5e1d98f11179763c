"""Bulkheads: permits of one operation's own, through calls within calls, changes of size, and overload."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.calls import everything_given_back

from llmkg_otel.config import LoadSheddingConfig, OperationConfig, ResourceLimits
from llmkg_otel.errors import LoadShedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.limiting.waiting import Criticality
    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

ONE = OperationConfig(max_concurrent=1)
PATIENT = ResourceLimits(max_queue_wait_seconds=20, max_queued_operations=1)


async def begun(
    system: ProductionSystem, go: asyncio.Event, criticality: Criticality | None = None
) -> asyncio.Task[bool]:
    call = asyncio.create_task(system.execute_protected_operation("op", go.wait, criticality=criticality))
    for _ in range(5):
        await asyncio.sleep(0)
    return call


async def test_an_operation_that_calls_itself_needs_no_second_permit(make_system: MakeSystem) -> None:
    system = make_system(operations={"op": ONE}, resources=PATIENT)
    run, run_sync = system.execute_protected_operation, system.execute_protected_operation_sync

    async def factorial(n: int) -> int:
        if n == 0:
            return 1
        return n * await run("op", lambda: run("between", lambda: factorial(n - 1)))

    with everything_given_back(system):
        assert await asyncio.wait_for(run("op", lambda: factorial(3)), 10) == 6
        assert run_sync("op", lambda: run_sync("op", lambda: "in")) == "in"


async def test_what_a_call_left_behind_needs_a_permit_of_its_own(make_system: MakeSystem) -> None:
    system = make_system(operations={"op": ONE}, resources=PATIENT)
    go, left = asyncio.Event(), []

    async def later() -> bool:
        await go.wait()
        assert system.operations.named("op").bulkhead is not None
        return await system.execute_protected_operation("op", lambda: asyncio.sleep(0, result=True))

    async def leave() -> None:
        left.append(asyncio.create_task(system.execute_protected_operation("other", later)))
        await asyncio.sleep(0)

    with everything_given_back(system):
        await system.execute_protected_operation("op", leave)
        held = await begun(system, hold := asyncio.Event())
        go.set()
        for _ in range(10):
            await asyncio.sleep(0)
        bulkhead = system.operations.named("op").bulkhead
        assert bulkhead is not None
        assert (bulkhead.usage, bulkhead.pending) == (1, 1)
        hold.set()
        assert await held
        assert await left[0]


async def test_a_bulkhead_that_was_off_for_a_while_still_knows_who_is_in(make_system: MakeSystem) -> None:
    system = make_system(operations={"op": ONE}, resources=PATIENT)
    go, more = asyncio.Event(), asyncio.Event()
    with everything_given_back(system):
        first, waiting = await begun(system, go), await begun(system, go)
        system.configure_operation("op", OperationConfig())
        for _ in range(5):
            await asyncio.sleep(0)
        assert system.operations.named("op").bulkhead is None
        system.configure_operation("op", ONE)
        bulkhead = system.operations.named("op").bulkhead
        assert bulkhead is not None
        assert (bulkhead.limit, bulkhead.usage, bulkhead.pending) == (1, 2, 0)
        third = await begun(system, more)
        assert bulkhead.pending == 1
        go.set()
        more.set()
        assert all(await asyncio.gather(first, waiting, third))


async def test_with_load_shedding_a_call_that_matters_more_goes_first_at_a_bulkhead_too(
    make_system: MakeSystem,
) -> None:
    system = make_system(
        operations={"op": ONE}, resources=PATIENT, load_shedding=LoadSheddingConfig(mode="on")
    )
    go = asyncio.Event()
    with everything_given_back(system):
        first, second = await begun(system, go), await begun(system, go, "sheddable")
        third = await begun(system, go, "critical")
        with pytest.raises(LoadShedError) as caught:
            await second
        assert (caught.value.scope, caught.value.reason) == ("op", "shed")
        go.set()
        assert all(await asyncio.gather(first, third))
    assert system.load_shedding is not None
    assert dict(system.load_shedding.requests) == {
        ("accepted", "none", "default"): 1,
        ("accepted", "none", "critical"): 1,
        ("shed", "made_room", "sheddable"): 1,
    }
