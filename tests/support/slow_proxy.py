"""A TCP proxy that keeps every byte for a while, in each direction: a network with a round trip."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def slow_proxy(port: int, round_trip: float) -> AsyncIterator[int]:
    """Stand before a port of this machine, so far away; gives the proxy's own port."""

    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(cast("asyncio.Task[Any]", asyncio.current_task()))
        there = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(reader, there[1], round_trip / 2))
                both.create_task(_carry(there[0], writer, round_trip / 2))

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1]
        if serving:
            await asyncio.wait(serving, timeout=10 * round_trip + 1)  # until who is served has gone


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Hand on what comes, each piece as late as the others: a delay, not a brake."""
    loop = asyncio.get_running_loop()
    while piece := await reader.read(65536):
        loop.call_later(seconds, writer.write, piece)
    await asyncio.sleep(seconds)
    writer.close()
