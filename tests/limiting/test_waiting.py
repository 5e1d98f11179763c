"""Whose turn is next: first come first served, and what changes under load shedding."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from llmkg_otel.config import LoadSheddingConfig
from llmkg_otel.limiting.waiting import Criticality, Shed, Waiter, WaitQueue
from llmkg_otel.testing import FakeClock

ON = LoadSheddingConfig(mode="on", queue_interval_seconds=1, queue_target_seconds=0.5)


def queue_of(
    *criticalities: Criticality, shedding: LoadSheddingConfig | None = ON
) -> tuple[WaitQueue, FakeClock, list[Waiter]]:
    """Return a queue with these waiters, one of them a tenth of a second after the other."""
    clock = FakeClock()
    queue, waiters = WaitQueue(shedding, clock), [Waiter(each) for each in criticalities]
    for waiter in waiters:
        queue.push(waiter)
        clock.advance(0.1)
    return queue, clock, waiters


def turns(queue: WaitQueue, waiters: list[Waiter]) -> list[int]:
    order = []
    while queue.length:
        order.append(waiters.index(queue.pop()))
    return order


@pytest.mark.parametrize(
    "shedding", [None, LoadSheddingConfig(mode="off"), LoadSheddingConfig(mode="shadow")]
)
def test_without_shedding_everybody_is_served_in_turn(shedding: LoadSheddingConfig | None) -> None:
    queue, clock, waiters = queue_of("sheddable", "critical", "default", shedding=shedding)
    clock.advance(1000)
    assert not queue.overloaded
    assert queue.patience("sheddable", 7) == 7
    assert not queue.make_room_for("critical")
    assert turns(queue, waiters) == [0, 1, 2]


def test_the_more_critical_go_first_and_among_equals_the_first_to_come() -> None:
    queue, _, waiters = queue_of("sheddable", "default", "critical", "default", "critical")
    assert turns(queue, waiters) == [2, 4, 1, 3, 0]


def test_in_an_overload_the_newest_go_first() -> None:
    queue, clock, waiters = queue_of("critical", "critical", "critical")
    clock.advance(1)
    assert queue.overloaded
    assert turns(queue, waiters) == [2, 1, 0]


def test_an_empty_queue_ends_the_overload() -> None:
    queue, clock, _ = queue_of("default")
    clock.advance(1000)
    queue.pop()
    queue.push(Waiter("default"))
    assert not queue.overloaded


def test_in_an_overload_all_but_critical_calls_lose_patience() -> None:
    queue, clock, _ = queue_of("default")
    assert [queue.patience(each, 7) for each in ("critical", "default", "sheddable")] == [7, 7, 7]
    clock.advance(1)
    assert [queue.patience(each, 7) for each in ("critical", "default", "sheddable")] == [7, 0.5, 0.5]
    assert queue.patience("default", 0.1) == 0.1


def test_who_waited_too_long_when_the_overload_is_found_is_sent_away_unless_critical() -> None:
    queue, clock, waiters = queue_of("critical", "default", "sheddable")
    clock.advance(0.8)
    late = Waiter("default")
    queue.push(late)
    assert queue.pop() is waiters[0]
    for waiter in waiters[1:]:
        error = waiter.exception(0)
        assert isinstance(error, Shed)
        assert error.reason == "waited"
    assert (queue.length, queue.pop()) == (1, late)


@pytest.mark.parametrize(("newcomer", "leaves"), [("critical", 2), ("default", 2), ("sheddable", None)])
def test_room_is_made_by_the_least_critical_that_waited_longest(
    newcomer: Criticality, leaves: int | None
) -> None:
    queue, _, waiters = queue_of("default", "critical", "sheddable", "sheddable")
    assert queue.make_room_for(newcomer) is (leaves is not None)
    gone = [number for number, waiter in enumerate(waiters) if waiter.done()]
    assert gone == ([] if leaves is None else [leaves])
    assert queue.length == 4 - len(gone)


def test_nobody_makes_room_for_an_equal() -> None:
    queue, _, _ = queue_of("critical", "critical")
    assert not queue.make_room_for("critical")


def test_a_waiter_that_has_just_been_cancelled_is_not_told_twice() -> None:
    queue, _, waiters = queue_of("sheddable")
    waiters[0].cancel()
    assert queue.make_room_for("default")
    assert waiters[0].cancelled()


def test_leaving_twice_counts_once() -> None:
    queue, _, waiters = queue_of("default", "critical")
    for _ in range(2):
        queue.remove(waiters[0])
    assert (queue.length, queue.pop()) == (1, waiters[1])
    assert isinstance(waiters[0], Future)
