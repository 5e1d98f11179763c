"""How long to wait before a retry, and which failures are worth one: pure functions."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import EngineCancelledError, LlmkgOtelError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.config import RetryConfig

__all__ = ["backoff_seconds", "is_retryable", "retry_after_seconds"]

_FOR_EVER = 1e9


def backoff_seconds(config: RetryConfig, retry: int, random: Callable[[], float]) -> float:
    """Return the seconds to wait before retry number `retry` (1-based).

    Drawn evenly from [(1 - jitter_factor) * d, d], where d grows by `backoff_multiplier` from
    `base_delay_ms` up to `max_delay_ms`; `random` returns a float in [0, 1).
    Source: AWS, "Exponential Backoff And Jitter"; jitter only shortens, so `max_delay_ms` is a bound.
    """
    try:
        delay = config.base_delay_ms * config.backoff_multiplier ** (retry - 1)
    except OverflowError:
        delay = math.inf if config.base_delay_ms else 0.0
    return min(delay, config.max_delay_ms) * (1 - config.jitter_factor * random()) / 1000


def retry_after_seconds(error: BaseException) -> float:
    """Return how long the failed service asked to be left alone (its `retry_after`, s), else 0.

    A number of seconds or a timedelta; anything else is no wish.
    """
    try:
        after: Any = getattr(error, "retry_after", None)
    except Exception:  # noqa: BLE001 - a property that raises must not take the place of the engine's error
        return 0.0
    if isinstance(after, timedelta):
        after = after.total_seconds()
    is_number = isinstance(after, int | float) and not isinstance(after, bool)
    return float(min(after, _FOR_EVER)) if is_number and after > 0 else 0.0  # NaN is no wish either


def is_retryable(error: BaseException, *, idempotent: bool) -> bool:
    """Say whether the same call may succeed, and may be repeated, after this failure.

    Cancellation and exits are not failures. A timeout, of Python's class or one of a library's own
    (`httpx.ReadTimeout`), leaves the outcome unknown, as does an engine that cancelled itself: only an
    idempotent operation is repeated. Errors of this layer that do not blame the engine are final: whoever
    refused said when to come back, and a wrong argument stays wrong.
    """
    if not isinstance(error, Exception):
        return False
    if isinstance(error, EngineCancelledError) or _ran_out_of_time(error):
        deadline = isinstance(error, OperationTimeoutError) and error.kind == "deadline"
        return idempotent and not deadline
    return not isinstance(error, LlmkgOtelError) or error.blames_engine


def _ran_out_of_time(error: Exception) -> bool:
    """Say whether it tells of a timeout; client libraries have classes of their own, by such names."""
    names = ("Timeout", "TimeoutError", "TimeoutException")
    return any(kind.__name__.endswith(names) for kind in type(error).__mro__)
