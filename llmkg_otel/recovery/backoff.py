"""How long to wait before a retry: a pure function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.config import RetryConfig

__all__ = ["backoff_seconds"]


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
