"""How much time a call has: its operation's, less if its caller or the call around it allows less."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import Future
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.fleet import Answering

from llmkg_otel.call import remaining_time
from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, RetryConfig
from llmkg_otel.errors import (
    CircuitOpenError,
    EngineCancelledError,
    InvalidInputError,
    OperationTimeoutError,
)
from llmkg_otel.recovery.fleet import Permission
from llmkg_otel.recovery.patience import Usual, patience_seconds
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]

ONE_FAILURE = CircuitBreakerConfig(failure_threshold=1)


async def forever() -> None:
    await asyncio.Event().wait()


async def left() -> float:
    seconds = remaining_time()
    assert seconds is not None
    return seconds


@pytest.mark.parametrize(("allowed", "most"), [(None, 30), (5, 5), (1000, 30)])
async def test_a_caller_can_allow_less_time_and_not_more(
    allowed: float | None, most: float, system: ProductionSystem
) -> None:
    seconds = await system.execute_protected_operation("op", left, timeout_seconds=allowed)
    assert most - 1 < seconds <= most
    in_a_thread = system.execute_protected_operation_sync("op", remaining_time, timeout_seconds=allowed)
    assert in_a_thread is not None
    assert most - 1 < in_a_thread <= most


@pytest.mark.parametrize("allowed", [0, -1, math.nan, math.inf])
async def test_no_time_at_all_is_the_callers_mistake(allowed: float, system: ProductionSystem) -> None:
    with pytest.raises(InvalidInputError, match="timeout"):
        await system.execute_protected_operation("op", left, timeout_seconds=allowed)


async def test_an_impatient_caller_closes_the_door_to_nobody_else(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE)
    for _ in range(3):
        with pytest.raises(OperationTimeoutError) as caught:
            await system.execute_protected_operation("op", forever, timeout_seconds=0.01)
        assert (caught.value.kind, caught.value.seconds) == ("deadline", 0.01)
    assert system.circuit_breaker("op").state == "closed"


async def test_neither_does_the_deadline_of_a_call_around_it(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE, operations={"outer": OperationConfig(timeout=0.02)})

    async def outer() -> None:
        await system.execute_protected_operation("inner", forever)

    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("outer", outer)
    assert system.circuit_breaker("inner").state == "closed"
    assert system.circuit_breaker("outer").state == "open"


async def test_an_operation_that_misses_its_own_deadline_fails(make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE, operations={"op": OperationConfig(timeout=0.02)})
    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", forever)
    assert system.circuit_breaker("op").state == "open"


async def test_a_sync_operation_that_ignores_its_limit_is_reported(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    quick = OperationConfig(circuit_breaker=CircuitBreakerConfig(timeout=0.01))
    system = make_system(operations={"op": quick})
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> str:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()
        return "late"

    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", slow)
    (op,) = system.operations
    assert len(op.abandoned) == 1
    assert next(iter(telemetry.metric("llmkg.operation.abandoned").values())) == 1
    (record,) = [each for each in telemetry.logs() if "still ran" in str(each.log_record.body)]
    assert record.log_record.event_name == "llmkg.operation.time_limit_ignored"
    (thread,) = op.abandoned
    released.set()
    await asyncio.wrap_future(thread)
    assert next(iter(telemetry.metric("llmkg.operation.abandoned").values())) == 0


def limits_ignored(telemetry: CapturedTelemetry) -> list[object]:
    """Return whether the operation had returned, of each report that a limit was ignored."""
    name = "llmkg.operation.time_limit_ignored"
    records = [each.log_record for each in telemetry.logs() if each.log_record.event_name == name]
    return [(record.attributes or {})["returned"] for record in records]


SHORT: list[dict[str, Any]] = [{"circuit_breaker": CircuitBreakerConfig(timeout=0.1)}, {"timeout": 0.1}]


@pytest.mark.parametrize("limit", SHORT)
async def test_an_operation_that_swallows_its_cancellation_and_returns_is_reported(
    limit: dict[str, Any], make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(operations={"op": OperationConfig(retry=RetryConfig(max_retries=0), **limit)})

    async def stubborn() -> str:
        with suppress(asyncio.CancelledError):
            await forever()
        return "late"

    assert await system.execute_protected_operation("op", stubborn) == "late"
    assert limits_ignored(telemetry) == [True]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("grace", [0.0, 1.0])
@pytest.mark.parametrize("limit", SHORT)
async def test_one_that_raises_an_error_of_its_own_is_reported_only_if_that_took_long(
    limit: dict[str, Any],
    grace: float,
    make_system: MakeSystem,
    telemetry: CapturedTelemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmkg_otel.attempt.GRACE_SECONDS", grace)
    system = make_system(operations={"op": OperationConfig(retry=RetryConfig(max_retries=0), **limit)})

    async def converting() -> str:
        with suppress(asyncio.CancelledError):
            await forever()
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await system.execute_protected_operation("op", converting)
    assert limits_ignored(telemetry) == ([] if grace else [True])


async def test_an_operation_that_goes_on_after_its_cancellation_is_reported_while_it_does(
    make_system: MakeSystem, telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkg_otel._watch.GRACE_SECONDS", 0.001)
    system = make_system(operations={"op": OperationConfig(timeout=0.01)})

    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await forever()
        while not limits_ignored(telemetry):  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)

    await system.execute_protected_operation("op", stubborn)
    assert limits_ignored(telemetry) == [False, True]


async def test_an_operation_that_heeds_its_cancellation_is_not_reported(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(operations={"op": OperationConfig(timeout=0.01)})
    with pytest.raises(OperationTimeoutError):
        await system.execute_protected_operation("op", forever)
    assert limits_ignored(telemetry) == []


async def test_an_engine_that_makes_its_own_error_of_a_hurried_callers_cancellation_has_not_failed(
    make_system: MakeSystem,
) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE)

    async def translates() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise ConnectionError("cancelled") from None

    with pytest.raises(ConnectionError):
        await system.execute_protected_operation("op", translates, timeout_seconds=0.001)
    assert system.circuit_breaker("op").state == "closed"


class Callers:
    """Callers of one operation who allow less than an attempt may take (10 s)."""

    def __init__(self, system: ProductionSystem) -> None:
        self.system = system
        self.breaker = system.circuit_breaker("op")

    def succeed(self, seconds: float) -> None:
        self.breaker._circuit.usual.note(seconds, 0.0)

    async def give_up(self, seconds: float, times: int) -> None:
        for _ in range(times):
            with suppress(OperationTimeoutError, CircuitOpenError):
                await self.system.execute_protected_operation("op", forever, timeout_seconds=seconds)


@pytest.fixture
def callers(make_system: MakeSystem) -> Callers:
    return Callers(make_system(retry=RetryConfig(max_retries=0)))


async def test_a_dead_engine_whose_callers_all_allow_less_than_an_attempt_opens_its_circuit(
    callers: Callers,
) -> None:
    callers.succeed(0.02)
    await callers.give_up(0.2, times=5)
    assert callers.breaker.state == "open"


async def test_so_does_one_that_has_been_dead_since_the_start(make_system: MakeSystem) -> None:
    short = CircuitBreakerConfig(timeout=0.6)
    callers = Callers(make_system(circuit_breaker=short, retry=RetryConfig(max_retries=0)))
    await callers.give_up(0.2, times=5)
    assert callers.breaker.state == "open"


@pytest.mark.parametrize("usual", [None, 0.0001, 0.02, 1.0])
async def test_a_rude_caller_opens_the_circuit_for_nobody(usual: float | None, callers: Callers) -> None:
    if usual is not None:
        callers.succeed(usual)
    await callers.give_up(0.001, times=20)
    assert callers.breaker.state == "closed"
    assert callers.breaker.calls["ignored"] > 0
    assert callers.breaker.calls["failure"] == 0


@pytest.mark.parametrize(
    ("usual", "allowed", "seconds"),
    [(None, 10, 1), (1, 10, 3), (3, 10, 5), (0.001, 10, 0.05), (None, 0.02, 0.01), (1, 0.02, 0.01)],
)
def test_patience_is_three_times_the_usual_but_at_most_half_of_what_is_allowed(
    usual: float | None, allowed: float, seconds: float
) -> None:
    assert patience_seconds(usual, allowed) == pytest.approx(seconds)


def test_the_usual_time_is_learned_from_a_success_a_second_and_one_outlier_is_not_usual() -> None:
    assert Usual().seconds is None
    usual = Usual()
    usual.note(math.inf, 0.0)
    for second in range(100):
        usual.note(9.0 if second == 90 else 0.1, float(second))
        usual.note(5.0, second + 0.5)
    assert usual.seconds == 0.1
    for second in range(100, 103):
        usual.note(2.0, float(second))
    assert usual.seconds == 2.0


async def test_successes_of_calls_are_what_is_learned_from(system: ProductionSystem) -> None:
    async def operation() -> None:
        await asyncio.sleep(0.02)

    await system.execute_protected_operation("op", operation)
    usual = system.circuit_breaker("op")._circuit.usual.seconds
    assert usual is not None
    assert 0.02 <= usual < 2


async def test_an_operation_that_was_cancelled_from_within_has_failed_and_its_caller_goes_on(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(circuit_breaker=ONE_FAILURE)

    async def cancels_itself() -> None:
        inner = asyncio.ensure_future(forever())
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    with pytest.raises(EngineCancelledError, match="nobody had cancelled its caller") as caught:
        await asyncio.create_task(system.execute_protected_operation("op", cancels_itself))
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert caught.value.to_dict()["code"] == "engine_cancelled"
    assert system.circuit_breaker("op").state == "open"
    (attributes,) = telemetry.metric("llmkg.operation.duration")
    assert dict(attributes)["error.type"] == "engine_cancelled"


@pytest.mark.parametrize(("idempotent", "attempts"), [(False, 1), (True, 3)])
async def test_it_is_tried_again_only_if_that_is_harmless(
    idempotent: bool, attempts: int, make_system: MakeSystem
) -> None:
    system = make_system(operations={"op": OperationConfig(idempotent=idempotent)})
    reached: list[None] = []

    def operation() -> None:
        reached.append(None)
        raise asyncio.CancelledError

    with pytest.raises(EngineCancelledError):
        await system.execute_protected_operation("op", operation)
    assert len(reached) == attempts
    with pytest.raises(EngineCancelledError):
        system.execute_protected_operation_sync("op", operation)


async def test_a_rung_that_is_cancelled_from_within_gives_way_to_the_next(system: ProductionSystem) -> None:
    def fails() -> str:
        raise ConnectionError

    def cancelled() -> str:
        raise asyncio.CancelledError

    ladder = {"one": cancelled, "two": lambda: "of yesterday"}
    assert await system.execute_protected_operation("op", fails, fallbacks=ladder) == "of yesterday"
    assert system.execute_protected_operation_sync("op", fails, fallbacks=ladder) == "of yesterday"


class Asking:
    """A system whose circuit is about to ask the fleet for a probe, and a call with 15 ms of time."""

    def __init__(self, make_system: MakeSystem, fleet: Answering, *, sync: bool) -> None:
        breaker = CircuitBreakerConfig(failure_threshold=1, recovery_timeout=0.001)
        self.system = make_system(circuit_breaker=breaker, retry=RetryConfig(max_retries=0))
        self.sync, self.entered = sync, 0
        with suppress(ConnectionRefusedError):
            self.system.execute_protected_operation_sync("op", self.operation)
        self.system.circuit_breaker("op").fleet = fleet

    def operation(self) -> None:
        self.entered += 1
        raise ConnectionRefusedError

    async def call(self) -> None:
        await asyncio.sleep(0.002)  # then the circuit's recovery_timeout is over
        if self.sync:
            self.system.execute_protected_operation_sync("op", self.operation, timeout_seconds=0.015)
        else:
            await self.system.execute_protected_operation("op", self.operation, timeout_seconds=0.015)


@pytest.mark.parametrize("sync", [False, True])
async def test_a_call_asks_for_a_probe_no_longer_than_it_has_time(
    make_system: MakeSystem, *, sync: bool
) -> None:
    answer: Future[Permission | None] = Future()
    asking = Asking(make_system, Answering(answer), sync=sync)
    with pytest.raises(CircuitOpenError):
        await asking.call()
    assert answer.cancelled()
    assert asking.entered == 1


@pytest.mark.parametrize("sync", [False, True])
async def test_a_probe_that_comes_when_the_time_is_over_is_given_back_and_not_sent(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch, *, sync: bool
) -> None:
    def let_time_pass() -> None:
        clock = SimpleNamespace(monotonic=FakeClock(time.monotonic() + 1))
        monkeypatch.setattr("llmkg_otel.attempt.time", clock)

    answer: Future[Permission | None] = Future()
    answer.set_result(Permission(7))
    fleet = Answering(answer, let_time_pass)
    asking = Asking(make_system, fleet, sync=sync)
    with pytest.raises(OperationTimeoutError, match="total deadline"):
        await asking.call()
    assert (asking.entered, fleet.given_back) == (1, [7])
