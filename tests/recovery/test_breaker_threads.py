"""Whatever threads do to one breaker at once comes to what the same steps come to one after the other."""

from __future__ import annotations

import copy
import random
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.circuit import RATES, Model, report

from llmkg_otel.config import CircuitBreakerConfig
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.events import BreakerTransitioned, Event
from llmkg_otel.recovery.breaker import CircuitBreaker
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BROKEN = ConnectionError("broken")
OUTCOMES = ("success", "failure", "ignored")


@contextmanager
def switching(seed: int) -> Iterator[None]:
    """Let another thread run, now and then, between any two lines of the breaker in this one."""
    draw = random.Random(seed).random

    def trace(frame: Any, event: str, _arg: object) -> Any:
        if "/llmkg_otel/recovery/" not in frame.f_code.co_filename:
            return None
        if event == "line" and draw() < 0.3:
            time.sleep(0)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    yield
    sys.settrace(before)


def at_once(works: list[Callable[[], object]], seed: int) -> None:
    start, problems = threading.Barrier(len(works)), []

    def run(work: Callable[[], object], number: int) -> None:
        start.wait(5)
        try:
            with switching(seed + number):
                work()
        except BaseException as problem:  # noqa: BLE001 - a thread would keep it to itself
            problems.append(problem)

    threads = [threading.Thread(target=run, args=each) for each in zip(works, range(99), strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


class Moves(list[tuple[str, str]]):
    def on_event(self, event: Event) -> None:
        assert isinstance(event, BreakerTransitioned)
        self.append((event.previous, event.state))


class Calls(list[bool]):
    """A thread's calls, each an attempt with a given outcome if it is let through: was it?"""

    def __init__(self, breaker: CircuitBreaker, outcomes: list[str]) -> None:
        super().__init__()
        self.breaker, self.outcomes = breaker, outcomes

    def __call__(self) -> None:
        for outcome in self.outcomes:
            try:
                ticket = self.breaker.admit_sync()
            except CircuitOpenError:
                self.append(False)
            else:
                self.append(True)
                report(self.breaker, ticket, outcome, self.breaker._clock())


class Order(NamedTuple):
    """How far each thread has come in one order of the steps, and what the model makes of it."""

    model: Model
    done: tuple[int, ...]
    out: tuple[int | None, ...]
    """The epoch of the attempt that a thread has out."""

    def steps(self, threads: list[Calls], now: float) -> Iterator[Order]:
        """Yield what may come next: a step of one of the threads, with the result that it saw."""
        for index, calls in enumerate(threads):
            model, done, out = copy.deepcopy(self.model), list(self.done), list(self.out)
            if (epoch := self.out[index]) is not None:
                model.report(index, epoch, calls.outcomes[done[index]], now, 0)
                out[index] = None
                done[index] += 1
            elif done[index] < len(calls):
                admitted, _ = model.admit(index, now)
                if admitted is not calls[done[index]]:
                    continue
                out[index] = model.epoch if admitted else None
                done[index] += not admitted
            else:
                continue
            yield Order(model, tuple(done), tuple(out))

    @property
    def key(self) -> str:
        return repr((self.done, self.out, sorted(vars(self.model).items(), key=lambda item: item[0])))


def ends(model: Model, threads: list[Calls], now: float) -> Iterator[Model]:
    """Yield the model after each order of the steps in which every thread sees what it saw."""
    found, seen = [Order(model, (0,) * len(threads), (None,) * len(threads))], set()
    while found:
        order = found.pop()
        if order.key in seen:
            continue
        seen.add(order.key)
        following = list(order.steps(threads, now))
        if not following and all(done == len(calls) for done, calls in zip(order.done, threads, strict=True)):
            yield order.model
        found += following


def gist(of: CircuitBreaker | Model, moves: list[tuple[str, str]]) -> tuple[object, ...]:
    if isinstance(of, CircuitBreaker):
        failures, window, probes = of.consecutive_failures, of.rates.get("calls", 0), len(of._probes)
    else:
        failures, window, probes = of.failures, len(of.window), len(of.probes)
    return of.state, sorted(moves), probes, window, failures if of.state == "closed" else None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RATES),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
    st.lists(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=3), min_size=2, max_size=3),
    st.integers(0, 2**32),
)
def test_calls_from_threads_come_to_what_some_order_of_the_same_steps_comes_to(
    rates: dict[str, Any], failures: int, successes: int, due: bool, scripts: list[list[str]], seed: int
) -> None:
    config = CircuitBreakerConfig(failure_threshold=failures, success_threshold=successes, **rates)
    clock, moves, model = FakeClock(1000.0), Moves(), Model(config)
    breaker = CircuitBreaker("search", config, moves, clock)
    while due and breaker.state == "closed":
        breaker.failed(breaker.admit_sync(), BROKEN)
        model.report(0, 0, "failure", clock(), 0)
    clock.advance(60)
    threads = [Calls(breaker, script) for script in scripts]
    at_once(list(threads), seed)
    done = Counter(
        outcome if let_in else "rejected"
        for calls in threads
        for outcome, let_in in zip(calls.outcomes, calls, strict=True)
    )
    assert Counter(breaker.calls) - Counter({"failure": len(model.window) or model.failures}) == done
    assert gist(breaker, moves) in [gist(end, end.moves) for end in ends(model, threads, clock())]


@pytest.mark.parametrize("seed", range(3))
def test_threads_never_have_more_probes_out_than_allowed_and_lose_none(seed: int) -> None:
    allowed = 2
    config = CircuitBreakerConfig(
        failure_threshold=2, success_threshold=2, recovery_timeout=1, timeout=1e6, failure_rate_threshold=0.9
    )
    clock, moves = FakeClock(1000.0), Moves()
    breaker = CircuitBreaker("search", config, moves, clock)
    lock, out, most = threading.Lock(), Counter[int](), Counter[int]()
    admitted = Counter[bool]()

    def work(draw: random.Random) -> None:
        for _ in range(60):
            clock.advance(draw.choice([0, 0, 0.5]))
            try:
                ticket = breaker.admit_sync()
            except CircuitOpenError:
                with lock:
                    admitted[False] += 1
                continue
            probe = ticket.expires_at < 1e9
            with lock:
                admitted[True] += 1
                out[ticket.epoch] += probe
                most[ticket.epoch] = max(most[ticket.epoch], out[ticket.epoch])
            time.sleep(0.0005)
            with lock:
                out[ticket.epoch] -= probe
            report(breaker, ticket, draw.choice(OUTCOMES), clock())

    at_once([lambda n=n: work(random.Random(seed * 8 + n)) for n in range(8)], seed)  # type: ignore[misc]
    calls = breaker.calls
    assert (calls["rejected"], sum(calls.values())) == (admitted[False], sum(admitted.values()))
    assert max(most.values()) == allowed
    assert breaker._probes == []
    clock.advance(1)
    breaker.admit_sync()  # refused if a place were lost
    assert ("half_open", "closed") in moves
    assert ("half_open", "open") in moves
