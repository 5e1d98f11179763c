from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.circuit import CONFIGS, Model, report
from support.time import Seen

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
        first = data.draw(st.booleans())
        self.first_tries += first and outcome == "success"
        report(self.breaker, ticket, outcome, started, first=first)
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


WINDOWED = st.builds(
    lambda window, **options: CircuitBreakerConfig(
        failure_threshold=100, slow_call_seconds=0.25, **window, **options
    ),
    window=st.sampled_from(
        [
            {"sliding_window_calls": calls, "minimum_calls": least}
            for calls, least in [(1, 1), (3, 2), (4, 4), (8, 2)]
        ]
        + [{"sliding_window_seconds": 5, "minimum_calls": least} for least in (1, 2, 4)]
    ),
    failure_rate_threshold=st.sampled_from([0.25, 0.5, 1]),
    slow_call_rate_threshold=st.sampled_from([None, 0.5, 1]),
)
ATTEMPTS = st.tuples(
    st.sampled_from(["success", "success", "success", "success", "failure", "ignored"]),
    st.sampled_from([0, 0, 0, 0.25]),  # seconds that it takes
    st.sampled_from([0, 0, 0.125, 0.5, 2.5, 5]),  # seconds until the next
    st.booleans(),  # whether somebody reads the rates meanwhile
)


@settings(max_examples=300)
@given(st.lists(WINDOWED, min_size=1, max_size=2), st.lists(ATTEMPTS, max_size=60))
def test_a_window_opens_the_circuit_exactly_when_a_plain_list_of_its_attempts_says_so(
    configs: list[CircuitBreakerConfig], attempts: list[tuple[str, float, float, bool]]
) -> None:
    clock, model = FakeClock(1000.0), Model(configs[0])
    breaker = CircuitBreaker("search", configs[0], Seen(), clock)
    for number, (outcome, seconds, wait, looks) in enumerate(attempts):
        if number == len(attempts) // 2:
            breaker.configure(configs[-1])
            model.reconfigure(configs[-1])
        epoch = model.epoch
        report(breaker, breaker.admit_sync(), outcome, clock() - seconds)
        model.report(number, epoch, outcome, clock(), seconds)
        assert breaker.state == model.state
        if breaker.state == "open":
            breaker.force_close()
            model.reset()
        clock.advance(wait)
        if looks:
            assert breaker.rates["calls"] == model.forget(clock())
    assert breaker.rates["calls"] == model.forget(clock())
