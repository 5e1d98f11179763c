"""What answers when the engine cannot, and who is told of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import everything_given_back, exits

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, ResourceLimits, RetryConfig
from llmkg_otel.errors import (
    CircuitOpenError,
    ConfigurationError,
    InvalidInputError,
    OperationTimeoutError,
    RejectedError,
    ShuttingDownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]

DOWN = exits(ConnectionError("down"))


async def called(
    system: ProductionSystem, way: str, step: Callable[[], Any], ladder: Mapping[str, Any]
) -> Any:
    if way == "in the calling thread":
        return system.execute_protected_operation_sync("ask", step, fallbacks=ladder)
    if way == "in a thread":
        return await system.execute_protected_operation("ask", step, fallbacks=ladder)

    async def operation() -> Any:
        return step()

    return await system.execute_protected_operation("ask", operation, fallbacks=ladder)


ways = pytest.mark.parametrize("way", ["async", "in a thread", "in the calling thread"])


@ways
async def test_the_first_rung_that_works_answers_and_is_told(
    way: str, system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    ladder = {"full_text": DOWN, "cached": lambda: "of yesterday", "never": lambda: "not asked"}
    with everything_given_back(system):
        assert await called(system, way, DOWN, ladder) == "of yesterday"
    (attributes,) = telemetry.metric("llmkg.operation.duration")
    assert dict(attributes) == {"llmkg.operation.name": "ask", "llmkg.fallback.name": "cached"}
    (span,) = telemetry.spans("ask")
    told = span.attributes or {}
    assert (told["llmkg.fallback.name"], told["llmkg.fallback.reason"]) == ("cached", "ConnectionError")
    assert span.status.status_code.name == "UNSET"
    status = await system.get_system_status()
    assert status["error_recovery"]["ask"]["answered_by_fallback"] == {"cached": 1}
    assert status["error_recovery"]["ask"]["success_rate"] == 1


@ways
async def test_an_engine_that_answers_needs_no_rung(way: str, system: ProductionSystem) -> None:
    assert await called(system, way, lambda: "fresh", {"cached": lambda: "stale"}) == "fresh"


@ways
async def test_when_every_rung_fails_the_engines_own_failure_comes_out(
    way: str, system: ProductionSystem
) -> None:
    failure = ConnectionError("down")
    with everything_given_back(system), pytest.raises(ConnectionError) as caught:
        await called(system, way, exits(failure), {"cached": exits(LookupError())})
    assert caught.value is failure


@ways
async def test_an_open_circuit_is_answered_without_touching_the_engine(
    way: str, system: ProductionSystem
) -> None:
    system.circuit_breaker("ask").force_open()
    reached: list[None] = []
    answer = await called(system, way, lambda: reached.append(None), {"cached": lambda: "of yesterday"})
    assert (answer, reached) == ("of yesterday", [])
    with pytest.raises(CircuitOpenError):
        await called(system, way, lambda: reached.append(None), {"cached": exits(LookupError())})


@ways
@pytest.mark.parametrize("why", [InvalidInputError, ShuttingDownError])
async def test_callers_mistakes_and_refusals_are_not_answered_for(
    way: str, why: type[Exception], system: ProductionSystem
) -> None:
    step = exits(InvalidInputError("wrong"))
    if why is ShuttingDownError:
        system.calls.stop_accepting()
    with pytest.raises(why):
        await called(system, way, step, {"cached": lambda: "of yesterday"})


async def test_a_call_refused_by_a_limit_is_not_answered_for(make_system: MakeSystem) -> None:
    limits = ResourceLimits(max_queue_wait_seconds=0.01)
    system = make_system(operations={"ask": OperationConfig(max_concurrent=1)}, resources=limits)
    system.operations.named("ask").pools[0].try_acquire()
    with pytest.raises(RejectedError):
        await called(system, "async", lambda: "fresh", {"cached": lambda: "of yesterday"})


async def test_rungs_come_after_the_retries(system: ProductionSystem) -> None:
    seen: Counter[str] = Counter()

    def step() -> Any:
        seen["engine"] += 1
        raise ConnectionError

    await called(system, "async", step, {"cached": lambda: seen.update(["cached"])})
    assert seen == {"engine": 3, "cached": 1}


async def test_a_rung_has_the_time_of_an_attempt_and_no_more_than_is_left(make_system: MakeSystem) -> None:
    quick = OperationConfig(
        timeout=0.2, circuit_breaker=CircuitBreakerConfig(timeout=0.02), retry=RetryConfig(max_retries=0)
    )
    system = make_system(operations={"ask": quick})

    async def forever() -> str:
        await asyncio.Event().wait()
        return "never"

    async def cached() -> str:
        return "of yesterday"

    run = system.execute_protected_operation
    with everything_given_back(system):
        assert await run("ask", forever, fallbacks={"cached": cached}) == "of yesterday"
        assert await run("ask", forever, fallbacks={"slow": forever, "cached": cached}) == "of yesterday"
        with pytest.raises(OperationTimeoutError) as caught:
            await run("ask", forever, fallbacks={"slow": forever, "slower": forever})
    assert caught.value.kind == "attempt"


async def test_cancelling_a_call_in_its_ladder_ends_it(system: ProductionSystem) -> None:
    entered = asyncio.Event()

    async def slow() -> None:
        entered.set()
        await asyncio.Event().wait()

    with everything_given_back(system):
        call = asyncio.create_task(called(system, "async", DOWN, {"slow": slow, "cached": lambda: None}))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_decorated_functions_give_their_arguments_to_the_rungs(system: ProductionSystem) -> None:
    async def ask_text(question: str, *, limit: int = 3) -> list[str]:
        return [question] * limit

    @system.protected("ask", fallbacks={"full_text": ask_text})
    async def ask(question: str, *, limit: int = 3) -> list[str]:
        raise ConnectionError

    @system.protected("ask_sync", fallbacks={"full_text": lambda question: question.upper()})
    def ask_sync(question: str) -> str:
        raise ConnectionError

    assert await ask("why?", limit=2) == ["why?", "why?"]
    assert ask_sync("why?") == "WHY?"


async def never_awaited(*_: Any) -> Any:
    """Never awaited."""


def test_an_async_rung_under_a_sync_operation_is_refused_before_its_need(
    system: ProductionSystem,
) -> None:
    with pytest.raises(InvalidInputError, match="fallback cached is async"):
        system.execute_protected_operation_sync("ask", lambda: "fresh", fallbacks={"cached": never_awaited})
    with pytest.raises(ConfigurationError, match="fallback cached is async"):
        system.protected("ask", fallbacks={"cached": never_awaited})(lambda question: question)


def test_a_ladder_that_would_have_no_effect_is_refused(make_system: MakeSystem) -> None:
    ladder = OperationConfig(fallbacks=("full_text",))
    system = make_system(operations={"ask_question": ladder})
    system.configure_operation("ask_question", OperationConfig(timeout=1))
    system.configure_operation("ask_question", ladder)
    with pytest.raises(ConfigurationError, match=r"operations\.ask_question\.fallbacks = \(\): is read at"):
        system.configure_operation("ask_question", OperationConfig(fallbacks=()))


async def test_rungs_past_the_bound_make_no_series_of_their_own(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    for number in range(60):
        await called(system, "async", DOWN, {f"rung_{number}": lambda: None})
        system.circuit_breaker("ask").force_close()
    names = {dict(key)["llmkg.fallback.name"] for key in telemetry.metric("llmkg.operation.duration")}
    assert len(names) == 51
    assert "_OTHER" in names
