"""Wrong options and names of calls are refused with a word on what is right, and reach nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.config import CircuitBreakerConfig, OperationConfig, ProductionConfig, RetryConfig
from llmkg_otel.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem


async def operation() -> str:
    return "done"


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("timeout_seconds", True, "should be a number of seconds above 0"),
        ("timeout_seconds", "5", "should be a number of seconds above 0"),
        ("timeout_seconds", 0, "should be a number of seconds above 0"),
        ("timeout_seconds", float("nan"), "should be a number of seconds above 0"),
        ("user_id", 42, "user_id is of type int: should be text"),
        ("user_id", ["ada"], "user_id is of type list: should be text"),
        ("correlation_id", 12345678, "a correlation id has 8 to 64 letters"),
        ("correlation_id", b"12345678", "a correlation id has 8 to 64 letters"),
        ("criticality", ["critical"], "should be one of critical"),
        ("criticality", 1, "should be one of critical"),
        ("criticality", "", "should be one of critical"),
        ("criticality", 0, "should be one of critical"),
        ("cost", "2", "should be a whole number from 1"),
        ("cost", 1.5, "should be a whole number from 1"),
        ("cost", None, "should be a whole number from 1"),
        ("cost", 0, "should be a whole number from 1"),
        ("cost", True, "should be a whole number from 1"),
    ],
    ids=str,
)
async def test_an_option_of_the_wrong_type_is_refused_in_words(
    system: ProductionSystem, option: str, value: Any, word: str
) -> None:
    options: Any = {option: value}
    with pytest.raises(InvalidInputError, match=word):
        await system.execute_protected_operation("op", operation, **options)
    with pytest.raises(InvalidInputError, match=word):
        system.execute_protected_operation_sync("op", lambda: "done", **options)
    assert system.circuit_breaker("op").calls["success"] == 0


NAMES: list[Any] = ["", "x" * 101, "x" * 100_000, "two\nlines", "half \ud800", 7, None, ["op"], b"op"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:12])
async def test_a_name_that_no_screen_could_show_is_refused_in_short_words(
    system: ProductionSystem, name: Any
) -> None:
    with pytest.raises(InvalidInputError, match="text of 1 to 100 printable characters") as caught:
        await system.execute_protected_operation(name, operation)
    assert len(str(caught.value)) < 200
    with pytest.raises(InvalidInputError, match="printable"):
        system.configure_operation(name, OperationConfig())
    assert [op.name for op in system.operations] == []


def test_a_configured_name_is_held_to_the_same() -> None:
    with pytest.raises(ConfigurationError, match=r"operations.*text of 1 to 100 printable characters"):
        ProductionConfig(operations={"x" * 101: OperationConfig()})


async def fails() -> str:
    raise ConnectionError


@pytest.mark.parametrize(
    ("make", "fallbacks", "word"),
    [
        (operation, dict, "type coroutine: should be a function"),
        (lambda: "search", dict, "type str: should be a function"),
        (
            lambda: fails,
            lambda: {"rung": operation()},
            "type coroutine: should be a function",
        ),
        (lambda: fails, lambda: {"rung": "cached"}, "type str: should be a function"),
        (lambda: fails, lambda: [operation], "fallbacks of type list: should be functions by name"),
    ],
)
async def test_what_cannot_be_called_for_each_attempt_is_no_failure_of_the_engine(
    system: ProductionSystem, make: Any, fallbacks: Any, word: str
) -> None:
    with pytest.raises(InvalidInputError, match=word):
        await system.execute_protected_operation("op", make(), fallbacks=fallbacks())
    assert system.circuit_breaker("op").calls["failure"] == 0


async def test_a_call_within_a_call_is_held_to_the_same(system: ProductionSystem) -> None:
    async def outer() -> None:
        await system.execute_protected_operation("op", operation, cost=0)

    with pytest.raises(InvalidInputError, match="cost = 0"):
        await system.execute_protected_operation("outer", outer)


@pytest.mark.parametrize("errors", [("KeyError",), (KeyError(),), ((KeyError,),), (BaseException,)], ids=repr)
async def test_only_classes_of_exceptions_can_be_the_callers_mistakes(
    system: ProductionSystem, errors: Any
) -> None:
    with pytest.raises(ConfigurationError, match="should be a class of exceptions"):
        system.blame_caller_for(ValueError, *errors)
    with pytest.raises(ConnectionError):
        await system.execute_protected_operation("op", fails)


@pytest.mark.parametrize("config", [{}, None, RetryConfig()], ids=repr)
def test_an_operation_is_configured_by_a_configuration(system: ProductionSystem, config: Any) -> None:
    with pytest.raises(InvalidInputError, match="its configuration is an OperationConfig"):
        system.configure_operation("op", config)


def test_a_configuration_that_is_refused_changes_nothing(system: ProductionSystem) -> None:
    with pytest.raises(ConfigurationError, match="is read at the start"):
        system.configure_operation("op", OperationConfig(timeout=1.25, fallbacks=("rung",)))
    assert [op.name for op in system.operations] == []


@pytest.mark.parametrize("function", [operation, lambda: "done"])
def test_a_decorator_looks_at_its_arguments_at_once(system: ProductionSystem, function: Any) -> None:
    wrong: list[tuple[Any, Any]] = [("op", [fails]), ("op", {"rung": "cached"}), (7, {})]
    for name, fallbacks in wrong:
        with pytest.raises(InvalidInputError):
            system.protected(name, fallbacks=fallbacks)(function)


@pytest.mark.parametrize("name", [[], 7, ""])
def test_the_status_of_what_is_no_name_is_refused(system: ProductionSystem, name: Any) -> None:
    with pytest.raises(InvalidInputError, match="printable"):
        system.get_circuit_breaker_status(name)


@pytest.mark.parametrize(
    ("section", "option"),
    [
        (RetryConfig, "max_retries"),
        (RetryConfig, "base_delay_ms"),
        (RetryConfig, "backoff_multiplier"),
        (CircuitBreakerConfig, "failure_threshold"),
        (CircuitBreakerConfig, "timeout"),
        (CircuitBreakerConfig, "sliding_window_seconds"),
        (CircuitBreakerConfig, "failure_rate_threshold"),
    ],
)
def test_yes_is_no_number(section: Any, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} = True: should be a number"):
        section(**{option: True})


def test_a_name_of_an_exception_that_python_cannot_import_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="names no exception that can be imported"):
        RetryConfig(retryable_exceptions=("..Foo",))
