"""A clock that the test moves, and an observer that keeps what it is told."""

from __future__ import annotations

import asyncio

from llmkg_otel.events import Event


class Seen(list[Event]):
    def on_event(self, event: Event) -> None:
        self.append(event)


class Time:
    """A clock whose sleepers wake when the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    async def advance(self, seconds: float) -> None:
        await settle()
        self.now += seconds
        for due, woken in self._sleepers:
            if due <= self.now and not woken.done():
                woken.set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)
