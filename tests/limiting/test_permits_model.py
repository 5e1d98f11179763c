from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmkg_otel.errors import OverloadedError
from llmkg_otel.events import Event, PermitWaited
from llmkg_otel.limiting.permits import PermitPool

LONG = 1e6


class PermitMachine(RuleBasedStateMachine):
    """Tasks come, wait, give up and leave in any order, with the event loop a few steps behind."""

    @initialize(limit=st.integers(1, 3), max_queued=st.integers(0, 3))
    def open_pool(self, limit: int, max_queued: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.pool = PermitPool("searches", limit, max_queued, self)
        self.largest = limit
        self.tasks: list[asyncio.Task[None]] = []
        self.inside: list[int] = []
        self.served: list[int] = []

    def on_event(self, event: Event) -> None:
        assert isinstance(event, PermitWaited)

    async def _come(self, number: int, seconds: float) -> None:
        await self.pool.acquire("search", seconds)
        self.inside.append(number)
        self.served.append(number)

    def _start(self, seconds: float) -> asyncio.Task[None]:
        task = self.loop.create_task(self._come(len(self.tasks), seconds))
        self.tasks.append(task)
        return task

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([LONG, LONG, 0.0]))
    def a_task_comes(self, seconds: float) -> None:
        self._start(seconds)

    @rule(seconds=st.sampled_from([LONG, 0.0]))
    def a_task_comes_to_a_quiet_pool(self, seconds: float) -> None:
        self._run(9)
        pool = self.pool
        free, room = pool.usage < pool.limit, pool.pending < pool.max_queued
        task = self._start(seconds)
        self._run(9)
        if free:
            assert task.exception() is None
        elif room and seconds == LONG:
            assert not task.done()
        else:
            assert isinstance(task.exception(), OverloadedError)

    @rule()
    def somebody_passes_by(self) -> None:
        free = self.pool.usage < self.pool.limit
        assert self.pool.try_acquire() is free
        if free:
            self.inside.append(-1)

    @precondition(lambda self: self.tasks)
    @rule(pick=st.integers(0, 99))
    def a_task_is_cancelled(self, pick: int) -> None:
        self.tasks[-1 - pick % min(len(self.tasks), 5)].cancel()

    @precondition(lambda self: self.inside)
    @rule(pick=st.integers(0, 9))
    def somebody_leaves(self, pick: int) -> None:
        self.inside.pop(pick % len(self.inside))
        self.pool.release()

    @rule(limit=st.integers(1, 4))
    def the_pool_is_resized(self, limit: int) -> None:
        self.pool.resize(limit)
        self.largest = max(self.largest, limit)

    @rule(steps=st.sampled_from([1, 1, 2, 9]))
    def the_loop_runs(self, steps: int) -> None:
        self._run(steps)
        if steps == 9:
            assert self.pool.usage == len(self.inside)
            assert self.pool.pending == sum(not task.done() for task in self.tasks)

    @invariant()
    def the_pool_never_holds_more_than_it_may(self) -> None:
        if hasattr(self, "pool"):
            assert len(self.inside) <= self.pool.usage <= self.largest
            assert self.pool.pending <= self.pool.max_queued
            assert self.pool.usage >= self.pool.limit or self.pool.pending == 0

    @invariant()
    def tasks_are_served_in_the_order_they_came(self) -> None:
        assert self.served == sorted(self.served) if hasattr(self, "served") else True

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for task in self.tasks:
            task.cancel()
        self._run(9)
        for _ in self.inside:
            self.pool.release()
        assert all(task.done() for task in self.tasks)
        assert (self.pool.usage, self.pool.pending) == (0, 0)
        for task in self.tasks:
            assert task.cancelled() or isinstance(task.exception(), OverloadedError | None)
        self.loop.close()


TestPermitMachine = PermitMachine.TestCase
TestPermitMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
