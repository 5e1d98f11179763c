from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel import errors
from llmkg_otel.errors import (
    CircuitOpenError,
    ConfigurationError,
    InvalidInputError,
    LlmkgOtelError,
    LoadShedError,
    OperationTimeoutError,
    OverloadedError,
    RateLimitedError,
    RejectedError,
    ResourceExhaustedError,
    ShuttingDownError,
    error_type,
)

REASONS: dict[type[RejectedError], str] = {
    RateLimitedError: "rate_limited",
    ResourceExhaustedError: "resource_exhausted",
    OverloadedError: "permit_timeout",
    LoadShedError: "shed",
    CircuitOpenError: "circuit_open",
    ShuttingDownError: "draining",
}


def refused(kind: type[RejectedError] = RateLimitedError, retry_after: float | None = 1.5) -> RejectedError:
    return kind("no", operation="search", scope="global", limit="5/second", retry_after=retry_after)


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_every_refusal_has_the_same_shape(kind: type[RejectedError], reason: str) -> None:
    assert refused(kind).to_dict() == {
        "code": reason,
        "reason": reason,
        "message": "no",
        "operation": "search",
        "scope": "global",
        "limit": "5/second",
        "retry_after_ms": 1500,
    }


@pytest.mark.parametrize(
    ("kind", "words"), [("deadline", "its total deadline"), ("attempt", "the time allowed for one attempt")]
)
def test_a_timeout_has_the_shape_of_a_refusal_and_says_which_time_ran_out(kind: Any, words: str) -> None:
    error = OperationTimeoutError("search", kind, 2.5)
    assert error.to_dict() == {
        "code": "deadline_exceeded",
        "reason": "deadline_exceeded",
        "message": f"search did not finish within {words} of 2.5 s",
        "operation": "search",
        "scope": kind,
        "limit": "2.5s",
        "retry_after_ms": None,
    }
    assert error.to_dict().keys() == refused().to_dict().keys()


@pytest.mark.parametrize("kind", [ConfigurationError, InvalidInputError])
def test_a_wrong_value_has_the_common_part_of_the_shape(kind: type[LlmkgOtelError]) -> None:
    assert kind("why").to_dict() == {"code": kind.reason, "message": "why"}


def test_nothing_promised_about_the_time_to_come_back_is_null() -> None:
    assert refused(retry_after=None).to_dict()["retry_after_ms"] is None


@given(st.floats(0, 1e12))
def test_the_time_to_come_back_is_rounded_up_to_milliseconds(seconds: float) -> None:
    told = refused(retry_after=seconds).to_dict()["retry_after_ms"]
    assert isinstance(told, int)
    assert seconds * 1000 <= told <= seconds * 1000 + 1
    assert json.loads(json.dumps(told)) == told


def test_each_error_has_a_place_under_the_root_and_the_python_error_that_callers_expect() -> None:
    kinds = {kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)}

    def under(parent: type) -> set[type]:
        return {kind for kind in kinds if issubclass(kind, parent)}

    assert under(LlmkgOtelError) == kinds
    assert under(RejectedError) == {RejectedError, *REASONS}
    assert under(ValueError) == {ConfigurationError, InvalidInputError}
    assert under(TimeoutError) == {OperationTimeoutError}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((refused(kind), reason) for kind, reason in REASONS.items()),
        (OperationTimeoutError("search", "attempt", 1), "deadline_exceeded"),
        (ConfigurationError("x"), "configuration"),
        (InvalidInputError("x"), "invalid_input"),
        (LlmkgOtelError("x"), "_OTHER"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (json.JSONDecodeError("a private message", "and its document", 0), "JSONDecodeError"),
    ],
)
def test_the_type_of_an_error_is_our_reason_or_its_class_and_never_its_words(
    error: BaseException, kind: str
) -> None:
    assert error_type(error) == kind


def test_an_error_of_a_subclass_keeps_the_reason_of_the_set() -> None:
    class MyLimitError(RateLimitedError):
        pass

    assert error_type(refused(MyLimitError)) == "rate_limited"
