"""Failures that come several at once (TaskGroup), or wrapped: whose they are, and whether to try again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import SIMPLE, exits

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, RetryConfig
from llmkg_otel.errors import InvalidInputError
from llmkg_otel.recovery.failures import is_retryable, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from support.calls import Path

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

MISTAKE = InvalidInputError("wrong")
DOWN = ConnectionRefusedError("down")
LATE = TimeoutError("late")


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("in tasks", errors)


def caused(by: BaseException | None) -> Exception:
    error = RuntimeError("the model failed")
    error.__cause__ = by
    return error


def circular() -> Exception:
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    return first


def during(handled: BaseException) -> Exception:
    """Return an error as requests raises it: while it handled another one, and not from it."""
    error = OSError("aborted")
    error.__context__ = handled
    return error


def as_one(cause: BaseException) -> Exception:
    both = group(DOWN)
    both.__cause__ = cause
    return both


class RemoteProtocolError(Exception):
    """What httpx raises."""


ONCE = [
    group(MISTAKE),
    group(DOWN, group(MISTAKE)),
    group(DOWN, LATE),
    group(caused(LATE)),
    caused(LATE),
    caused(caused(group(DOWN, LATE))),
    ConnectionResetError("it had the request"),
    caused(BrokenPipeError()),
    during(ConnectionResetError()),
    during(asyncio.IncompleteReadError(b"", 4)),
    RemoteProtocolError("disconnected"),
    as_one(LATE),
]
AGAIN = [group(DOWN), group(DOWN, group(OSError())), caused(DOWN), caused(None), circular()]


@pytest.mark.parametrize("error", ONCE, ids=repr)
def test_what_may_have_been_done_or_is_the_callers_is_not_repeated(error: Exception) -> None:
    assert not is_retryable(error, idempotent=False)


@pytest.mark.parametrize("error", AGAIN, ids=repr)
def test_what_failed_for_the_engines_sake_is_repeated(error: Exception) -> None:
    assert is_retryable(error, idempotent=False)


@pytest.mark.parametrize("error", ONCE[2:], ids=repr)
def test_what_may_have_been_done_is_repeated_where_twice_is_as_good_as_once(error: Exception) -> None:
    assert is_retryable(error, idempotent=True)


@pytest.mark.parametrize("path", SIMPLE)
async def test_mistakes_in_tasks_open_no_circuit(path: Path, make_system: MakeSystem) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    with pytest.raises(ExceptionGroup):
        await path(system, exits(group(MISTAKE, group(MISTAKE))))
    (op,) = system.operations
    assert (op.breaker.state, op.breaker.calls["ignored"], op.retry.calls) == (
        "closed",
        1,
        {"not_retryable": 1},
    )


@pytest.mark.parametrize("path", SIMPLE)
async def test_one_failure_of_the_engine_among_mistakes_is_the_engines_and_is_not_repeated(
    path: Path, make_system: MakeSystem
) -> None:
    system = make_system(circuit_breaker=CircuitBreakerConfig(failure_threshold=1))
    with pytest.raises(ExceptionGroup):
        await path(system, exits(group(MISTAKE, DOWN)))
    (op,) = system.operations
    assert (op.breaker.state, op.breaker.calls["failure"]) == ("open", 1)


async def test_a_task_group_that_fails_on_the_engine_alone_is_asked_again(make_system: MakeSystem) -> None:
    system, entered = make_system(), 0

    async def fails() -> None:
        nonlocal entered
        entered += 1
        raise ConnectionRefusedError

    async def operation() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())

    with pytest.raises(ExceptionGroup):
        await system.execute_protected_operation("op", operation)
    assert entered == 3


@pytest.mark.parametrize(
    ("errors", "retries", "failures"),
    [
        ((KeyError(),), 0, 0),
        ((KeyError(), DOWN), 0, 1),
        ((DOWN, OSError()), 2, 3),
        ((DOWN, ValueError()), 0, 1),
    ],
    ids=str,
)
async def test_classes_in_the_configuration_are_looked_for_in_groups(
    make_system: MakeSystem, errors: tuple[Exception, ...], retries: int, failures: int
) -> None:
    """All have to be retryable, none excluded from retries, and all excluded to leave the circuit alone."""
    system = make_system()
    breaker = CircuitBreakerConfig(excluded_exceptions=(KeyError,))
    retry = RetryConfig(
        max_retries=2,
        base_delay_ms=0,
        max_delay_ms=0,
        retryable_exceptions=(OSError, KeyError),
        excluded_exceptions=(KeyError,),
    )
    system.configure_operation("op", OperationConfig(circuit_breaker=breaker, retry=retry))
    entered = 0

    async def operation() -> None:
        nonlocal entered
        entered += 1
        raise group(*errors)

    with pytest.raises(ExceptionGroup):
        await system.execute_protected_operation("op", operation)
    (op,) = system.operations
    assert (entered - 1, op.breaker.calls["failure"]) == (retries, failures)


class AskingError(Exception):
    def __init__(self, after: object) -> None:
        self.retry_after = after


def test_of_several_wishes_the_longest_is_heard() -> None:
    error = group(AskingError(1), group(AskingError(timedelta(seconds=3)), DOWN), AskingError("soon"))
    assert retry_after_seconds(error) == 3


async def test_a_group_raised_by_the_engine_comes_out_as_itself(system: ProductionSystem) -> None:
    raised = group(DOWN)

    async def operation() -> None:
        raise raised

    with pytest.raises(ExceptionGroup) as caught:
        await system.execute_protected_operation("op", operation)
    assert caught.value is raised


async def times_out() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.Event().wait()


async def waits_in_vain() -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 0.001)


async def refuses() -> None:
    raise ConnectionRefusedError


@pytest.mark.parametrize("child", [times_out, waits_in_vain, refuses], ids=lambda child: child.__name__)
@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_child_that_times_out_is_no_cancellation_of_the_call(
    make_system: MakeSystem, child: Callable[[], Coroutine[None, None, None]], *, wrapped: bool
) -> None:
    """Before Python 3.13 a TaskGroup leaves its own cancellation on its task's count."""
    system, entered = make_system(), 0
    system.configure_operation("op", OperationConfig(idempotent=True))

    async def operation() -> str:
        nonlocal entered
        entered += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child())
        except ExceptionGroup as failed:
            if wrapped:
                raise LookupError from failed
            raise
        return "never"

    async def rung() -> str:
        return "rung"

    assert await system.execute_protected_operation("op", operation, fallbacks={"rung": rung}) == "rung"
    (op,) = system.operations
    assert (entered, op.breaker.calls["failure"], op.retry.calls) == (3, 3, {"exhausted": 1})
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


class Hidden:
    """An engine that makes an error of its own of a cancellation, in one way or another."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.entered = asyncio.Event()
        self.calls = 0

    async def child(self) -> None:
        try:
            self.entered.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise LookupError from None

    async def __call__(self) -> None:
        self.calls += 1
        if self.way == "in a task":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.child())
        elif self.way == "without a trace":
            with suppress(asyncio.CancelledError, LookupError):
                await self.child()
            raise RuntimeError
        else:
            await self.child()


@pytest.mark.parametrize("way", ["in a task", "without a trace", "at once"])
@pytest.mark.parametrize("rung", [False, True])
async def test_a_cancellation_that_became_an_error_is_still_one(
    system: ProductionSystem, way: str, *, rung: bool
) -> None:
    engine = Hidden(way)
    system.configure_operation("op", OperationConfig(idempotent=True))
    fallbacks: Any = {"first": engine, "second": refuses} if rung else {"first": refuses}
    call = asyncio.create_task(
        system.execute_protected_operation("op", refuses if rung else engine, fallbacks=fallbacks)
    )
    await engine.entered.wait()
    call.cancel()
    with pytest.raises((LookupError, RuntimeError, ExceptionGroup)):
        await call
    assert engine.calls == 1
    (op,) = system.operations
    assert op.breaker.calls["ignored"] == (0 if rung else 1)


async def test_a_cancellation_that_meets_a_group_which_fails_by_itself_is_still_one(
    system: ProductionSystem,
) -> None:
    system.configure_operation("op", OperationConfig(idempotent=True))
    aborting, entered = asyncio.Event(), 0

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            aborting.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def operation() -> None:
        nonlocal entered
        entered += 1
        async with asyncio.TaskGroup() as tasks:
            cleaning = tasks.create_task(cleans_up())
            tasks.create_task(refuses())
            asyncio.get_running_loop().create_task(end(cleaning))

    async def end(cleaning: asyncio.Task[None]) -> None:
        await aborting.wait()
        call.cancel()
        cleaning.cancel()

    call = asyncio.create_task(system.execute_protected_operation("op", operation))
    with pytest.raises((asyncio.CancelledError, ExceptionGroup)):
        await call
    (op,) = system.operations
    assert (entered, op.breaker.calls["ignored"]) == (1, 1)


async def test_what_the_caller_was_handling_when_it_called_says_nothing_of_the_engine(
    system: ProductionSystem,
) -> None:
    entered = 0

    async def operation() -> None:
        nonlocal entered
        entered += 1
        raise ConnectionRefusedError

    try:
        raise LATE
    except TimeoutError:
        with pytest.raises(ConnectionRefusedError):
            await system.execute_protected_operation("op", operation)
    assert entered == 3


def test_a_rung_of_a_sync_call_that_has_yet_to_be_awaited_is_no_answer(system: ProductionSystem) -> None:
    def fails() -> str:
        raise ConnectionRefusedError

    ladder: Any = {"rung": lambda: (waits_in_vain(), None)[0]}
    with pytest.raises(ConnectionRefusedError):
        system.execute_protected_operation_sync("op", fails, fallbacks=ladder)
