"""The options of a service level objective."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Annotated

from pydantic import AfterValidator, Field

from llmkg_otel._buckets import DURATION_BUCKETS
from llmkg_otel._config_sources import Section
from llmkg_otel._config_types import Count, Seconds, Whole

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

    `objective` is that share (0.999) over the last `window_days`, and `operation` whose calls they are
    (None: those of the operation that is called as the objective is). What fails by the caller's own doing
    (`invalid_input`, `rate_limited`, `cancelled`) is not counted at all; of latency only calls that
    succeeded are, and `latency_seconds` is one of the bounds of the duration's buckets. An alert needs
    `minimum_failures` in its longer window, so that one failure at night wakes nobody.
    """

    operation: str | None = Field(default=None, min_length=1)
    objective: Annotated[float, AfterValidator(_share)]
    latency_seconds: Annotated[Seconds, AfterValidator(_bound)] | None = None
    window_days: Whole = Field(default=30, ge=7, le=90)
    minimum_failures: Count = 5


def _named(slos: dict[str, SloConfig]) -> dict[str, SloConfig]:
    for name in slos:
        if re.fullmatch(r"[\w-]{1,100}", name) is None:
            raise ValueError(f"the name {name!r} should have letters, digits, _ and - only")
    return slos


Slos = Annotated[dict[str, SloConfig], AfterValidator(_named)]
"""By name: it becomes the label `slo`."""
