"""Instances that share their limits, and how a test asks them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from llmkg_otel.config import RateLimitRule
from llmkg_otel.errors import RateLimitedError

if TYPE_CHECKING:
    from llmkg_otel.limiting.plan import Levels
    from llmkg_otel.limiting.rates import RateLimits

SLOW = 1e-3  # tokens a second: within a test, the burst is all there is
MODES = pytest.mark.parametrize("mode", ["exact", "leases"])


class Make(Protocol):
    """Makes an instance on the test's server: a slow global rule with a burst, unless told otherwise."""

    def __call__(self, burst: int = 9, **options: Any) -> RateLimits: ...


def rule(burst: int, **options: Any) -> RateLimitRule:
    return RateLimitRule(requests_per_second=SLOW, burst_capacity=burst, **options)


async def ask(
    rates: RateLimits, levels: Levels, user: str | None = None, cost: int = 1
) -> RateLimitedError | None:
    try:
        pending = rates.check("op", levels, user, time.monotonic(), cost)
        if pending is not None:
            await pending.settle()
    except RateLimitedError as error:
        return error
    return None


def ask_sync(
    rates: RateLimits, levels: Levels, user: str | None = None, cost: int = 1
) -> RateLimitedError | None:
    try:
        pending = rates.check("op", levels, user, time.monotonic(), cost)
        if pending is not None:
            pending.settle_sync()
    except RateLimitedError as error:
        return error
    return None


def scopes(answers: list[RateLimitedError | None]) -> list[str]:
    return ["" if answer is None else answer.scope for answer in answers]
