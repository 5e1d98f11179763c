"""The options of a service level objective."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated

from pydantic import AfterValidator, Field

from llmkg_otel._buckets import DURATION_BUCKETS
from llmkg_otel._config_sources import Section
from llmkg_otel._config_types import Count

__all__ = ["SloConfig", "Slos"]


def _share(value: float) -> float:
    if not 0.5 <= value < 1:
        raise ValueError("should be a share of the calls from 0.5 to below 1: 0.999 for 99.9 %")
    return value


def _bound(value: float) -> float:
    if value not in DURATION_BUCKETS:
        place = bisect_left(DURATION_BUCKETS, value)
        near = " or ".join(f"{bound:g}" for bound in DURATION_BUCKETS[max(0, place - 1) : place + 1])
        raise ValueError(f"should be a bound of the duration's buckets; the nearest: {near}")
    return value


class SloConfig(Section):
    """What share of an operation's calls has to succeed or, with `latency_seconds`, has to be that fast.

    `objective` is that share (0.999) over the last `window_days`. What fails by the caller's own doing
    (`invalid_input`, `rate_limited`, `cancelled`) is not counted at all; of latency only calls that
    succeeded are, and `latency_seconds` is one of the bounds of the duration's buckets. An alert needs
    `minimum_failures` in its longer window, so that one failure at night wakes nobody.
    """

    operation: str = Field(min_length=1)
    objective: Annotated[float, AfterValidator(_share)]
    latency_seconds: Annotated[float, AfterValidator(_bound)] | None = None
    window_days: int = Field(default=30, ge=7, le=90)
    minimum_failures: Count = 5


Slos = dict[Annotated[str, Field(pattern=r"^[\w-]{1,100}$")], SloConfig]
"""By name: it becomes the label `slo`."""
