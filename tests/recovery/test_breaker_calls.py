"""Calls of a system, async and in the calling thread, move its breaker as the model says."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.circuit import CONFIGS, Model
from support.engines import StubEngine

from llmkg_otel.config import (
    AlertingConfig,
    CircuitBreakerConfig,
    OperationConfig,
    ProductionConfig,
    RetryConfig,
)
from llmkg_otel.errors import CircuitOpenError, InvalidInputError
from llmkg_otel.system import ProductionSystem
from llmkg_otel.testing import FakeClock, captured_telemetry

ENDS: dict[str, tuple[str, type[BaseException] | None]] = {
    "returns": ("success", None),
    "fails": ("failure", ConnectionError),
    "is excluded": ("ignored", LookupError),
    "is the caller's mistake": ("ignored", InvalidInputError),
    "is cancelled": ("ignored", asyncio.CancelledError),
}


def policies(breaker: CircuitBreakerConfig) -> OperationConfig:
    """Let no attempt run out of time: the clock is the test's, the loop's timer is not."""
    changed = {"timeout": 1e8, "excluded_exceptions": (LookupError,)}
    return OperationConfig(
        circuit_breaker=breaker.model_copy(update=changed), retry=RetryConfig(max_retries=0), timeout=1e8
    )


class Pending:
    """A call whose operation waits for the test to end it."""

    def __init__(self, number: int, epoch: int, started: float) -> None:
        self.number, self.epoch, self.started = number, epoch, started
        self.end = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any]


class CallsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(time.monotonic())
        config = policies(CircuitBreakerConfig(failure_threshold=2, recovery_timeout=4, success_threshold=2))
        self.exits = ExitStack()
        stopped = SimpleNamespace(monotonic=self.clock)
        for module in ("call", "attempt"):
            self.exits.enter_context(patch(f"llmkg_otel.{module}.time", stopped))
        telemetry = self.exits.enter_context(captured_telemetry())
        self.runner = self.exits.enter_context(asyncio.Runner())
        self.system = ProductionSystem(
            StubEngine(),
            ProductionConfig(operations={"op": config}, alerting=AlertingConfig(default_rules=False)),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        (self.op,) = self.system.operations
        self.op.breaker._clock = self.op.breaker._circuit._clock = self.clock
        self.model = Model(config.circuit_breaker or CircuitBreakerConfig())
        self.out: list[Pending] = []
        self.counts = dict.fromkeys(("success", "failure", "ignored", "rejected"), 0)
        self.calls = 0

    def teardown(self) -> None:
        self.runner.run(self.end_all())
        assert len(self.system.calls) == 0
        self.exits.close()

    async def end_all(self) -> None:
        for pending in self.out:
            pending.task.cancel()
        await asyncio.gather(*(pending.task for pending in self.out), return_exceptions=True)

    def refused(self, wait: float | None, error: BaseException | None) -> None:
        assert isinstance(error, CircuitOpenError)
        if self.model.state == "half_open" and wait is not None:
            # The lease's end at the latest: a call that usually takes less is told the usual time.
            assert error.retry_after is not None
            assert 0 < error.retry_after <= wait + 1e-6
        else:
            assert error.retry_after == (None if wait is None else pytest.approx(wait))
        self.counts["rejected"] += 1

    @initialize(config=CONFIGS)
    def start(self, config: CircuitBreakerConfig) -> None:
        self.configure(config)

    @rule()
    def begin(self) -> None:
        self.calls += 1
        admitted, wait = self.model.admit(self.calls, self.clock())
        pending = self.runner.run(self.begun())
        if admitted:
            assert not pending.task.done()
            self.out.append(pending)
        else:
            self.refused(wait, pending.task.exception())

    async def begun(self) -> Pending:
        pending = Pending(self.calls, self.model.epoch, self.clock())

        async def operation() -> object:
            return await pending.end

        call = self.system.execute_protected_operation("op", operation)
        pending.task = asyncio.create_task(call)
        await asyncio.sleep(0)
        return pending

    @precondition(lambda self: self.out)
    @rule(data=st.data(), end=st.sampled_from([*ENDS, "returns", "fails"]))
    def finish(self, data: st.DataObject, end: str) -> None:
        pending = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        outcome, error = ENDS[end]
        assert self.runner.run(self.finished(pending, error)) is error
        seconds = self.clock() - pending.started
        self.model.report(pending.number, pending.epoch, outcome, self.clock(), seconds)
        self.counts[outcome] += 1

    async def finished(self, pending: Pending, error: type[BaseException] | None) -> type | None:
        if error is asyncio.CancelledError:
            pending.task.cancel()
        elif error is not None:
            pending.end.set_exception(error())
        else:
            pending.end.set_result("found")
        await asyncio.wait({pending.task})
        if pending.task.cancelled():
            return asyncio.CancelledError
        raised = pending.task.exception()
        return None if raised is None else type(raised)

    @rule(end=st.sampled_from(sorted(ENDS.keys() - {"is cancelled"})))
    def call_from_a_thread(self, end: str) -> None:
        self.calls += 1
        admitted, wait = self.model.admit(self.calls, self.clock())
        epoch, (outcome, error) = self.model.epoch, ENDS[end]

        def operation() -> None:
            if error is not None:
                raise error

        raised: BaseException | None = None
        try:
            self.system.execute_protected_operation_sync("op", operation)
        except Exception as caught:  # noqa: BLE001 - compared
            raised = caught
        if not admitted:
            self.refused(wait, raised)
            return
        assert (None if raised is None else type(raised)) is error
        self.model.report(self.calls, epoch, outcome, self.clock(), 0)
        self.counts[outcome] += 1

    @rule(seconds=st.sampled_from([0.25, 1, 4, 10]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(override=st.sampled_from(["forced_open", "disabled", ""]))
    def override(self, override: str) -> None:
        breaker = self.op.breaker
        {"forced_open": breaker.force_open, "disabled": breaker.disable, "": breaker.force_close}[override]()
        if override:
            self.model.become(override=override)
        else:
            self.model.reset()

    @rule(config=CONFIGS)
    def configure(self, config: CircuitBreakerConfig) -> None:
        changed = policies(config)
        self.system.configure_operation("op", changed)
        self.model.reconfigure(changed.circuit_breaker or config)

    @invariant()
    def the_breaker_is_where_the_model_is(self) -> None:
        breaker = self.op.breaker
        assert breaker.state == self.model.state
        assert breaker.calls == self.counts
        assert breaker.rates.get("calls", 0) == self.model.forget(self.clock())

    @invariant()
    def calls_in_flight_are_those_that_wait_and_hold_their_permits(self) -> None:
        assert len(self.system.calls) == len(self.out)
        assert [pool.usage for pool in self.op.pools] == [len(self.out)]


TestCallsMachine = CallsMachine.TestCase
TestCallsMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
