"""What a circuit breaker asks of, and tells, the same circuit in other processes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Protocol

__all__ = ["FLEET_SECONDS", "Fleet", "Permission", "ask", "ask_sync"]

FLEET_SECONDS = 0.05
"""How long a call may wait for the fleet's word before its own breaker decides alone."""


@dataclass(frozen=True, slots=True)
class Permission:
    """The fleet's word on a probe: its fencing token, or None and the seconds until one may be had."""

    token: int | None
    retry_after: float | None = None


class Fleet(Protocol):
    """One circuit as all processes share it. Quick, for any thread, and never raises.

    Only an open circuit asks and only changes are told: a closed one costs nothing.
    """

    def request_probe(self) -> Future[Permission] | None:
        """Ask for the fleet's one probe; None while the fleet cannot be reached."""
        ...

    def opened(self, token: int | None) -> None:
        """Tell that the circuit opened here; `token` is of the probe that failed, if one did."""
        ...

    def succeeded(self, token: int) -> None:
        """Tell that the probe with this token succeeded."""
        ...

    def released(self, token: int) -> None:
        """Give a probe back that says nothing: cancelled, or a caller's mistake."""
        ...


async def ask(fleet: Fleet | None) -> Permission | None:
    """Return the fleet's word on a probe, or None when there is no fleet, or no word in time."""
    if fleet is None or (asked := fleet.request_probe()) is None:
        return None
    answer = asyncio.wrap_future(asked)
    answer.add_done_callback(_look_at)
    try:
        await asyncio.wait({answer}, timeout=FLEET_SECONDS)
    except BaseException:
        _give_back(fleet, asked)
        raise
    return _taken(fleet, asked)


def ask_sync(fleet: Fleet | None) -> Permission | None:
    """Do the same in the calling thread."""
    if fleet is None or (asked := fleet.request_probe()) is None:
        return None
    try:
        wait({asked}, FLEET_SECONDS)
    except BaseException:
        _give_back(fleet, asked)
        raise
    return _taken(fleet, asked)


def _look_at(answer: asyncio.Future[Permission]) -> None:
    """Retrieve an error that comes when nobody waits any more: asyncio would log it."""
    if not answer.cancelled():
        answer.exception()


def _taken(fleet: Fleet, asked: Future[Permission]) -> Permission | None:
    if not asked.done():
        _give_back(fleet, asked)
        return None
    return None if asked.cancelled() or asked.exception() is not None else asked.result()


def _give_back(fleet: Fleet, asked: Future[Permission]) -> None:
    """Return a probe that nobody waits for any more, whenever it comes."""

    def give_back(done: Future[Permission]) -> None:
        word = None if done.cancelled() or done.exception() is not None else done.result()
        if word is not None and word.token is not None:
            fleet.released(word.token)

    asked.add_done_callback(give_back)
