"""A small pool of connections, for engines that need one and bring none."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from llmkg_otel.errors import ConfigurationError, OverloadedError, ShuttingDownError
from llmkg_otel.events import (
    ConnectionCreated,
    ConnectionUsed,
    ConnectionWaited,
    Event,
    Observer,
    PermitWaited,
)
from llmkg_otel.limiting.permits import PermitPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["ConnectionPool", "PoolSizes"]

C = TypeVar("C")

_log = logging.getLogger(__name__)


class PoolSizes(TypedDict, total=False):
    """What bounds a ConnectionPool; the defaults are its own."""

    max_size: int
    acquire_timeout: float
    idle_timeout: float


class ConnectionPool(Generic[C]):
    """At most `max_size` connections of one kind, made when needed and used again. Of one event loop.

    `connect` makes one; `close` ends one; `check`, if given, says of one that has been idle whether it
    still works, and one that does not is replaced. Each may be async or sync, sync ones must not block.
    A call waits `acquire_timeout` seconds at most for a connection, checked or made anew, then gets
    OverloadedError; a `connect` or `check` that has not ended by then is cancelled. What has been idle for
    `idle_timeout` seconds is closed. Whatever a borrower does, also being cancelled, the connection comes
    back; one whose borrower failed is closed, for nobody knows its state.

    Emits ConnectionCreated, ConnectionWaited (for those that had to) and ConnectionUsed.
    Source of the metrics: OpenTelemetry semantic conventions, `db.client.connection.*`.
    generic-connection-pool 0.8.1 was tried: cancelled while it connects, it loses a place for good.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[C] | C],
        *,
        close: Callable[[C], object],
        check: Callable[[C], Awaitable[bool] | bool] | None = None,
        max_size: int = 10,
        acquire_timeout: float = 1.0,
        idle_timeout: float = 60.0,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        _check_sizes(name, max_size, acquire_timeout=acquire_timeout, idle_timeout=idle_timeout)
        self.name = name
        self.max_size = max_size
        self._connect, self._close, self._check = connect, close, check
        self._acquire_timeout, self._idle_timeout = acquire_timeout, idle_timeout
        self._observer, self._clock, self._sleep = observer, clock, sleep
        self._permits = PermitPool(name, max_size, 1_000_000, self, clock)
        self._idle: deque[tuple[C, float]] = deque()
        self._evictions: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def used(self) -> int:
        """Connections that are lent, or being made or checked for somebody."""
        return self._permits.usage

    @property
    def idle(self) -> int:
        """Connections that wait to be used."""
        return len(self._idle)

    @property
    def pending(self) -> int:
        """Calls that wait for a connection."""
        return self._permits.pending

    def on_event(self, event: Event) -> None:
        """Turn a wait for a permit into one for a connection: the permit is only how the pool counts."""
        if isinstance(event, PermitWaited):
            self._observer.on_event(ConnectionWaited(self.name, event.seconds, event.acquired))

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[C]:
        """Lend a connection for the length of the block.

        Raises OverloadedError if none came free in time, ShuttingDownError after `aclose`, and what
        `connect` raises.
        """
        if self._closed:
            raise self._gone()
        deadline = asyncio.get_running_loop().time() + self._acquire_timeout
        if not self._permits.try_acquire():
            await self._permits.acquire(self.name, self._acquire_timeout)
        try:
            connection = await self._idle_or_new_by(deadline)
            began, kept = self._clock(), False
            try:
                yield connection
                kept = not self._closed
            finally:
                self._observer.on_event(ConnectionUsed(self.name, self._clock() - began))
                if kept:
                    self._keep(connection)
                else:
                    await self._end(connection)
        finally:
            self._permits.release()

    async def aclose(self) -> None:
        """Close what is idle now, and what is lent when it comes back; who waits is refused."""
        self._closed = True
        if self._evictions is not None:
            self._evictions.cancel()
        while self._idle:
            await self._end(self._idle.pop()[0])

    async def _idle_or_new_by(self, deadline: float) -> C:
        try:
            async with asyncio.timeout_at(deadline) as bound:
                return await self._idle_or_new()
        except TimeoutError:
            if not bound.expired():
                raise  # it is what `connect` raised
            raise OverloadedError(
                f"{self.name}: no connection could be made or checked within {self._acquire_timeout:g} s",
                operation=self.name,
                scope=self.name,
                limit=f"{self.max_size} connections",
                retry_after=self._acquire_timeout,
            ) from None

    async def _idle_or_new(self) -> C:
        while self._idle and not self._closed:
            connection, _ = self._idle.pop()  # the newest: the others grow old enough to be closed
            works = False
            try:
                works = self._check is None or bool(await _awaited(self._check(connection)))
            except Exception:  # noqa: BLE001 - one that cannot be checked does not work
                works = False
            except BaseException:
                self._begin_end(connection)
                raise
            if works:
                return connection
            await self._end(connection)
        if self._closed:
            raise self._gone()
        began = self._clock()
        made: C = await _awaited(self._connect())
        self._observer.on_event(ConnectionCreated(self.name, self._clock() - began))
        return made

    def _keep(self, connection: C) -> None:
        self._idle.append((connection, self._clock()))
        if self._evictions is None or self._evictions.done():
            self._evictions = asyncio.get_running_loop().create_task(self._evict())

    async def _evict(self) -> None:
        """Close what has been idle for too long, as long as anything is idle."""
        while self._idle:
            wait = self._idle[0][1] + self._idle_timeout - self._clock()
            if wait > 0:
                await self._sleep(wait)
            else:
                await self._end(self._idle.popleft()[0])

    async def _end(self, connection: C) -> None:
        """Close a connection; also if the one who closes it is cancelled meanwhile."""
        await asyncio.shield(self._begin_end(connection))

    def _begin_end(self, connection: C) -> asyncio.Future[None]:
        ending = asyncio.ensure_future(self._close_one(connection))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    async def _close_one(self, connection: C) -> None:
        try:
            await _awaited(self._close(connection))
        except Exception as error:  # noqa: BLE001 - it is given up either way
            _log.warning("%s: a connection could not be closed: %s", self.name, type(error).__name__)

    def _gone(self) -> ShuttingDownError:
        return ShuttingDownError(
            f"{self.name}: the connection pool is closed", operation=self.name, scope="connection_pool"
        )


def _check_sizes(name: str, max_size: object, **seconds: object) -> None:
    """Raise ConfigurationError for what cannot bound a pool."""
    where = f"connection pool {name!r}"
    if not isinstance(max_size, int) or isinstance(max_size, bool) or max_size < 1:
        raise ConfigurationError(f"{where}: max_size = {max_size!r}: should be a whole number from 1")
    for option, value in seconds.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigurationError(f"{where}: {option} = {value!r}: should be a number of seconds above 0")


async def _awaited(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer
