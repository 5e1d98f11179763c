from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.errors import OverloadedError
from llmkg_otel.events import Event, PermitWaited
from llmkg_otel.limiting import permits
from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.waiting import Waiter
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable


LONG = 1e6
"""Seconds to wait in tests where the permit comes."""


class Pool(PermitPool):
    """A pool on a fake clock that keeps its events, and can be made to lose a race."""

    def __init__(self, limit: int = 1, max_queued: int = 10) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.just_before_giving_up: Callable[[], object] = list
        super().__init__("searches", limit, max_queued, self, self.clock)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def _gave_up(self, ticket: Waiter) -> bool:
        self.just_before_giving_up()
        return super()._gave_up(ticket)

    def full(self) -> Pool:
        """Take every permit."""
        while self.try_acquire():
            pass
        return self

    @property
    def left(self) -> tuple[int, int]:
        return self.usage, self.pending


async def acquire(pool: Pool, seconds: float, way: str) -> None:
    """Acquire from a task, or from a thread of its own."""
    if way == "async":
        await pool.acquire("search", seconds)
    else:
        await asyncio.to_thread(pool.acquire_sync, "search", seconds)


async def waiting(pool: Pool, way: str = "async") -> asyncio.Task[None]:
    """Return once a new task, or a thread, waits for a permit."""
    before = pool.pending
    task = asyncio.ensure_future(acquire(pool, LONG, way))
    while pool.pending == before:  # noqa: ASYNC110 - the pool tells nobody
        await asyncio.sleep(0)
    return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


both = pytest.mark.parametrize("way", ["async", "sync"])


@both
@pytest.mark.parametrize("max_queued", [0, 1])
async def test_a_free_permit_is_had_at_once_even_if_nobody_may_wait(max_queued: int, way: str) -> None:
    pool = Pool(limit=1, max_queued=max_queued)
    await acquire(pool, 0, way)
    assert pool.left == (1, 0)


@both
async def test_whoever_waits_gets_the_permit_that_comes_free(way: str) -> None:
    pool = Pool().full()
    task = await waiting(pool, way)
    pool.clock.advance(2.5)
    pool.release()
    await task
    assert pool.left == (1, 0)
    assert pool.events == [PermitWaited("searches", 2.5, acquired=True)]


@both
async def test_a_call_that_finds_the_queue_full_is_refused_at_once(way: str) -> None:
    pool = Pool(limit=2, max_queued=1).full()
    task = await waiting(pool)
    with pytest.raises(OverloadedError) as caught:
        await acquire(pool, LONG, way)
    error = caught.value
    assert str(error) == "search: all 2 permits of searches are in use and 1 calls wait already"
    assert (error.operation, error.scope, error.limit) == ("search", "searches", "2 at once, 1 waiting")
    assert pool.left == (2, 1)
    pool.release()
    await task


@both
async def test_a_call_that_waited_in_vain_is_refused_and_leaves_nothing_behind(way: str) -> None:
    pool = Pool().full()
    with pytest.raises(OverloadedError, match="and no permit came free within 0 s"):
        await acquire(pool, 0, way)
    assert pool.left == (1, 0)
    assert pool.events == [PermitWaited("searches", 0.0, acquired=False)]
    pool.release()
    assert pool.left == (0, 0)


async def test_a_permit_that_comes_to_a_task_just_as_its_time_is_up_is_used() -> None:
    pool = Pool().full()
    task = asyncio.ensure_future(pool.acquire("search", 0))
    await asyncio.sleep(0)  # it waits, and its time-out is due in the next turn of the loop
    pool.release()
    await task
    assert pool.left == (1, 0)
    assert pool.events == [PermitWaited("searches", 0.0, acquired=True)]


def test_a_permit_that_comes_to_a_thread_just_as_its_time_is_up_is_used() -> None:
    pool = Pool().full()
    pool.just_before_giving_up = pool.release
    pool.acquire_sync("search", 0)
    assert pool.left == (1, 0)
    assert pool.events == [PermitWaited("searches", 0.0, acquired=True)]


@pytest.mark.parametrize("comes_free", ["before the cancel", "after the cancel", "never"])
async def test_a_cancelled_wait_loses_no_permit(comes_free: str) -> None:
    pool = Pool().full()
    first, second = await waiting(pool), await waiting(pool)
    if comes_free == "before the cancel":
        pool.release()
    first.cancel()
    if comes_free == "after the cancel":
        pool.release()
    await settle()
    assert first.cancelled()
    assert second.done() is (comes_free != "never")
    assert pool.left == ((1, 0) if second.done() else (1, 1))
    pool.release()
    await second
    assert pool.left == ((0, 0) if comes_free != "never" else (1, 0))


async def test_a_permit_is_not_given_to_who_has_just_been_cancelled_but_to_the_next() -> None:
    pool = Pool().full()
    first, second = await waiting(pool), await waiting(pool)
    pool._queue._waiting["default"][
        0
    ].cancel()  # what its loop does a moment before the task leaves the queue
    pool.release()
    await second
    assert (first.cancelled(), pool.left) == (True, (1, 0))


@pytest.mark.parametrize("comes_free", [True, False])
def test_an_interrupted_wait_in_a_thread_loses_no_permit(
    comes_free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool().full()

    class Interrupted(Waiter):
        def result(self, timeout: float | None = None) -> None:
            if comes_free:
                pool.release()
            raise KeyboardInterrupt

    monkeypatch.setattr(permits, "Waiter", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire_sync("search", LONG)
    assert pool.left == (0 if comes_free else 1, 0)


async def test_first_come_is_first_served_among_tasks_and_threads() -> None:
    pool = Pool().full()
    tasks = [await waiting(pool, way) for way in ("sync", "async", "async", "sync", "async")]
    for served, task in enumerate(tasks, 1):
        pool.release()
        await task
        await settle()
        assert [other.done() for other in tasks] == [True] * served + [False] * (5 - served)
    assert pool.left == (1, 0)


async def test_a_newcomer_cannot_overtake_those_who_wait() -> None:
    pool = Pool().full()
    task = await waiting(pool)
    pool.release()  # goes straight to the task, though it has not run yet
    assert pool.try_acquire() is False
    await task


async def test_a_larger_pool_serves_those_who_wait_at_once() -> None:
    pool = Pool(limit=1).full()
    tasks = [await waiting(pool) for _ in range(3)]
    pool.resize(3)
    await settle()
    assert [task.done() for task in tasks] == [True, True, False]
    assert pool.left == (3, 1)
    pool.release()
    await tasks[2]


async def test_a_smaller_pool_takes_nothing_away_and_serves_nobody_until_it_is_below_its_limit() -> None:
    pool = Pool(limit=3).full()
    task = await waiting(pool)
    pool.resize(1)
    for usage in (2, 1):
        pool.release()
        await settle()
        assert pool.left == (usage, 1)
    assert not task.done()
    pool.release()
    await task
    assert pool.left == (1, 0)


class Crowd:
    """Counts who is inside, from tasks and from threads."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.count = threading.Lock()
        self.inside = self.most = self.served = self.refused = 0

    def visit(self) -> None:
        with self.count:
            self.served += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        os.sched_yield()
        with self.count:
            self.inside -= 1
        self.pool.release()

    def turn_away(self) -> None:
        with self.count:
            self.refused += 1

    def come_from_a_thread(self) -> None:
        for number in range(100):
            try:
                self.pool.acquire_sync("search", LONG if number % 3 else 0)
            except OverloadedError:
                self.turn_away()
            else:
                self.visit()

    async def come_from_a_task(self) -> None:
        for number in range(50):
            try:
                await self.pool.acquire("search", LONG if number % 3 else 0)
            except OverloadedError:
                self.turn_away()
            else:
                self.visit()

    async def come_and_give_up(self) -> None:
        for _ in range(50):
            task = asyncio.ensure_future(self.come_from_a_task())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])


@pytest.mark.parametrize("limit", [1, 3])
async def test_in_a_crowd_of_tasks_and_threads_no_more_than_the_limit_are_inside(limit: int) -> None:
    crowd = Crowd(Pool(limit=limit, max_queued=4))
    with ThreadPoolExecutor(4) as threads:
        from_threads = [asyncio.wrap_future(threads.submit(crowd.come_from_a_thread)) for _ in range(4)]
        from_tasks = [crowd.come_from_a_task() for _ in range(6)]
        await asyncio.gather(*from_threads, *from_tasks, crowd.come_and_give_up())
    assert 1 <= crowd.most <= limit
    assert crowd.pool.left == (0, 0)
    assert crowd.served + crowd.refused >= 4 * 100 + 6 * 50
