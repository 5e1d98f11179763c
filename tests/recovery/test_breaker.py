from __future__ import annotations

import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.config import CircuitBreakerConfig
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.events import BreakerTransitioned, Event
from llmkg_otel.recovery.breaker import CircuitBreaker
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

BROKEN = ConnectionError("broken")


class Noted:
    """Keeps the events, and may do something about each of them at once."""

    def __init__(self, react: Callable[[], object] = list) -> None:
        self.events: list[BreakerTransitioned] = []
        self.react = react

    def on_event(self, event: Event) -> None:
        assert isinstance(event, BreakerTransitioned)
        self.events.append(event)
        self.react()

    @property
    def moves(self) -> list[tuple[str, str]]:
        return [(event.previous, event.state) for event in self.events]


def opened(noted: Noted, **config: Any) -> tuple[CircuitBreaker, FakeClock]:
    """Return a breaker that one failure has opened and one probe's success closes, and its clock."""
    clock = FakeClock(1000.0)
    once = CircuitBreakerConfig(failure_threshold=1, **{"success_threshold": 1, **config})
    breaker = CircuitBreaker("search", once, noted, clock)
    breaker.failed(breaker.admit_sync(), BROKEN)
    return breaker, clock


def test_a_refusal_says_which_circuit_is_open_and_when_to_come_back() -> None:
    breaker, clock = opened(Noted())
    clock.advance(12.5)
    with pytest.raises(CircuitOpenError, match="search has been failing: its circuit is open") as caught:
        breaker.admit_sync()
    error = caught.value
    assert (error.operation, error.scope, error.limit) == (
        "search",
        "circuit_breaker",
        "1 consecutive failures",
    )
    assert error.retry_after == 47.5
    clock.advance(47.5)
    assert breaker.admit_sync().expires_at == clock() + 10


def test_a_refusal_by_hand_does_not_blame_the_engine() -> None:
    breaker, _ = opened(Noted())
    breaker.force_open()
    with pytest.raises(CircuitOpenError, match="search was shut off: its circuit is forced open") as caught:
        breaker.admit_sync()
    assert (caught.value.limit, caught.value.retry_after) == (None, None)


def test_rates_are_of_the_window_also_when_nothing_comes_any_more() -> None:
    clock = FakeClock(1000.0)
    config = CircuitBreakerConfig(failure_rate_threshold=0.9, sliding_window_seconds=10)
    breaker = CircuitBreaker("search", config, Noted(), clock)
    breaker.failed(breaker.admit_sync(), BROKEN)
    assert breaker.rates == {"calls": 1, "failure_rate": 1, "slow_call_rate": 0}
    clock.advance(10)
    assert breaker.rates == {"calls": 0, "failure_rate": 0, "slow_call_rate": 0}


class AskedFleet:
    """A fleet that cannot be reached, and the times it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.met: Future[None] = Future()
        self.met.set_result(None)

    def request_probe(self) -> None:
        self.asked += 1

    def opened(self, token: int | None) -> None:
        """Take no note."""

    closed = succeeded = released = opened


def test_a_call_that_came_too_early_to_ask_the_fleet_is_no_probe_however_late_it_is_decided() -> None:
    breaker, clock = opened(Noted())
    breaker.fleet = fleet = AskedFleet()
    clock.advance(59)
    asked = breaker._asked

    def slowly(now: float) -> Any:
        fleet = asked(now)
        clock.advance(1)
        return fleet

    breaker._asked = slowly  # type: ignore[method-assign]
    with pytest.raises(CircuitOpenError):
        breaker.admit_sync()
    breaker.admit_sync()
    assert (fleet.asked, breaker.state) == (1, "half_open")


def test_a_move_tells_the_failure_that_caused_it_and_only_that() -> None:
    noted = Noted()
    breaker, _ = opened(noted)
    breaker.force_close()
    assert noted.events == [
        BreakerTransitioned("search", "closed", "open", "ConnectionError"),
        BreakerTransitioned("search", "open", "closed", None),
    ]


def test_a_cancelled_probe_gives_its_place_to_the_next_call() -> None:
    breaker, clock = opened(Noted())
    clock.advance(60)
    probe = breaker.admit_sync()
    with pytest.raises(CircuitOpenError) as caught:
        breaker.admit_sync()
    assert caught.value.retry_after == 10  # the lease: nobody knows better
    breaker._circuit.usual.note(0.5, clock())
    with pytest.raises(CircuitOpenError) as caught:
        breaker.admit_sync()
    assert caught.value.retry_after == 0.5
    breaker.ignored(probe)
    assert breaker.admit_sync() is not probe
    assert breaker.state == "half_open"


def test_a_probe_that_never_comes_back_loses_its_place_when_its_time_is_up() -> None:
    breaker, clock = opened(Noted(), timeout=3)
    clock.advance(60)
    lost = breaker.admit_sync()
    clock.advance(3)
    assert breaker.admit_sync() is not lost


def test_with_several_probes_out_the_first_to_expire_says_when_to_come_back() -> None:
    breaker, clock = opened(Noted(), half_open_max_probes=2)
    clock.advance(60)
    breaker.admit_sync()
    clock.advance(4)
    breaker.admit_sync()
    with pytest.raises(CircuitOpenError) as caught:
        breaker.admit_sync()
    assert caught.value.retry_after == 6


def test_probes_of_an_earlier_trial_hold_no_place_in_the_next() -> None:
    breaker, clock = opened(Noted(), half_open_max_probes=2, recovery_timeout=1)
    clock.advance(1)
    slow = breaker.admit_sync()
    breaker.failed(breaker.admit_sync(), BROKEN)
    clock.advance(1)
    trial = [breaker.admit_sync(), breaker.admit_sync()]
    breaker.succeeded(slow, first=True)
    assert breaker.state == "half_open"
    assert {ticket.epoch for ticket in trial} != {slow.epoch}


def test_a_reset_of_a_breaker_that_is_configured_off_is_no_move() -> None:
    noted = Noted()
    breaker, _ = opened(noted)
    breaker.configure(CircuitBreakerConfig(enabled=False))
    breaker.force_close()
    breaker.configure(CircuitBreakerConfig())
    assert noted.moves == [("closed", "open"), ("open", "disabled"), ("disabled", "closed")]


def test_a_call_that_meets_the_circuit_closing_is_no_probe() -> None:
    breaker, _ = opened(Noted())
    lock = breaker._lock

    class ClosedMeanwhile:
        """The lock, had another thread closed the circuit just before it was free."""

        def __enter__(self) -> None:
            vars(breaker)["_lock"] = lock
            breaker.force_close()
            lock.acquire()

        def __exit__(self, *_exc: object) -> None:
            lock.release()

    vars(breaker)["_lock"] = ClosedMeanwhile()
    assert breaker.admit_sync().expires_at == math.inf


def test_a_ticket_of_a_closed_circuit_never_expires() -> None:
    breaker = CircuitBreaker("search", CircuitBreakerConfig(), Noted())
    assert breaker.admit_sync().expires_at == math.inf


def test_the_failure_that_opens_the_circuit_keeps_its_own_traceback() -> None:
    breaker = CircuitBreaker("search", CircuitBreakerConfig(failure_threshold=1), Noted())
    with pytest.raises(ConnectionError) as caught:
        raise BROKEN
    traceback = caught.value.__traceback__
    breaker.failed(breaker.admit_sync(), BROKEN)
    assert breaker.state == "open"
    assert BROKEN.__traceback__ is traceback


@pytest.mark.timeout(10)
def test_an_observer_may_use_the_breaker_it_hears_of() -> None:
    def use() -> None:
        if breaker.state == "open":
            breaker.force_close()
        assert breaker.calls["failure"] == 1
        breaker.ignored(breaker.admit_sync())

    noted = Noted(use)
    clock = FakeClock()
    breaker = CircuitBreaker("search", CircuitBreakerConfig(failure_threshold=1), noted, clock)
    breaker.failed(breaker.admit_sync(), BROKEN)
    assert noted.moves == [("closed", "open"), ("open", "closed")]


def in_threads(count: int, work: Callable[[], object]) -> list[Any]:
    start = threading.Barrier(count)

    def together() -> object:
        start.wait(5)
        return work()

    with ThreadPoolExecutor(count) as threads:
        return [done.result() for done in [threads.submit(together) for _ in range(count)]]


def test_eight_threads_are_inside_the_operation_at_the_same_time() -> None:
    breaker = CircuitBreaker("search", CircuitBreakerConfig(), Noted())
    inside = threading.Barrier(8)

    def call() -> None:
        ticket = breaker.admit_sync()
        inside.wait(5)  # returns only if all eight are here
        breaker.succeeded(ticket, first=True)

    in_threads(8, call)
    assert breaker.calls["success"] == breaker.first_tries == 8


def test_of_many_threads_that_come_after_the_recovery_time_one_becomes_the_probe() -> None:
    noted = Noted()
    breaker, clock = opened(noted)
    clock.advance(60)

    def come() -> bool:
        try:
            breaker.admit_sync()
        except CircuitOpenError:
            return False
        return True

    assert sum(in_threads(16, come)) == 1
    assert breaker.calls["rejected"] == 15
    assert noted.moves == [("closed", "open"), ("open", "half_open")]


def test_no_outcome_is_lost_between_threads_and_the_circuit_opens_once() -> None:
    noted = Noted()
    breaker = CircuitBreaker("search", CircuitBreakerConfig(failure_threshold=2000), noted, FakeClock())

    def fail() -> None:
        for _ in range(300):
            try:
                breaker.failed(breaker.admit_sync(), BROKEN)
            except CircuitOpenError:
                continue

    in_threads(8, fail)
    calls = breaker.calls
    assert calls["failure"] + calls["rejected"] == 2400
    assert calls["failure"] >= 2000
    assert noted.moves == [("closed", "open")]
