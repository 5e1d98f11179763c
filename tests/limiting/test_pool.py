"""Connections are never more than allowed, never lost, and work when they are lent."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.errors import ConfigurationError, OverloadedError, ShuttingDownError
from llmkg_otel.events import ConnectionCreated, ConnectionUsed, ConnectionWaited, Event
from llmkg_otel.limiting.pool import ConnectionPool
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable


class Backend:
    """Connections are numbers; each may be slow to make, dead, or hard to close."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.open: set[int] = set()
        self.dead: set[int] = set()
        self.most = 0
        self.slow: asyncio.Event | None = None
        self.down = False
        self.clock = FakeClock()
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    async def connect(self) -> int:
        if self.slow is not None:
            await self.slow.wait()
        if self.down:
            raise ConnectionRefusedError
        number = next(self.numbers)
        self.open.add(number)
        self.most = max(self.most, len(self.open))
        self.clock.advance(0.25)
        return number

    async def close(self, number: int) -> None:
        self.open.discard(number)

    async def check(self, number: int) -> bool:
        if number in self.dead:
            raise ConnectionResetError
        return True

    def pool(self, **options: Any) -> ConnectionPool[int]:
        parts: dict[str, Any] = {"observer": self, "clock": self.clock, "check": self.check}
        parts |= {"max_size": 1, "acquire_timeout": 20.0}
        return ConnectionPool("graph", self.connect, close=self.close, **{**parts, **options})


@pytest.fixture
def backend() -> Backend:
    return Backend()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_connection_is_used_again_the_newest_first(backend: Backend) -> None:
    pool = backend.pool(max_size=2)
    async with pool.connection() as first, pool.connection() as second:
        assert (pool.used, pool.idle) == (2, 0)
    assert (pool.used, pool.idle, backend.open) == (0, 2, {first, second})
    async with pool.connection() as again:
        assert again == first  # it came back last
    await pool.aclose()
    assert backend.open == set()


async def test_who_finds_none_free_waits_in_turn_and_the_wait_is_told(backend: Backend) -> None:
    pool = backend.pool()
    order: list[str] = []

    async def use(name: str) -> None:
        async with pool.connection():
            order.append(name)

    async with pool.connection():
        waiting = [asyncio.create_task(use(name)) for name in "abc"]
        await settle()
        assert pool.pending == 3
        backend.clock.advance(2)
    await asyncio.gather(*waiting)
    assert (order, backend.most) == (list("abc"), 1)
    assert [event for event in backend.events if isinstance(event, ConnectionWaited)] == [
        ConnectionWaited("graph", 2.0, acquired=True)
    ] * 3
    assert [event for event in backend.events if isinstance(event, ConnectionCreated)] == [
        ConnectionCreated("graph", 0.25)
    ]
    assert backend.events.count(ConnectionUsed("graph", 2.0)) == 1
    await pool.aclose()


async def test_who_waits_too_long_is_refused(backend: Backend) -> None:
    pool = backend.pool(acquire_timeout=0.01)
    async with pool.connection():
        with pytest.raises(OverloadedError, match="all 1 permits of graph are in use"):
            async with pool.connection():
                pass
    assert (pool.used, pool.pending) == (0, 0)
    await pool.aclose()


async def test_one_that_no_longer_works_is_replaced(backend: Backend) -> None:
    pool = backend.pool()
    async with pool.connection() as first:
        pass
    backend.dead.add(first)
    async with pool.connection() as second:
        assert second != first
    assert backend.open == {second}
    await pool.aclose()


async def test_one_whose_borrower_failed_is_not_lent_again(backend: Backend) -> None:
    pool = backend.pool()
    with pytest.raises(ValueError, match="mine"):
        async with pool.connection():
            raise ValueError("mine")
    assert (pool.used, pool.idle, backend.open) == (0, 0, set())


@pytest.mark.parametrize("when", ["connecting", "waiting", "using", "checking"])
async def test_cancelling_loses_no_place(when: str, backend: Backend) -> None:
    asked = asyncio.Event()

    async def check(_number: int) -> bool:
        asked.set()
        if when == "checking":
            await asyncio.Event().wait()
        return True

    pool = backend.pool(check=check)
    if when == "connecting":
        backend.slow = asyncio.Event()
    if when == "checking":
        async with pool.connection():
            pass

    async def use() -> None:
        async with pool.connection():
            await asyncio.Event().wait()

    holder = asyncio.create_task(use()) if when == "waiting" else None
    await settle()
    task = asyncio.create_task(use())
    await settle()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    if holder is not None:
        holder.cancel()
        await asyncio.wait({holder})
    await settle()
    backend.slow = None
    when = "over"
    async with asyncio.timeout(5), pool.connection() as connection:
        assert backend.open == {connection}
    assert pool.used == 0
    await pool.aclose()


async def test_a_backend_that_is_down_is_told_to_each_and_takes_no_place(backend: Backend) -> None:
    pool = backend.pool()
    backend.down = True
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            async with pool.connection():
                pass
    backend.down = False
    async with pool.connection():
        pass
    await pool.aclose()


async def test_what_was_idle_for_too_long_is_closed(backend: Backend) -> None:
    pool = backend.pool(idle_timeout=60, sleep=backend.clock.sleep)
    async with pool.connection():
        pass
    assert pool.idle == 1
    await settle()
    assert (pool.idle, backend.open, backend.clock.slept) == (0, set(), [60.0])


async def test_after_the_end_what_is_lent_is_closed_when_it_comes_back_and_nobody_gets_more(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    def close(_number: int) -> None:
        raise OSError("broken pipe")

    pool = ConnectionPool("graph", backend.connect, close=close, observer=backend, max_size=1)

    async def use() -> None:
        async with pool.connection():
            pass

    async with pool.connection():
        waiting = asyncio.create_task(use())
        await settle()
        await pool.aclose()
        with pytest.raises(ShuttingDownError):
            await use()
    with pytest.raises(ShuttingDownError):
        await waiting
    assert "graph: a connection could not be closed: OSError" in caplog.text


@pytest.mark.parametrize("hangs", ["connect", "check"])
async def test_a_connection_that_hangs_when_made_or_checked_is_given_up_when_the_wait_is_over(
    backend: Backend, hangs: str
) -> None:
    hung, ended = asyncio.Event(), asyncio.Event()

    async def hang(_number: int = 0) -> Any:
        hung.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def close(number: int) -> None:
        await backend.close(number)
        await asyncio.Event().wait()  # a server that does not answer does not say goodbye either

    pool: ConnectionPool[int] = ConnectionPool(
        "graph",
        hang if hangs == "connect" else backend.connect,
        close=close,
        check=hang,
        max_size=1,
        acquire_timeout=0.05,
        observer=backend,
    )
    if hangs == "check":
        async with pool.connection():
            pass
    with pytest.raises(OverloadedError, match="no connection could be made or checked") as caught:
        await asyncio.wait_for(borrow(pool), 10)
    assert caught.value.scope == "graph"
    assert hung.is_set()
    assert ended.is_set()
    await settle()
    assert (pool.used, pool.pending, backend.open) == (0, 0, set())


async def borrow(pool: ConnectionPool[int]) -> int:
    async with pool.connection() as connection:
        return connection


async def test_a_timeout_of_the_connection_itself_is_told_as_such(backend: Backend) -> None:
    def connect() -> int:
        raise TimeoutError("the server took too long")

    pool = ConnectionPool("graph", connect, close=backend.close, observer=backend)
    with pytest.raises(TimeoutError, match="the server took too long"):
        await borrow(pool)
    assert pool.used == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_size", value) for value in (0, -1, True, 2.5, float("inf"))]
    + [
        (option, value)
        for option in ("acquire_timeout", "idle_timeout")
        for value in (0, -1.0, True, float("inf"), float("nan"), "1")
    ],
)
def test_an_option_that_cannot_work_is_named(option: str, value: object, backend: Backend) -> None:
    make: Callable[..., object] = backend.pool
    allowed = "a whole number from 1" if option == "max_size" else "a number of seconds above 0"
    told = re.escape(f"'graph': {option} = {value!r}: should be {allowed}")
    with pytest.raises(ConfigurationError, match=told):
        make(**{option: value})
