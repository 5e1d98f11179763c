"""Failures that come several at once (TaskGroup), or wrapped: whose they are, and whether to try again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from support.calls import SIMPLE, exits

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, RetryConfig
from llmkg_otel.errors import InvalidInputError
from llmkg_otel.recovery.failures import is_retryable, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

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


ONCE = [
    group(MISTAKE),
    group(DOWN, group(MISTAKE)),
    group(DOWN, LATE),
    group(caused(LATE)),
    caused(LATE),
    caused(caused(group(DOWN, LATE))),
    ConnectionResetError("it had the request"),
    caused(BrokenPipeError()),
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
