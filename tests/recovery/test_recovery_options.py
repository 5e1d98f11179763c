"""The options of retry and breaker that name exceptions, and what is refused because it cannot work."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from support.options import problem

from llmkg_otel.config import OperationConfig, ProductionConfig, RetryConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmkg_otel.system import ProductionSystem


class BusyError(ConnectionError):
    """A failure with a name of its own."""


NAME = f"{BusyError.__module__}.{BusyError.__qualname__}"
LISTS: list[tuple[str, str, dict[type[Exception], tuple[int, str]]]] = [
    # option, value; of each error: attempts it takes, and what the breaker makes of it
    ("retry.retryable_exceptions", NAME, {BusyError: (3, "failure"), ConnectionError: (1, "failure")}),
    ("retry.retryable_exceptions", "OSError", {BusyError: (3, "failure"), ValueError: (1, "failure")}),
    ("retry.excluded_exceptions", NAME, {BusyError: (1, "failure"), ConnectionError: (3, "failure")}),
    ("circuit_breaker.excluded_exceptions", NAME, {BusyError: (3, "ignored"), OSError: (3, "failure")}),
    (
        "circuit_breaker.excluded_exceptions",
        f"{NAME}, ValueError",
        {BusyError: (3, "ignored"), UnicodeError: (3, "ignored"), OSError: (3, "failure")},
    ),
]


def set_by_file(option: str, value: str, file: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    section, name = option.split(".")
    file.write_text(f"{section}:\n  {name}: [{value}]\n")


def set_by_environment(option: str, value: str, _file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_" + option.replace(".", "__").upper(), value)


@pytest.mark.parametrize("set_", [set_by_file, set_by_environment])
@pytest.mark.parametrize(("option", "value", "expected"), LISTS)
async def test_lists_of_exceptions_decide_what_is_retried_and_what_counts(
    set_: Callable[..., None],
    option: str,
    value: str,
    expected: dict[type[Exception], tuple[int, str]],
    make_system: Callable[..., ProductionSystem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "llmkg.yaml"
    file.write_text("")
    set_(option, value, file, monkeypatch)
    loaded = ProductionConfig.load(file)
    quick = {"max_retries": 2, "base_delay_ms": 0, "max_delay_ms": 0}
    system = make_system(retry=loaded.retry.model_copy(update=quick), circuit_breaker=loaded.circuit_breaker)
    for error, (attempts, outcome) in expected.items():
        system.configure_operation(error.__name__, OperationConfig())
        op, reached = system.operations.named(error.__name__), count(1)

        def operation(error: type[Exception] = error, reached: Any = reached) -> None:
            next(reached)
            raise error

        with pytest.raises(error):
            system.execute_protected_operation_sync(op.name, operation)
        assert next(reached) == attempts + 1
        assert {key: calls for key, calls in op.breaker.calls.items() if calls} == {outcome: attempts}


def test_a_list_of_exceptions_takes_classes_as_well_as_names() -> None:
    both = RetryConfig(retryable_exceptions=(BusyError, "builtins.KeyError"))
    assert both.retryable_exceptions == (BusyError, KeyError)
    assert RetryConfig.model_validate_json(both.model_dump_json()) == both


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"retry": {"base_delay_ms": 200, "max_delay_ms": 100}}, "retry: max_delay_ms must be at least"),
    ({"retry": {"backoff_multiplier": 0.99}}, "retry.backoff_multiplier = 0.99: "),
    ({"retry": {"base_delay_ms": float("inf")}}, "retry.base_delay_ms = inf: "),
    ({"retry": {"max_delay_ms": -1.0}}, "retry.max_delay_ms = -1.0: "),
    ({"circuit_breaker": {"failure_threshold": 0}}, "circuit_breaker.failure_threshold = 0: "),
    ({"circuit_breaker": {"failure_rate_threshold": 0}}, "circuit_breaker.failure_rate_threshold = 0: "),
    ({"circuit_breaker": {"recovery_timeout": float("inf")}}, "circuit_breaker.recovery_timeout = inf: "),
    (
        {"circuit_breaker": {"half_open_max_probes": 2}},
        "circuit_breaker: success_threshold must be at most half_open_max_probes (2)",
    ),
    (
        {"circuit_breaker": {"minimum_calls": 11, "sliding_window_calls": 10}},
        "circuit_breaker: minimum_calls must be at most sliding_window_calls (10)",
    ),
    (
        {"circuit_breaker": {"sliding_window_calls": 10, "sliding_window_seconds": 10}},
        "circuit_breaker: sliding_window_calls and sliding_window_seconds exclude each other",
    ),
    (
        {"circuit_breaker": {"slow_call_rate_threshold": 0.5, "slow_call_seconds": 10}},
        "circuit_breaker: slow_call_seconds must be below timeout (10)",
    ),
    ({"retry": {"retryable_exceptions": ["no.such.Error"]}}, "retry.retryable_exceptions"),
    ({"retry": {"retryable_exceptions": "KeyboardInterrupt"}}, "retry.retryable_exceptions"),
]


@pytest.mark.parametrize(("wrong", "told"), WRONG, ids=[told for _, told in WRONG])
@pytest.mark.parametrize("operation", [False, True], ids=["the system's", "an operation's"])
def test_a_policy_that_cannot_work_is_refused_by_the_name_of_its_field(
    wrong: dict[str, Any], told: str, operation: bool
) -> None:
    if operation:
        wrong, told = {"operations": {"search": wrong}}, f"operations.search.{told}"
    assert told in problem(**wrong)
