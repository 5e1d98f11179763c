"""Calls that are refused, and what code inside a call that was let in can rely on."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import get_current_span
from support.calls import (
    PATHS,
    SIMPLE,
    assert_told_once,
    asynchronous,
    everything_given_back,
    exits,
    failing_first,
    in_the_calling_thread,
    nested,
    nested_sync,
    retried,
    retried_sync,
)

from llmkg_otel.call import current_call, remaining_time
from llmkg_otel.config import (
    CircuitBreakerConfig,
    OperationConfig,
    RateLimitConfig,
    RateLimitRule,
    ResourceLimits,
)
from llmkg_otel.errors import InvalidInputError, RejectedError
from llmkg_otel.limiting.resources import ResourceUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]

REFUSALS: dict[str, Callable[[ProductionSystem], object]] = {
    "rate_limited": lambda system: system.operations.named("op").levels.anonymous.limiters[1].take(1e9),
    "resource_exhausted": lambda system: system.resources.observe(ResourceUsage(memory=1e15)),
    "permit_timeout": lambda system: system.operations.named("op").pools[0].try_acquire(),
    "circuit_open": lambda system: system.operations.named("op").breaker.force_open(),
    "draining": lambda system: system.calls.stop_accepting(),
}


@pytest.mark.parametrize("reason", REFUSALS)
@pytest.mark.parametrize("path", SIMPLE)
async def test_a_refused_call_never_reaches_the_engine(
    path: Path, reason: str, make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    once_an_hour = RateLimitRule(requests_per_second=1 / 3600, burst_capacity=1)
    system = make_system(
        operations={"op": OperationConfig(rate_limit=once_an_hour, max_concurrent=1)},
        resources=ResourceLimits(max_queue_wait_seconds=0.01),
    )
    REFUSALS[reason](system)
    usage = [pool.usage for pool in system.operations.pools()]
    reached: list[None] = []
    with pytest.raises(RejectedError) as refused:
        await path(system, lambda: reached.append(None))
    assert (refused.value.reason, refused.value.operation, reached) == (reason, "op", [])
    assert [pool.usage for pool in system.operations.pools()] == usage
    assert (len(system.calls), current_call()) == (0, None)
    assert_told_once(system, telemetry, reason)


@pytest.mark.parametrize("path", [nested, nested_sync])
async def test_a_refusal_inside_a_call_ends_both(
    path: Path, make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    once_an_hour = RateLimitRule(requests_per_second=1 / 3600, burst_capacity=1)
    system = make_system(operations={"op": OperationConfig(rate_limit=once_an_hour, max_concurrent=1)})
    REFUSALS["rate_limited"](system)
    with everything_given_back(system), pytest.raises(RejectedError) as refused:
        await path(system, lambda: None)
    assert (refused.value.operation, refused.value.scope) == ("op", "operation")
    assert_told_once(system, telemetry, "rate_limited")


@pytest.mark.parametrize("path", [nested, nested_sync, retried, retried_sync])
async def test_a_chain_of_calls_is_admitted_once(path: Path, make_system: MakeSystem) -> None:
    once = RateLimitRule(requests_per_second=1 / 3600, burst_capacity=1)
    limits = RateLimitConfig(burst_capacity=1, requests_per_second=1 / 3600, per_user=once)
    system = make_system(rate_limiting=limits)
    assert await path(system, lambda: "answer") == "answer"
    assert system.rate_limits.decisions["global", "acquired"] == 1
    with pytest.raises(RejectedError):
        await path(system, lambda: "answer")


async def test_memory_that_runs_out_within_a_call_refuses_no_call_inside_it(system: ProductionSystem) -> None:
    async def outer() -> str:
        REFUSALS["resource_exhausted"](system)
        return await system.execute_protected_operation("op", lambda: "answer")

    assert await system.execute_protected_operation("outer", outer) == "answer"


@pytest.mark.parametrize("path", [asynchronous, in_the_calling_thread])
async def test_a_circuit_that_opens_between_two_attempts_leaves_the_engines_own_error(
    path: Path, make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    raised = ConnectionError("reached")
    with pytest.raises(ConnectionError) as caught:
        await path(system, exits(raised))
    assert caught.value is raised
    assert_told_once(system, telemetry, "ConnectionError")


@pytest.mark.parametrize("path", [nested, nested_sync])
async def test_of_nested_calls_only_the_outermost_retries(path: Path, system: ProductionSystem) -> None:
    reached: list[None] = []

    def fails() -> None:
        reached.append(None)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await path(system, fails)
    assert len(reached) == 3
    retries = {op.name: dict(op.retry.calls) for op in system.operations}
    assert retries == {"outer": {"exhausted": 1}, "op": {"not_retryable": 3}}


@pytest.mark.parametrize("path", [asynchronous, in_the_calling_thread])
async def test_the_callers_mistake_is_not_retried_in_a_later_attempt_either(
    path: Path, system: ProductionSystem
) -> None:
    results: Iterator[Exception] = iter([ConnectionError(), InvalidInputError(), KeyError(), KeyError()])
    system.blame_caller_for(KeyError)

    def step() -> Any:
        raise next(results)

    with pytest.raises(InvalidInputError):
        await path(system, step)
    with pytest.raises(KeyError):
        await path(system, failing_first(step))
    (op,) = system.operations
    assert len(list(results)) == 1
    assert dict(op.retry.calls) == {"not_retryable": 2}
    assert op.breaker.calls["failure"] == 2


@pytest.mark.parametrize("path", PATHS)
async def test_code_inside_a_call_knows_its_call_its_span_and_its_time(
    path: Path, make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(operations={"op": OperationConfig(timeout=7, max_concurrent=1)})
    seen: list[tuple[str, int, float]] = []

    def step() -> None:
        call, left = current_call(), remaining_time()
        assert call is not None
        assert left is not None
        seen.append((call.operation, get_current_span().get_span_context().span_id, left))

    await path(system, step)
    ((operation, span_id, left),) = seen
    spans = telemetry.spans("llmkg.attempt") or telemetry.spans("op")
    assert (operation, [span.context.span_id for span in spans if span.context]) == ("op", [span_id])
    assert 0 < left <= (30 if path.__name__.startswith("retried") else 7)
    assert remaining_time() is None


@pytest.mark.parametrize(("outer", "inner", "expected"), [(5, 20, 5), (20, 5, 5)])
async def test_a_nested_call_has_the_smaller_deadline_and_the_same_user_and_correlation_id(
    outer: float, inner: float, expected: float, make_system: MakeSystem
) -> None:
    deadlines = {"outer": OperationConfig(timeout=outer), "op": OperationConfig(timeout=inner)}
    system = make_system(operations=deadlines)

    async def innermost() -> tuple[float | None, str | None, str | None]:
        call = current_call()
        assert call is not None
        return remaining_time(), call.user_id, call.correlation_id

    async def enclosing() -> tuple[float | None, str | None, str | None]:
        return await system.execute_protected_operation("op", innermost)

    left, user, correlation = await system.execute_protected_operation(
        "outer", enclosing, user_id="ann", correlation_id="correlated-1"
    )
    assert left == pytest.approx(expected, abs=0.5)
    assert (user, correlation) == ("ann", "correlated-1")


async def test_waiting_for_a_slow_call_with_a_time_of_ones_own_returns_then(system: ProductionSystem) -> None:
    loop = asyncio.get_running_loop()
    never = asyncio.Event()
    began = loop.time()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(system.execute_protected_operation("op", never.wait), 0.1)
    assert loop.time() - began < 2
    assert len(system.calls) == 0


@pytest.mark.parametrize("path", ["tasks", "threads"])
async def test_fifty_calls_are_in_the_engine_at_the_same_time(path: str, system: ProductionSystem) -> None:
    together = 50
    tasks_met, threads_met = asyncio.Barrier(together), threading.Barrier(together, timeout=20)
    meet: Callable[[], Any] = tasks_met.wait if path == "tasks" else threads_met.wait
    places = await asyncio.gather(*(system.execute_protected_operation("op", meet) for _ in range(together)))
    assert sorted(places) == list(range(together))
