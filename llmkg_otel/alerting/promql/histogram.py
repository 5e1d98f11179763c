"""histogram_quantile over classic histograms: buckets with an `le` label.

Source: Prometheus 3.5 `promql/quantile.go`, BucketQuantile, and `util/almost`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left

from llmkg_otel.alerting.promql.values import (
    Labels,
    Sample,
    Vector,
    label_value,
    unique,
    without,
    without_name,
)

__all__ = ["bucket_quantile", "histogram_quantile"]

_TOLERANCE = 1e-12
_SMALLEST_NORMAL = 2.2250738585072014e-308
_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?|nan)", re.IGNORECASE)

Buckets = list[tuple[float, float]]
"""Upper bounds and cumulative counts."""


def histogram_quantile(q: float, vector: Vector) -> Vector:
    """Return the q-quantile of each histogram in the vector; samples without a bound in `le` are skipped."""
    histograms: dict[Labels, Buckets] = {}
    for labels, value in vector:
        bound = label_value(labels, "le")
        if _FLOAT.fullmatch(bound):
            histograms.setdefault(without(labels, frozenset({"le"})), []).append((float(bound), value))
    return unique(
        [Sample(without_name(labels), bucket_quantile(q, buckets)) for labels, buckets in histograms.items()]
    )


def bucket_quantile(q: float, buckets: Buckets) -> float:
    """Return the q-quantile, linear inside its bucket.

    The lowest bucket starts at 0 unless its bound is not above 0; in the +Inf bucket the highest finite
    bound is the answer. NaN without a +Inf bucket, with fewer than two buckets or no observations; -Inf
    and +Inf for q outside [0, 1].
    """
    if math.isnan(q):
        return math.nan
    if q < 0 or q > 1:
        return math.copysign(math.inf, q)
    buckets = _rising(_coalesced(sorted(buckets, key=lambda bucket: bucket[0])))
    observations = buckets[-1][1]
    if buckets[-1][0] != math.inf or len(buckets) < 2 or observations == 0:
        return math.nan
    rank = q * observations
    index = bisect_left(buckets, rank, hi=len(buckets) - 1, key=lambda bucket: bucket[1])
    if index == len(buckets) - 1:
        return buckets[-2][0]
    end, count = buckets[index]
    if index == 0:
        return end if end <= 0 else end * _share(rank, count)
    start, below = buckets[index - 1]
    return start + (end - start) * _share(rank - below, count - below)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _coalesced(buckets: Buckets) -> Buckets:
    result: Buckets = []
    for bound, count in buckets:
        if result and result[-1][0] == bound:
            result[-1] = (bound, result[-1][1] + count)
        else:
            result.append((bound, count))
    return result


def _rising(buckets: Buckets) -> Buckets:
    """Repair counts that fall, and ignore differences that rounding explains."""
    result, previous = [], buckets[0][1]
    for bound, count in buckets:
        if not (count <= previous or _almost_equal(previous, count)):
            previous = count
        result.append((bound, previous))
    return result


def _almost_equal(left: float, right: float) -> bool:
    size, difference = abs(left) + abs(right), abs(left - right)
    if 0 in (left, right) or size < _SMALLEST_NORMAL:
        return difference < _TOLERANCE * _SMALLEST_NORMAL
    return difference / min(size, 1.7976931348623157e308) < _TOLERANCE
