"""Every combination of policies does what a model of a few lines predicts, and counts what it did."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.call import remaining_time
from llmkg_otel.config import (
    CircuitBreakerConfig,
    OperationConfig,
    RateLimitRule,
    ResourceLimits,
    RetryConfig,
)
from llmkg_otel.errors import error_type
from llmkg_otel.testing import CapturedTelemetry, FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.system import ProductionSystem

POLICIES = ("rate limit", "bulkhead", "retry", "breaker", "timeout")
COMBINATIONS = [
    frozenset(name for name, on in zip(POLICIES, chosen, strict=True) if on)
    for chosen in product((False, True), repeat=len(POLICIES))
]
BEHAVIOURS: Mapping[str, Callable[[int], bool]] = {
    "success": lambda _attempt: False,
    "failure then success": lambda attempt: attempt % 2 == 0,
    "always failing": lambda _attempt: True,
}
CALLS, BURST, RETRIES, THRESHOLD = 6, 4, 2, 4
ATTEMPT_SECONDS = 0.005


class Model:
    """What each call should come to, by the order of the policies and nothing else."""

    def __init__(self, on: frozenset[str], fails: Callable[[int], bool], *, sync: bool) -> None:
        self.on, self.fails, self.sync = on, fails, sync
        self.tokens = BURST
        self.attempts = self.failures_in_a_row = 0
        self.breaker: Counter[str] = Counter()
        self.reached = 0

    def call(self, *, bulkhead_full: bool) -> str:
        if "rate limit" in self.on:
            if self.tokens == 0:
                return "rate_limited"
            self.tokens -= 1
        if "bulkhead" in self.on and bulkhead_full:
            return "permit_timeout"
        if self.is_open():
            self.breaker["rejected"] += 1
            return "circuit_open"
        self.reached += 1
        return self.attempts_of_a_call()

    def attempts_of_a_call(self) -> str:
        outcome = self.attempt()
        for _ in range(RETRIES if "retry" in self.on else 0):
            if outcome == "ok" or (self.sync and "timeout" in self.on):
                break  # in a thread the deadline stops no attempt, but the one that would follow
            if self.is_open():
                self.breaker["rejected"] += 1
                break
            outcome = self.attempt()
        return outcome

    def attempt(self) -> str:
        failed = self.fails(self.attempts)
        self.attempts += 1
        self.breaker["failure" if failed else "success"] += 1
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        if not failed:
            return "ok"
        return "deadline_exceeded" if "timeout" in self.on and not self.sync else "ConnectionError"

    def is_open(self) -> bool:
        return "breaker" in self.on and self.failures_in_a_row >= THRESHOLD


def operation_config(on: frozenset[str]) -> OperationConfig:
    """Switch policies on or off; what is off is out of reach of these few calls."""
    once_in_a_while = RateLimitRule(requests_per_second=1e-6, burst_capacity=BURST)
    return OperationConfig(
        rate_limit=once_in_a_while if "rate limit" in on else None,
        max_concurrent=1 if "bulkhead" in on else None,
        retry=RetryConfig(max_retries=RETRIES if "retry" in on else 0, base_delay_ms=0, max_delay_ms=0),
        circuit_breaker=CircuitBreakerConfig(
            enabled="breaker" in on,
            failure_threshold=THRESHOLD,
            recovery_timeout=1e6,
            timeout=ATTEMPT_SECONDS if "timeout" in on else 1e6,
        ),
        timeout=20 if "timeout" in on else 1e6,
        idempotent=True,
    )


@pytest.fixture
def make_with(make_system: Callable[..., ProductionSystem]) -> Callable[[frozenset[str]], ProductionSystem]:
    def make(on: frozenset[str]) -> ProductionSystem:
        limits = ResourceLimits(max_queued_operations=0)
        return make_system(resources=limits, operations={"op": operation_config(on)})

    return make


class Engine:
    """Fails by attempt number: at once, or by using up the time it has where there is a limit."""

    def __init__(self, fails: Callable[[int], bool], *, slow: bool, clock: FakeClock) -> None:
        self.fails, self.slow, self.clock = fails, slow, clock
        self.attempts = 0

    def _failing(self) -> bool:
        self.attempts += 1
        return self.fails(self.attempts - 1)

    async def answer(self) -> str:
        if self._failing():
            if self.slow:
                await asyncio.Event().wait()
            raise ConnectionError
        return "ok"

    def answer_sync(self) -> str:
        if self._failing():
            left = remaining_time()
            self.clock.advance(left if self.slow and left is not None else 0)
            raise ConnectionError
        return "ok"


async def outcomes(system: ProductionSystem, engine: Engine, *, sync: bool) -> list[str]:
    """Make the calls one after the other; the last two find the bulkhead, if there is one, full."""
    (op,) = system.operations
    seen = []
    for number in range(CALLS):
        if number == CALLS - 2 and op.bulkhead is not None:
            op.bulkhead.try_acquire()
        try:
            if sync:
                seen.append(system.execute_protected_operation_sync("op", engine.answer_sync))
            else:
                seen.append(await system.execute_protected_operation("op", engine.answer))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
            seen.append(error_type(error))
    return seen


def numbers(telemetry: CapturedTelemetry, name: str, *keys: str) -> dict[Any, Any]:
    """Return a metric's values by some of its attributes, histograms by count, without zeros."""
    found: dict[Any, Any] = {}
    for attributes, value in telemetry.metric(name).items():
        key = tuple(dict(attributes).get(key, "ok") for key in keys)
        found[key] = value[0] if isinstance(value, tuple) else value
    return {key[0] if len(key) == 1 else key: value for key, value in found.items() if value}


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("on", COMBINATIONS, ids=lambda on: "+".join(sorted(on)) or "nothing")
async def test_policies_together_do_and_count_what_the_model_predicts(
    on: frozenset[str],
    behaviour: str,
    sync: bool,
    make_with: Callable[[frozenset[str]], ProductionSystem],
    telemetry: CapturedTelemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock(1000.0)
    if sync:
        stopped = SimpleNamespace(monotonic=clock, time_ns=time.time_ns)
        for module in ("call", "attempt", "telemetry.observer"):
            monkeypatch.setattr(f"llmkg_otel.{module}.time", stopped)
    system = make_with(on)
    engine = Engine(BEHAVIOURS[behaviour], slow="timeout" in on, clock=clock)
    model = Model(on, BEHAVIOURS[behaviour], sync=sync)
    predicted = [model.call(bulkhead_full=number >= CALLS - 2) for number in range(CALLS)]

    assert await outcomes(system, engine, sync=sync) == predicted
    assert engine.attempts == model.attempts
    assert numbers(telemetry, "llmkg.operation.duration", "error.type") == Counter(predicted)
    assert numbers(telemetry, "llmkg.circuit_breaker.calls", "outcome") == model.breaker
    retries = numbers(telemetry, "llmkg.retry.calls", "outcome")
    assert sum(retries.values()) == model.reached
    assert retries.get("first_try", 0) + retries.get("recovered", 0) == predicted.count("ok")
    rejected = predicted.count("rate_limited")
    admitted = {("operation", "acquired"): CALLS - rejected, ("operation", "rejected"): rejected}
    decisions = numbers(telemetry, "llmkg.rate_limit.requests", "policy", "result")
    by_operation = {key: value for key, value in decisions.items() if key[0] == "operation"}
    assert by_operation == ({k: v for k, v in admitted.items() if v} if "rate limit" in on else {})
    assert numbers(telemetry, "llmkg.operation.active", "llmkg.operation.name") == {}
    held = {"op": 1} if "bulkhead" in on else {}
    assert numbers(telemetry, "llmkg.permit.usage", "pool") == held
