from __future__ import annotations

import asyncio
import itertools
import math
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import RetryConfig
from llmkg_otel.errors import (
    CircuitOpenError,
    ConfigurationError,
    InvalidInputError,
    OperationTimeoutError,
    RateLimitedError,
)
from llmkg_otel.recovery.backoff import backoff_seconds
from llmkg_otel.recovery.failures import is_retryable, retry_after_seconds

DELAYS = st.one_of(st.just(0.0), st.floats(1e-3, 1e6))


@st.composite
def policies(draw: st.DrawFn) -> RetryConfig:
    base, longest = sorted((draw(DELAYS), draw(DELAYS)))
    return RetryConfig(
        base_delay_ms=base,
        max_delay_ms=longest,
        backoff_multiplier=draw(st.floats(1, 10) | st.floats(1, 1e300)),
        jitter_factor=draw(st.floats(0, 1)),
    )


def without_jitter(policy: RetryConfig, retry: int) -> Fraction:
    """Return the documented delay in exact arithmetic."""
    growth = Fraction(policy.backoff_multiplier) ** (retry - 1)
    return min(Fraction(policy.max_delay_ms), Fraction(policy.base_delay_ms) * growth) / 1000


@given(policies(), st.integers(1, 101), st.floats(0, 1, exclude_max=True))
def test_a_delay_lies_between_the_jittered_and_the_full_delay(
    policy: RetryConfig, retry: int, drawn: float
) -> None:
    full = float(without_jitter(policy, retry))
    delay = backoff_seconds(policy, retry, lambda: drawn)
    assert 0 <= delay <= policy.max_delay_ms / 1000
    assert full * (1 - policy.jitter_factor) * (1 - 1e-9) <= delay <= full * (1 + 1e-9)


@given(policies(), st.floats(0, 1, exclude_max=True))
def test_delays_never_shrink_from_retry_to_retry(policy: RetryConfig, drawn: float) -> None:
    delays = [backoff_seconds(policy, retry, lambda: drawn) for retry in range(1, 30)]
    assert all(earlier <= later for earlier, later in itertools.pairwise(delays))


@given(policies(), st.integers(10**3, 10**9))
def test_a_huge_retry_number_waits_the_longest_delay_and_not_for_ever(
    policy: RetryConfig, retry: int
) -> None:
    grows = policy.backoff_multiplier > 1.1 and policy.base_delay_ms > 0
    expected = policy.max_delay_ms if grows else policy.base_delay_ms
    if grows or policy.backoff_multiplier == 1 or policy.base_delay_ms == 0:
        assert backoff_seconds(policy, retry, lambda: 0.0) == expected / 1000


@pytest.mark.parametrize("factor", [0.1, 1.0])
@pytest.mark.parametrize("retry", [1, 3, 9])
def test_callers_that_failed_together_come_back_evenly_over_the_whole_jitter(
    factor: float, retry: int
) -> None:
    policy = RetryConfig(jitter_factor=factor)
    full = float(without_jitter(policy, retry))
    draw, count = random.Random(7).random, 10_000
    shares = sorted((1 - backoff_seconds(policy, retry, draw) / full) / factor for _ in range(count))
    # Kolmogorov and Smirnov: with an even spread a distance as large as this comes once in 1,000 seeds.
    distance = max(max(share - i / count, (i + 1) / count - share) for i, share in enumerate(shares))
    assert distance < 1.95 / math.sqrt(count)


def test_without_jitter_the_seed_documents_delays_double_up_to_the_cap() -> None:
    policy = RetryConfig(jitter_factor=0)
    delays = [backoff_seconds(policy, retry, lambda: 0.5) for retry in range(1, 9)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


class AskedError(Exception):
    def __init__(self, retry_after: object) -> None:
        self.retry_after = retry_after


@given(
    st.none()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just(10**400)
    | st.lists(st.integers(), max_size=1)
)
def test_what_a_service_asked_for_is_a_finite_time_or_nothing(asked: Any) -> None:
    wish = asked if isinstance(asked, int | float) and asked > 0 else 0.0
    assert retry_after_seconds(AskedError(asked)) == min(wish, 1e9)


def test_a_service_that_asked_for_nothing_is_not_waited_for() -> None:
    assert retry_after_seconds(ConnectionError("gone")) == 0.0


REFUSED: dict[str, Any] = {"operation": "search", "scope": "global", "retry_after": 1.0}


@pytest.mark.parametrize(
    ("error", "any_operation", "idempotent"),
    [
        (ConnectionError(), True, True),
        (ValueError(), True, True),
        (TimeoutError(), False, True),
        (OperationTimeoutError("search", "attempt", 1), False, True),
        (OperationTimeoutError("search", "deadline", 1), False, False),
        (RateLimitedError("no", **REFUSED), False, False),
        (CircuitOpenError("no", **REFUSED), False, False),
        (InvalidInputError("no"), False, False),
        (ConfigurationError("no"), False, False),
        (asyncio.CancelledError(), False, False),
        (KeyboardInterrupt(), False, False),
        (SystemExit(), False, False),
        (GeneratorExit(), False, False),
    ],
)
def test_a_failure_is_worth_a_retry_if_the_same_call_may_succeed_and_may_be_repeated(
    error: BaseException, any_operation: bool, idempotent: bool
) -> None:
    assert is_retryable(error, idempotent=False) is any_operation
    assert is_retryable(error, idempotent=True) is idempotent


class ReadTimeout(OSError):  # noqa: N818 - named as such libraries do
    """What a client library of its own calls a timeout."""


@pytest.mark.parametrize("error", [TimeoutError(), ReadTimeout(), type("Late", (ReadTimeout,), {})()])
def test_a_timeout_of_any_librarys_is_repeated_only_where_that_is_harmless(error: Exception) -> None:
    assert is_retryable(error, idempotent=True)
    assert not is_retryable(error, idempotent=False)
