from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from llmkg_otel import call as current
from llmkg_otel.call import Call
from llmkg_otel.errors import ShuttingDownError
from llmkg_otel.shutdown.calls import ActiveCalls


def entered(calls: ActiveCalls, *operations: str) -> list[Call]:
    made = [Call(operation, 10.0) for operation in operations]
    for call in made:
        calls.enter(call)
    return made


def test_calls_in_flight_are_counted_by_operation() -> None:
    calls = ActiveCalls()
    first, *_ = entered(calls, "a", "a", "b")
    assert (len(calls), calls.by_operation()) == (3, {"a": 2, "b": 1})
    calls.leave(first)
    assert (len(calls), calls.by_operation()) == (2, {"a": 1, "b": 1})


def test_what_ended_before_the_shutdown_is_no_part_of_it() -> None:
    calls = ActiveCalls()
    calls.leave(*entered(calls, "a"))
    calls.stop_accepting()
    assert calls.counts == {"drained": 0, "cancelled": 0, "refused": 0}


def test_newcomers_are_refused_once_draining_and_told_when_to_come_back() -> None:
    calls = ActiveCalls()
    assert calls.accepting
    calls.stop_accepting()
    with pytest.raises(ShuttingDownError) as refused:
        calls.enter(Call("a", 10.0))
    assert (refused.value.operation, refused.value.scope, refused.value.retry_after) == ("a", "lifecycle", 1)
    assert (len(calls), calls.accepting, calls.counts["refused"]) == (0, False, 1)


def test_a_call_inside_one_in_flight_is_still_let_in() -> None:
    calls = ActiveCalls()
    (outer,) = entered(calls, "outer")
    calls.stop_accepting()
    token = current.enter(outer)
    try:
        calls.leave(*entered(calls, "inner"))
    finally:
        current.leave(token)
    calls.leave(outer)
    assert calls.counts == {"drained": 2, "cancelled": 0, "refused": 0}


async def test_waiting_for_idle_ends_when_the_last_call_leaves_on_whatever_thread() -> None:
    asyncio.get_running_loop().set_debug(True)  # so that a wrong thread is told of at once
    calls = ActiveCalls()
    first, second = entered(calls, "a", "b")
    calls.stop_accepting()
    waiting = asyncio.create_task(calls.wait_idle(20))
    await asyncio.sleep(0)
    calls.leave(first)
    await asyncio.sleep(0)
    assert not waiting.done()
    threading.Thread(target=calls.leave, args=[second]).start()
    assert await waiting
    assert calls.counts["drained"] == 2


async def test_waiting_for_idle_is_over_at_once_when_nothing_is_in_flight() -> None:
    assert await ActiveCalls().wait_idle(0)


async def test_waiting_for_idle_gives_up_after_its_time() -> None:
    calls = ActiveCalls()
    entered(calls, "a")
    assert not await calls.wait_idle(0.01)


async def test_what_remains_is_cancelled_named_and_not_counted_as_drained() -> None:
    calls = ActiveCalls()

    async def run() -> None:
        (call,) = entered(calls, "in a task")
        call.task = asyncio.current_task()
        try:
            await asyncio.Event().wait()
        finally:
            calls.leave(call)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    (threaded,) = entered(calls, "in a thread")
    calls.stop_accepting()
    cancelled = calls.cancel_remaining()
    assert sorted(name for name, _ in cancelled) == ["in a task", "in a thread"]
    assert all(0 <= age < 20 for _, age in cancelled)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) == 1  # nothing can stop a thread
    calls.leave(threaded)
    assert await calls.wait_idle(0)
    assert calls.counts == {"drained": 0, "cancelled": 2, "refused": 0}


async def test_every_call_of_many_threads_is_either_drained_or_refused() -> None:
    calls, workers, each = ActiveCalls(), 8, 500
    inside = threading.Barrier(workers + 1, timeout=20)
    late = threading.Event()

    def work() -> int:
        (first,) = entered(calls, "first")
        inside.wait()
        refused = 0
        for _ in range(each):
            call = Call("more", 10.0)
            with suppress(ShuttingDownError):
                calls.enter(call)
                calls.leave(call)
                continue
            refused += 1
        late.wait(20)
        calls.leave(first)
        return refused

    with ThreadPoolExecutor(workers) as threads:
        running = [threads.submit(work) for _ in range(workers)]
        inside.wait()
        calls.stop_accepting()
        late.set()
        assert await calls.wait_idle(20)
        refused = sum(each.result() for each in running)
    assert calls.counts["refused"] == refused
    assert workers <= calls.counts["drained"] <= workers * (each + 1) - refused
    assert len(calls) == 0
