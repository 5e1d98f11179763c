"""Asking the fleet for a probe: no call waits long, none fails for it, and no probe is lost."""

from __future__ import annotations

import asyncio
import gc
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
from support.time import settle

from llmkg_otel.recovery.fleet import FLEET_SECONDS, Fleet, Permission, ask, ask_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Asks = Callable[[Fleet | None], Coroutine[None, None, Permission | None]]


class Slow:
    """A fleet that answers when the test says so."""

    def __init__(self, answer: Future[Permission] | None) -> None:
        self.answer = answer
        self.given_back: list[int] = []

    def request_probe(self) -> Future[Permission] | None:
        return self.answer

    def opened(self, token: int | None) -> None: ...

    def succeeded(self, token: int) -> None: ...

    def released(self, token: int) -> None:
        self.given_back.append(token)


async def in_a_thread(fleet: Fleet | None) -> Permission | None:
    return await asyncio.to_thread(ask_sync, fleet)


both = pytest.mark.parametrize("asks", [ask, in_a_thread])


def granted() -> Future[Permission]:
    answer: Future[Permission] = Future()
    answer.set_result(Permission(7))
    return answer


def failed() -> Future[Permission]:
    answer: Future[Permission] = Future()
    answer.set_exception(ConnectionError())
    return answer


@both
async def test_the_answer_is_handed_on(
    asks: Asks,
) -> None:
    assert await asks(Slow(granted())) == Permission(7)


@both
@pytest.mark.parametrize("fleet", [None, Slow(None), Slow(failed())])
async def test_without_a_fleet_or_after_an_error_there_is_no_word(fleet: Fleet | None, asks: Asks) -> None:
    assert await asks(fleet) is None


@both
async def test_a_probe_that_comes_too_late_is_given_back(
    asks: Asks,
) -> None:
    answer: Future[Permission] = Future()
    fleet = Slow(answer)
    started = time.monotonic()
    assert await asks(fleet) is None
    assert FLEET_SECONDS <= time.monotonic() - started < FLEET_SECONDS + 0.1
    answer.set_result(Permission(7))
    assert fleet.given_back == [7]


@both
async def test_an_error_that_comes_too_late_bothers_nobody(
    asks: Asks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer: Future[Permission] = Future()
    assert await asks(Slow(answer)) is None
    answer.set_exception(ConnectionError())
    del answer
    await settle()
    gc.collect()  # asyncio complains of what nobody has looked at when it is collected
    assert caplog.records == []


async def test_a_cancelled_call_gives_the_probe_back_when_it_comes() -> None:
    answer: Future[Permission] = Future()
    fleet = Slow(answer)
    call = asyncio.create_task(ask(fleet))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    answer.set_result(Permission(7))
    assert fleet.given_back == [7]
