"""One timer for all deadlines: each call is cut at its own, and only at its own."""

from __future__ import annotations

import asyncio
import functools
import gc
from typing import TYPE_CHECKING

import pytest

from llmkg_otel import OperationConfig
from llmkg_otel._watch import Watch, Watches
from llmkg_otel.call import Call
from llmkg_otel.errors import OperationTimeoutError, RejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel import ProductionSystem


async def answer() -> str:
    return "answer"


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def watched(watch: Watch, end: float) -> tuple[Call, asyncio.Task[None]]:
    call = Call("op", 60.0)
    call.task = asyncio.ensure_future(wait_for_ever())
    watch.start(call, end)
    return call, call.task


told: list[Call] = []


async def test_calls_are_cut_in_the_order_of_their_deadlines_whatever_the_order_they_came_in() -> None:
    watch = Watch(asyncio.get_running_loop(), told.append)
    now = asyncio.get_running_loop().time()
    cut: list[int] = []
    tasks = []

    def note(number: int, _task: object) -> None:
        cut.append(number)

    for number in (3, 1, 2):
        _, task = watched(watch, now + number / 1000)
        task.add_done_callback(functools.partial(note, number))
        tasks.append(task)
    await asyncio.wait(tasks)
    assert cut == [1, 2, 3]
    assert all(task.cancelled() for task in tasks)


async def test_a_call_that_ended_in_time_is_left_alone_and_the_next_one_is_still_watched() -> None:
    watch = Watch(asyncio.get_running_loop(), told.append)
    now = asyncio.get_running_loop().time()
    early, spared = watched(watch, now + 0.001)
    late, cut = watched(watch, now + 0.005)
    assert watch.stop(early) is False
    await asyncio.wait({cut})
    assert watch.stop(late) is True
    assert not spared.done()
    spared.cancel()


async def test_a_call_that_does_not_heed_its_cancellation_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkg_otel._watch.GRACE_SECONDS", 0.001)
    told: asyncio.Queue[Call] = asyncio.Queue()
    watch = Watch(asyncio.get_running_loop(), told.put_nowait)
    heeds, cut = watched(watch, 0.0)
    await asyncio.wait({cut})
    watch.stop(heeds)
    ignores, _ = watched(watch, 0.0)
    assert await told.get() is ignores
    assert told.empty()


async def test_one_system_keeps_the_deadlines_of_many_calls_apart(system: ProductionSystem) -> None:
    system.configure_operation("short", OperationConfig(timeout=0.005))
    system.configure_operation("long", OperationConfig(timeout=60))
    release = asyncio.Event()
    long = [asyncio.ensure_future(system.execute_protected_operation("long", release.wait)) for _ in range(5)]
    for _ in range(3):
        with pytest.raises(OperationTimeoutError, match="short"):
            await system.execute_protected_operation("short", release.wait)
    release.set()
    assert await asyncio.gather(*long) == [True] * 5


def test_loops_that_come_one_after_the_other_each_have_their_deadlines(system: ProductionSystem) -> None:
    system.configure_operation("short", OperationConfig(timeout=0.005))
    for _ in range(2):
        with pytest.raises(OperationTimeoutError):
            asyncio.run(system.execute_protected_operation("short", wait_for_ever))


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_leaves_no_reference_cycle_behind(
    make_system: Callable[..., ProductionSystem], fails: bool
) -> None:
    system = make_system(rate_limiting={"requests_per_second": 1e-6, "burst_capacity": 50})

    async def call() -> None:
        try:
            await system.execute_protected_operation("op", answer)
        except RejectedError:
            assert fails

    for _ in range(50 if fails else 5):
        await call()
    gc.collect()
    gc.disable()
    try:
        await call()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_each_loop_has_one_watch_and_those_of_closed_loops_are_let_go() -> None:
    watches = Watches(lambda _call: None)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    assert watches.of(first) is watches.of(first) is not watches.of(second)
    first.close()
    third = asyncio.new_event_loop()
    assert set(watches._by_loop) == {first, second}
    watches.of(third)
    assert set(watches._by_loop) == {second, third}
    second.close()
    third.close()


def test_calls_that_alternate_between_two_loops_leave_one_timer_on_each(system: ProductionSystem) -> None:
    loops = [asyncio.new_event_loop(), asyncio.new_event_loop()]
    for _ in range(5):
        for loop in loops:
            loop.run_until_complete(system.execute_protected_operation("op", answer))
    assert [len(loop._scheduled) for loop in loops] == [1, 1]  # type: ignore[attr-defined]
    for loop in loops:
        loop.close()
