"""What a circuit breaker asks of, and tells, the same circuit in other processes."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Protocol

__all__ = ["FLEET_SECONDS", "NO_WORD", "Fleet", "Permission", "ask", "ask_sync", "meet", "meet_sync"]

FLEET_SECONDS = 0.05
"""How long a call may wait for the fleet's word."""


@dataclass(frozen=True, slots=True)
class Permission:
    """The fleet's word on a probe: its fencing token, or None and the seconds until one may be had.

    `lent` says that another process has it, and those seconds are what is left of its lease.
    """

    token: int | None
    retry_after: float = 0.0
    lent: bool = False


NO_WORD = Permission(None, FLEET_SECONDS)
"""What a call gets that had no word in time from a store that answers: refused, or every process of the
fleet would send a probe of its own when the store is slow."""


class Fleet(Protocol):
    """One circuit as all processes share it. Quick, for any thread, and never raises.

    Only an open circuit asks and only changes are told: a closed one costs nothing.
    """

    met: Future[None]
    """Done, and never cancelled, when the fleet has first said how its circuit is, or cannot be reached."""

    def request_probe(self) -> Future[Permission | None] | None:
        """Ask for the fleet's one probe; None, now or as the answer, while the fleet cannot be reached.

        Whoever stops waiting cancels the future: a probe that comes later is for the next call that asks,
        or given back when its time is up.
        """
        ...

    def opened(self, token: int | None) -> None:
        """Tell that the circuit opened here; `token` is of the probe that failed, if one did."""
        ...

    def closed(self, token: int | None) -> None:
        """Tell that the circuit closed here; `token` is of the probe that succeeded, if it had one."""
        ...

    def succeeded(self, token: int) -> None:
        """Tell that the probe with this token succeeded, and the circuit is still on trial here."""
        ...

    def released(self, token: int) -> None:
        """Give a probe back that says nothing: cancelled, or a caller's mistake."""
        ...


async def meet(fleet: Fleet | None, left: float) -> float:
    """Wait for the fleet's first word, `left` or FLEET_SECONDS at most; return what is left of that."""
    until = time.monotonic() + (left := min(left, FLEET_SECONDS))
    if fleet is None or fleet.met.done():
        return left
    word = asyncio.wrap_future(fleet.met)
    try:
        await asyncio.wait({word}, timeout=left)
    finally:
        word.cancel()  # this loop may be closed when it comes
    return max(0.0, until - time.monotonic())


def meet_sync(fleet: Fleet | None, left: float) -> float:
    """Do the same in the calling thread."""
    until = time.monotonic() + (left := min(left, FLEET_SECONDS))
    if fleet is None or fleet.met.done():
        return left
    wait({fleet.met}, left)
    return max(0.0, until - time.monotonic())


async def ask(fleet: Fleet | None, left: float = FLEET_SECONDS) -> Permission | None:
    """Return the fleet's word on a probe; None when there is no fleet, or none that can be reached."""
    if fleet is None or (asked := fleet.request_probe()) is None:
        return None
    try:
        await asyncio.wait({asyncio.wrap_future(asked)}, timeout=min(left, FLEET_SECONDS))
    except BaseException:
        _give_back(fleet, asked)
        raise
    return _word_of(asked)


def ask_sync(fleet: Fleet | None, left: float = FLEET_SECONDS) -> Permission | None:
    """Do the same in the calling thread."""
    if fleet is None or (asked := fleet.request_probe()) is None:
        return None
    try:
        wait({asked}, min(left, FLEET_SECONDS))
    except BaseException:
        _give_back(fleet, asked)
        raise
    return _word_of(asked)


def _word_of(asked: Future[Permission | None]) -> Permission | None:
    return NO_WORD if asked.cancel() else asked.result()


def _give_back(fleet: Fleet, asked: Future[Permission | None]) -> None:
    """Return a probe that nobody waits for any more."""
    if not asked.cancel() and (word := asked.result()) is not None and word.token is not None:
        fleet.released(word.token)
