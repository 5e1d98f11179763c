from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.time import Seen

from llmkg_otel.events import LoopBlocked
from llmkg_otel.health.heartbeat import Heartbeat, Watchdog, stack_of
from llmkg_otel.health.probes import Probes


class Loop:
    """The heartbeat's clock and sleep: it beats when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.turn = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.turn.wait()
        self.turn.clear()

    async def beat(self) -> None:
        self.turn.set()
        for _ in range(3):
            await asyncio.sleep(0)


async def test_the_heart_beats_each_half_second_until_it_is_stopped() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    await heartbeat.start()
    await loop.beat()
    loop.now += 4
    assert heartbeat.age == 4
    await loop.beat()
    assert heartbeat.age == 0
    assert set(loop.slept) == {0.5}
    await heartbeat.stop()
    loop.now += 60
    assert heartbeat.alive()


async def test_a_blocked_loop_is_seen_from_another_thread() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    probes = Probes(heartbeat, lambda: "serving", tuple)
    await heartbeat.start()
    loop.now += 5.1  # no beat: the loop does not get to it
    answers = []
    reader = threading.Thread(target=lambda: answers.append(probes.liveness()))
    reader.start()
    reader.join()
    assert answers[0].reasons == ("the event loop has been blocked for 5.1 s",)
    assert heartbeat.alive(max_age=6)
    await heartbeat.stop()


async def test_starting_the_heart_twice_starts_one() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    await heartbeat.start()
    await heartbeat.start()
    await loop.beat()
    assert len(loop.slept) == 2
    await heartbeat.stop()


async def test_each_beat_keeps_how_late_it_was_the_last_twenty_of_them() -> None:
    loop = Loop()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    await heartbeat.start()
    assert heartbeat.lags == ()
    await loop.beat()
    for late in range(25):
        loop.now += 0.5 + late
        await loop.beat()
    assert heartbeat.lags == tuple(range(5, 25))
    await heartbeat.stop()


class Ages:
    """A heartbeat of which only the age is asked."""

    def __init__(self) -> None:
        self.age = 0.0
        self.thread = threading.get_ident()

    def alive(self) -> bool:
        return self.age <= 5


@given(st.lists(st.floats(0, 10), max_size=20))
def test_the_watchdog_barks_once_each_time_the_loop_stops_whatever_the_ages(ages: list[float]) -> None:
    heartbeat, seen = Ages(), Seen()
    watchdog = Watchdog(heartbeat, seen)  # type: ignore[arg-type]
    expected = []
    for before, age in zip([0.0, *ages], ages, strict=False):
        heartbeat.age = age
        watchdog.look()
        if age > 5 >= before:
            expected.append(age)
    assert [event.seconds for event in seen if isinstance(event, LoopBlocked)] == expected


async def test_the_watchdog_says_where_the_loop_stands() -> None:
    loop, seen = Loop(), Seen()
    heartbeat = Heartbeat(loop.clock, loop.sleep)
    await heartbeat.start()
    loop.now += 6

    def the_culprit() -> None:
        looking = threading.Thread(target=Watchdog(heartbeat, seen).look)
        looking.start()
        looking.join()  # the loop stands here

    the_culprit()
    await heartbeat.stop()
    (event,) = seen
    assert isinstance(event, LoopBlocked)
    assert event.seconds == 6
    assert "in the_culprit" in event.stack
    assert event.stack.count("File ") <= 12


@pytest.mark.parametrize("thread", [None, 1])
def test_a_loop_whose_thread_is_gone_has_no_stack(thread: int | None) -> None:
    assert stack_of(thread) == "its thread has ended"


def test_the_watchdog_looks_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkg_otel.health.heartbeat.LOOK_SECONDS", 0.001)
    looked = threading.Event()

    class Heart(Ages):
        def alive(self) -> bool:
            looked.set()
            return True

    watchdog = Watchdog(Heart(), Seen())  # type: ignore[arg-type]
    watchdog.start()
    assert looked.wait(5)
    watchdog.stop()
    watchdog.stop()
    assert "llmkg-watchdog" not in {thread.name for thread in threading.enumerate()}
