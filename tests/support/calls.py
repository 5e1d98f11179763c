"""Every way into a protected call, and what must be true when it is over."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context

from llmkg_otel.call import current_call
from llmkg_otel.config import OperationConfig, RetryConfig
from llmkg_otel.testing import CapturedTelemetry, attributes_key

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from llmkg_otel.system import ProductionSystem

    Step = Callable[[], Any]
    Path = Callable[[ProductionSystem, Step], Coroutine[Any, Any, Any]]

ONCE_MORE = OperationConfig(
    retry=RetryConfig(max_retries=1, base_delay_ms=0, max_delay_ms=0), max_concurrent=1
)


async def asynchronous(system: ProductionSystem, step: Step) -> Any:
    async def operation() -> Any:
        return step()

    return await system.execute_protected_operation("op", operation)


async def in_a_thread(system: ProductionSystem, step: Step) -> Any:
    return await system.execute_protected_operation("op", step)


async def in_the_calling_thread(system: ProductionSystem, step: Step) -> Any:
    return system.execute_protected_operation_sync("op", step)


async def decorated(system: ProductionSystem, step: Step) -> Any:
    @system.protected("op")
    async def operation() -> Any:
        return step()

    return await operation()


async def decorated_sync(system: ProductionSystem, step: Step) -> Any:
    return system.protected("op")(step)()


async def nested(system: ProductionSystem, step: Step) -> Any:
    async def outer() -> Any:
        return await asynchronous(system, step)

    return await system.execute_protected_operation("outer", outer)


async def nested_sync(system: ProductionSystem, step: Step) -> Any:
    inner = system.protected("op")(step)
    return system.execute_protected_operation_sync("outer", inner)


async def enriching(system: ProductionSystem, step: Step) -> Any:
    async def operation() -> Any:
        return step()

    tracer = system.telemetry.tracer()
    with tracer.start_as_current_span("op", record_exception=False, set_status_on_exception=False):
        return await system.execute_protected_operation("op", operation, enrich_current_span=True)


def failing_first(step: Step) -> Step:
    attempts = count()

    def operation() -> Any:
        if next(attempts) == 0:
            raise ConnectionError
        return step()

    return operation


async def retried(system: ProductionSystem, step: Step) -> Any:
    system.configure_operation("op", ONCE_MORE)
    return await asynchronous(system, failing_first(step))


async def retried_sync(system: ProductionSystem, step: Step) -> Any:
    system.configure_operation("op", ONCE_MORE)
    return await in_the_calling_thread(system, failing_first(step))


SIMPLE: list[Path] = [asynchronous, in_a_thread, in_the_calling_thread, decorated, decorated_sync, enriching]
PATHS: list[Path] = [*SIMPLE, nested, nested_sync, retried, retried_sync]


@contextmanager
def everything_given_back(system: ProductionSystem) -> Iterator[None]:
    context = otel_context.get_current()
    yield
    assert otel_context.get_current() is context
    assert current_call() is None
    assert len(system.calls) == 0
    assert {(pool.usage, pool.pending) for pool in system.operations.pools()} == {(0, 0)}
    assert system.retry_budget.usage == 0
    for op in system.operations:
        op.breaker.admit_sync()  # refused if the probe was not returned


def assert_told_once(system: ProductionSystem, telemetry: CapturedTelemetry, error: str | None) -> None:
    """Hold every operation that ran to one ended span and one duration, of the same outcome."""
    failure = {} if error is None else {"error.type": error}
    names = {op.name for op in system.operations}
    durations = telemetry.metric("llmkg.operation.duration")
    expected = {attributes_key({"llmkg.operation.name": name, **failure}): 1 for name in names}
    assert {key: value[0] for key, value in durations.items() if isinstance(value, tuple)} == expected
    for name in names:
        (span,) = telemetry.spans(name)
        assert span.status.status_code.name == ("UNSET" if error is None else "ERROR")
        assert (span.attributes or {}).get("error.type") == error
        assert "exception" not in {event.name for event in span.events}  # it may quote the caller's data


def exits(error: BaseException) -> Step:
    def step() -> Any:
        raise error

    return step


def join_operations() -> None:
    """Wait for the threads of sync operations that calls have left behind."""
    for thread in threading.enumerate():
        if thread.name == "llmkg-operation":
            thread.join()
