from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.circuit import CONFIGS, Model

from llmkg_otel.config import CircuitBreakerConfig
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.events import BreakerTransitioned, Event
from llmkg_otel.recovery.breaker import CircuitBreaker, Ticket
from llmkg_otel.testing import FakeClock


class BreakerMachine(RuleBasedStateMachine):
    """Does the same to the breaker and to the model."""

    def __init__(self) -> None:
        super().__init__()
        config = CircuitBreakerConfig(failure_threshold=2, recovery_timeout=4, success_threshold=2, timeout=2)
        self.clock, self.model = FakeClock(), Model(config)
        self.moves: list[tuple[str, str]] = []
        self.breaker = CircuitBreaker("search", config, self, self.clock)
        self.out: list[tuple[Ticket, int, int]] = []
        self.counts = dict.fromkeys(("success", "failure", "ignored", "rejected"), 0)
        self.admitted = self.first_tries = 0

    def on_event(self, event: Event) -> None:
        assert isinstance(event, BreakerTransitioned)
        self.moves.append((event.previous, event.state))

    @initialize(config=CONFIGS)
    def begin(self, config: CircuitBreakerConfig) -> None:
        self.configure(config)

    @rule()
    def admit(self) -> None:
        admitted, wait = self.model.admit(self.admitted, self.clock())
        if admitted:
            self.out.append((self.breaker.admit_sync(), self.admitted, self.model.epoch))
            self.admitted += 1
            return
        with pytest.raises(CircuitOpenError) as caught:
            self.breaker.admit_sync()
        assert caught.value.retry_after == wait
        self.counts["rejected"] += 1

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "success", "failure", "failure", "ignored"]))
    def report(self, data: st.DataObject, outcome: str) -> None:
        ticket, number, epoch = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        seconds = data.draw(st.sampled_from([0, 0.25, 1]))
        started = self.clock() - seconds
        if outcome == "success":
            first = data.draw(st.booleans())
            self.first_tries += first
            self.breaker.succeeded(ticket, first=first, started=started)
        elif outcome == "failure":
            self.breaker.failed(ticket, ConnectionError(), started=started)
        else:
            self.breaker.ignored(ticket)
        self.model.report(number, epoch, outcome, self.clock(), seconds)
        self.counts[outcome] += 1

    @rule(seconds=st.sampled_from([0.5, 1, 2, 4]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def force_open(self) -> None:
        self.breaker.force_open()
        self.model.become(override="forced_open")

    @rule()
    def disable(self) -> None:
        self.breaker.disable()
        self.model.become(override="disabled")

    @rule()
    def reset(self) -> None:
        self.breaker.force_close()
        self.model.reset()

    @rule(config=CONFIGS)
    def configure(self, config: CircuitBreakerConfig) -> None:
        self.breaker.configure(config)
        self.model.reconfigure(config)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.breaker.state == self.model.state
        assert self.moves == self.model.moves
        assert self.breaker.rates.get("calls", 0) == self.model.forget(self.clock())
        if self.model.state == "closed":
            assert self.breaker.consecutive_failures == self.model.failures

    @invariant()
    def every_ticket_and_refusal_is_counted_once(self) -> None:
        assert self.breaker.calls == self.counts
        assert self.breaker.first_tries == self.first_tries
        assert sum(self.counts.values()) + len(self.out) == self.admitted + self.counts["rejected"]

    @invariant()
    def each_move_begins_where_the_last_one_ended(self) -> None:
        assert all(earlier[1] == later[0] for earlier, later in pairwise([("", "closed"), *self.moves]))


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
