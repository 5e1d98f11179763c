"""histogram_quantile and histogram_fraction over classic histograms: buckets with an `le` label.

Source: Prometheus 3.5 `promql/quantile.go`, BucketQuantile, and `util/almost`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.values import (
    Labels,
    Sample,
    Vector,
    label_value,
    unique,
    without,
    without_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bucket_fraction", "bucket_quantile", "histogram_fraction", "histogram_quantile"]

_LE = frozenset({"le"})
_TOLERANCE = 1e-12
_SMALLEST_NORMAL = 2.2250738585072014e-308
_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?|nan)", re.IGNORECASE)

Buckets = list[tuple[float, float]]
"""Upper bounds and cumulative counts."""


def histogram_quantile(q: float, vector: Vector) -> Vector:
    """Return the q-quantile of each histogram in the vector; samples without a bound in `le` are skipped."""
    return _of_each(lambda buckets: bucket_quantile(q, buckets), vector)


def histogram_fraction(low: float, high: float, vector: Vector) -> Vector:
    """Return the share of each histogram's observations that lie between two values."""
    return _of_each(lambda buckets: bucket_fraction(low, high, buckets), vector)


def _of_each(function: Callable[[Buckets], float], vector: Vector) -> Vector:
    histograms: dict[Labels, Buckets] = {}
    for labels, value in vector:
        bound = label_value(labels, "le")
        if _FLOAT.fullmatch(bound):
            histograms.setdefault(without(labels, _LE), []).append((float(bound), value))
    return unique([Sample(without_name(labels), function(buckets)) for labels, buckets in histograms.items()])


def bucket_fraction(low: float, high: float, buckets: Buckets) -> float:
    """Return the share between two values, linear inside a bucket; NaN as in bucket_quantile.

    Source: Prometheus 3.5 `promql/quantile.go`, BucketFraction: the lowest bucket has no lower bound, so
    a value inside of it takes none or all of it, and counts that fall are not repaired.
    """
    buckets = _coalesced(sorted(buckets, key=lambda bucket: bucket[0]))
    observations = buckets[-1][1]
    if buckets[-1][0] != math.inf or observations == 0 or math.isnan(low) or math.isnan(high):
        return math.nan
    if low >= high:
        return 0.0
    return (_rank(high, buckets) - _rank(low, buckets)) / observations


def _rank(value: float, buckets: Buckets) -> float:
    """Return how many observations are at most `value`."""
    rank, start = 0.0, -math.inf
    for end, count in buckets:
        if start >= value:
            break
        if end > value:
            rank += (count - rank) * (value - start) / (end - start)
            break
        rank, start = count, end
    observations = buckets[-1][1]
    return min(rank, observations)


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
    index = _first_reaching(rank, buckets)
    if index == len(buckets) - 1:
        return buckets[-2][0]
    end, count = buckets[index]
    if index == 0:
        return end if end <= 0 else end * _share(rank, count)
    start, below = buckets[index - 1]
    return start + (end - start) * _share(rank - below, count - below)


def _first_reaching(rank: float, buckets: Buckets) -> int:
    """Return the first bucket of at least this count, the last one if none is: Go's search, also with NaN."""
    low, high = 0, len(buckets) - 1
    while low < high:
        middle = (low + high) // 2
        if buckets[middle][1] >= rank:
            high = middle
        else:
            low = middle + 1
    return low


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
