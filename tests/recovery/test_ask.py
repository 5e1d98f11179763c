"""Asking the fleet for a probe: no call waits long, none fails for it, and no probe is lost."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
from support.fleet import Answering

from llmkg_otel.recovery.fleet import FLEET_SECONDS, NO_WORD, Fleet, Permission, ask, ask_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Asks = Callable[[Fleet | None], Coroutine[None, None, Permission | None]]


async def in_a_thread(fleet: Fleet | None) -> Permission | None:
    return await asyncio.to_thread(ask_sync, fleet)


both = pytest.mark.parametrize("asks", [ask, in_a_thread])


def granted() -> Future[Permission | None]:
    answer: Future[Permission | None] = Future()
    answer.set_result(Permission(7))
    return answer


def unreached() -> Future[Permission | None]:
    answer: Future[Permission | None] = Future()
    answer.set_result(None)
    return answer


@both
async def test_the_answer_is_handed_on(
    asks: Asks,
) -> None:
    assert await asks(Answering(granted())) == Permission(7)


@both
@pytest.mark.parametrize("fleet", [None, Answering(None), Answering(unreached())])
async def test_without_a_fleet_that_is_reached_there_is_no_word(fleet: Fleet | None, asks: Asks) -> None:
    assert await asks(fleet) is None


@both
async def test_a_call_that_has_no_word_in_time_is_refused_and_says_that_it_no_longer_waits(
    asks: Asks,
) -> None:
    answer: Future[Permission | None] = Future()
    started = time.monotonic()
    assert await asks(Answering(answer)) == NO_WORD == Permission(None, FLEET_SECONDS)
    assert FLEET_SECONDS <= time.monotonic() - started < FLEET_SECONDS + 0.1
    assert answer.cancelled()


async def test_a_cancelled_call_says_that_it_no_longer_waits() -> None:
    answer: Future[Permission | None] = Future()
    call = asyncio.create_task(ask(Answering(answer)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert answer.cancelled()


async def test_a_call_that_is_cancelled_when_the_probe_has_come_gives_it_back() -> None:
    fleet = Answering(Future())
    call = asyncio.create_task(ask(fleet))
    await asyncio.sleep(0)
    assert fleet.answer is not None
    fleet.answer.set_result(Permission(7))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert fleet.given_back == [7]
