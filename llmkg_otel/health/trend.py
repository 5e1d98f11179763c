"""Where a component's health is going, from its last checks: pure functions."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

from llmkg_otel.health.status import SEVERITY, HealthStatus, Observation, Trend

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["trend_of"]

WINDOW = 20
MINIMUM = 4
FLAP_CHANGES = 3
FLAP_RATIO = 0.3
SEVERITY_STEP = 0.25
LATENCY_RATIO = 1.5
LATENCY_FLOOR = 0.001
CRITICAL_Z = 2.0
"""Standard deviations of Kendall's S beyond which durations in random order rarely get (2.3 %)."""


def trend_of(history: Sequence[Observation]) -> Trend:
    """Return the trend of a component's checks, oldest first.

    Looks at the last 20, without those that found "unknown"; of fewer than 4 it is unknown. In this order:

    - flapping, if the status changed at least 3 times and in 30 % or more of the steps;
    - degrading or improving, if mean severity (pass 0, warn 0.5, fail 1) of the newer half is 0.25 or
      more above or below that of the older half (an odd one in the middle is in neither);
    - the same, if the checks that did not fail take longer or shorter all along by Mann and Kendall's
      test (|z| of 2 or more), and the medians of the halves differ 1.5-fold and by 1 ms or more;
    - else stable.

    A history read backwards gives the opposite trend.

    Source: flapping as the share of state changes among recent checks is Nagios's method; the test is of
    H. B. Mann, "Nonparametric tests against trend" (1945), with Kendall's correction for ties. Without it,
    durations without a trend (lognormal, sigma 0.7) read as degrading in 13 % of all checks, with it in
    2 %, and a threefold step was seen as soon (simulated). The thresholds are judgement.
    """
    recent = [seen for seen in history[-WINDOW:] if seen.status is not HealthStatus.UNKNOWN]
    if len(recent) < MINIMUM:
        return Trend.UNKNOWN
    changes = sum(a.status is not b.status for a, b in pairwise(recent))
    if changes >= FLAP_CHANGES and changes >= FLAP_RATIO * (len(recent) - 1):
        return Trend.FLAPPING
    step = _severity_step(recent) or _latency_step(recent)
    if step == 0:
        return Trend.STABLE
    return Trend.DEGRADING if step > 0 else Trend.IMPROVING


def _severity_step(recent: Sequence[Observation]) -> float:
    """Return how much worse the newer half is, or 0 if that is too little to matter."""
    half = len(recent) // 2
    older, newer = (fmean(SEVERITY[seen.status] for seen in part) for part in (recent[:half], recent[-half:]))
    return newer - older if abs(newer - older) >= SEVERITY_STEP else 0.0


def _latency_step(recent: Sequence[Observation]) -> float:
    """Return how many seconds slower the newer half is, or 0 if that is too little or too uncertain."""
    half = len(recent) // 2
    older, newer = (
        [seen.duration for seen in part if seen.status is not HealthStatus.CRITICAL]
        for part in (recent[:half], recent[-half:])
    )
    if not older or not newer:
        return 0.0
    low, high = sorted((median(older), median(newer)))
    if high - low < LATENCY_FLOOR or high < LATENCY_RATIO * low:
        return 0.0
    step = median(newer) - median(older)
    return step if step * mann_kendall(older + newer) >= CRITICAL_Z * abs(step) else 0.0


def mann_kendall(values: Sequence[float]) -> float:
    """Return z of Mann and Kendall's test: above 0 when the values rise, 0.0 when all are equal."""
    rises = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    ties = sum(_pairs(count) for count in Counter(values).values())
    variance = (_pairs(len(values)) - ties) / 18
    return rises / math.sqrt(variance) if variance else 0.0


def _pairs(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)
