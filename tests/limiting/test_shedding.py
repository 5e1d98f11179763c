"""Load shedding through the whole system: off, shadow and on; who is refused, and what is counted."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from fastmcp import Client, FastMCP
from support.calls import everything_given_back

from llmkg_otel.config import LoadSheddingConfig, OperationConfig, RateLimitConfig, ResourceLimits
from llmkg_otel.errors import InvalidInputError, LoadShedError, OperationTimeoutError, OverloadedError
from llmkg_otel.limiting.adaptive import FIRST_LIMIT
from llmkg_otel.server.middleware import CRITICALITY_KEY, ProductionMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.limiting.waiting import Criticality
    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]

ONE_IN_ONE_WAITING = ResourceLimits(
    max_concurrent_operations=1, max_queued_operations=1, max_queue_wait_seconds=20
)


def limited(make_system: MakeSystem, mode: str, **options: Any) -> ProductionSystem:
    return make_system(resources=ONE_IN_ONE_WAITING, load_shedding=LoadSheddingConfig(mode=mode, **options))


class Calls:
    """Calls that stay in the engine until they are let go."""

    def __init__(self, system: ProductionSystem) -> None:
        self.system = system
        self.go = asyncio.Event()

    async def begin(self, criticality: Criticality | None = None) -> asyncio.Task[bool]:
        call = asyncio.create_task(
            self.system.execute_protected_operation("op", self.go.wait, criticality=criticality)
        )
        for _ in range(5):
            await asyncio.sleep(0)
        return call


def decisions(telemetry: CapturedTelemetry) -> dict[tuple[object, ...], object]:
    found = telemetry.metric("llmkg.load_shedding.requests")
    keys = ("decision", "reason", "criticality")
    return {tuple(dict(point)[key] for key in keys): value for point, value in found.items()}


async def test_a_call_that_matters_more_takes_the_place_of_one_that_matters_less(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = limited(make_system, "on")
    calls = Calls(system)
    with everything_given_back(system):
        first, second = await calls.begin(), await calls.begin("sheddable")
        third = await calls.begin("critical")
        with pytest.raises(LoadShedError) as caught:
            await second
        assert (caught.value.reason, caught.value.scope) == ("shed", "operations")
        with pytest.raises(LoadShedError):
            await (await calls.begin("critical"))
        calls.go.set()
        assert all(await asyncio.gather(first, third))
    assert decisions(telemetry) == {
        ("accepted", "none", "default"): 1,
        ("accepted", "none", "critical"): 1,
        ("shed", "made_room", "sheddable"): 1,
        ("shed", "queue_full", "critical"): 1,
    }


async def test_off_nothing_is_counted_and_all_matter_alike(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = limited(make_system, "off")
    calls = Calls(system)
    first, second = await calls.begin(), await calls.begin("sheddable")
    with pytest.raises(OverloadedError) as caught:
        await (await calls.begin("critical"))
    assert caught.value.reason == "permit_timeout"
    calls.go.set()
    assert all(await asyncio.gather(first, second))
    assert system.load_shedding is None
    assert decisions(telemetry) == {}


async def test_in_the_shadow_what_would_be_refused_is_counted_and_let_in(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(load_shedding=LoadSheddingConfig(mode="shadow", min_concurrent_operations=30))
    calls = Calls(system)
    begun = [await calls.begin() for _ in range(33)]
    calls.go.set()
    assert all(await asyncio.gather(*begun))
    assert decisions(telemetry) == {
        ("accepted", "none", "default"): 30,
        ("would_shed", "limit", "default"): 3,
    }
    assert list(telemetry.metric("llmkg.load_shedding.limit").values()) == [30]


async def test_on_the_calls_at_once_follow_what_the_engine_takes_and_the_move_is_told(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(
        load_shedding=LoadSheddingConfig(mode="on"), rate_limiting=RateLimitConfig(enabled=False)
    )
    (pool,) = system.operations.pools()
    shedding = system.load_shedding
    assert shedding is not None
    assert pool.limit == shedding.limit == FIRST_LIMIT
    moved = asyncio.Event()

    async def busy() -> None:
        while not moved.is_set():
            with suppress(LoadShedError):
                await system.execute_protected_operation("op", partial(asyncio.sleep, 0.001))
            if abs(shedding.limit - FIRST_LIMIT) > 3:
                moved.set()

    await asyncio.wait_for(asyncio.gather(*(busy() for _ in range(2 * FIRST_LIMIT))), 20)
    told = [
        each.log_record for each in telemetry.logs() if "limit_changed" in str(each.log_record.event_name)
    ]
    assert told
    assert (told[0].attributes or {})["previous_limit"] == FIRST_LIMIT


async def test_an_operation_has_its_own_criticality_unless_the_caller_says_otherwise(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(
        load_shedding=LoadSheddingConfig(mode="on"),
        operations={"op": OperationConfig(criticality="critical")},
    )
    run, run_sync = system.execute_protected_operation, system.execute_protected_operation_sync
    await run("op", lambda: None)
    await run("op", lambda: None, criticality="sheddable")
    run_sync("op", lambda: None)
    run_sync("other", lambda: None, criticality="sheddable")
    assert decisions(telemetry) == {
        ("accepted", "none", "critical"): 2,
        ("accepted", "none", "sheddable"): 2,
    }


async def test_over_mcp_a_caller_says_how_much_its_call_matters(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    server = FastMCP("theirs")

    @server.tool
    async def work() -> str:
        return "done"

    server.add_middleware(ProductionMiddleware(make_system(load_shedding=LoadSheddingConfig(mode="on"))))
    async with Client(server) as client:
        await client.call_tool("work", meta={CRITICALITY_KEY: "sheddable"})
        wrong = await client.call_tool("work", meta={CRITICALITY_KEY: "vital"}, raise_on_error=False)
    assert wrong.structured_content is not None
    assert wrong.structured_content["code"] == "invalid_input"
    assert "critical, default, sheddable" in wrong.structured_content["message"]
    assert decisions(telemetry) == {("accepted", "none", "sheddable"): 1}


@pytest.mark.parametrize("mode", ["off", "on"])
async def test_a_call_within_a_call_needs_no_second_permit(mode: str, make_system: MakeSystem) -> None:
    system = limited(make_system, mode)

    async def inner() -> int:
        (pool,) = system.operations.pools()
        return pool.usage

    async def outer() -> int:
        return await system.execute_protected_operation("inner", inner)

    assert await asyncio.wait_for(system.execute_protected_operation("outer", outer), 5) == 1
    assert system.execute_protected_operation_sync(
        "outer", lambda: system.execute_protected_operation_sync("inner", lambda: "in")
    ) == ("in")


async def test_a_criticality_that_is_none_is_refused_and_does_no_harm(make_system: MakeSystem) -> None:
    system = limited(make_system, "on")
    calls = Calls(system)
    first = await calls.begin()
    with pytest.raises(InvalidInputError, match="criticality = 'urgent': should be one of critical"):
        await (await calls.begin("urgent"))  # type: ignore[arg-type]
    second = await calls.begin()
    calls.go.set()
    assert all(await asyncio.gather(first, second))


async def test_how_soon_a_caller_in_a_hurry_left_tells_nothing_of_the_engine(make_system: MakeSystem) -> None:
    system = make_system(
        load_shedding=LoadSheddingConfig(mode="on"), rate_limiting=RateLimitConfig(enabled=False)
    )
    assert system.load_shedding is not None
    batch = system.load_shedding._limit._batch
    for _ in range(3):
        with pytest.raises(OperationTimeoutError):
            await system.execute_protected_operation("op", asyncio.Event().wait, timeout_seconds=0.001)
        with pytest.raises(ZeroDivisionError):
            await system.execute_protected_operation("op", lambda: 1 / 0)
        await system.execute_protected_operation("op", lambda: None, timeout_seconds=5)
    assert (batch.calls, batch.unfinished) == (3, 0)
