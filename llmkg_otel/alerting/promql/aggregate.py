"""Aggregations over groups of samples, by the labels they keep or give up.

Source: Prometheus 3.5 `promql/engine.go`, aggregation and aggregationK.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.floats import mean, quantile, sqrt, total
from llmkg_otel.alerting.promql.values import (
    METRIC_NAME,
    REMEMBERED_LABELS,
    EvaluationError,
    Labels,
    Sample,
    Vector,
    only,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["AGGREGATIONS", "Grouping", "aggregate", "best", "group_quantile"]


class Grouping:
    """`by` these labels, or `without` them; by nothing is one group. Remembers the groups of label sets."""

    __slots__ = ("_keys", "labels", "without")

    def __init__(self, labels: Iterable[str] = (), *, without: bool = False) -> None:
        self.labels = frozenset(labels)
        self.without = without
        self._keys: dict[Labels, Labels] = {}

    def also(self, label: str) -> Grouping:
        """Return a grouping by one more label."""
        return Grouping(self.labels | {label}, without=self.without)

    def key(self, labels: Labels) -> Labels:
        """Return a sample's group, which is also the result's label set."""
        found = self._keys.get(labels)
        if found is None:
            if len(self._keys) >= REMEMBERED_LABELS:
                self._keys = {}
            if self.without:
                found = without(labels, self.labels | {METRIC_NAME})
            else:
                found = only(labels, self.labels)
            self._keys[labels] = found
        return found

    def groups(self, vector: Vector) -> dict[Labels, Vector]:
        """Return the samples of each group, groups in order of appearance."""
        found: dict[Labels, Vector] = {}
        for sample in vector:
            found.setdefault(self.key(sample.labels), []).append(sample)
        return found


def aggregate(function: Callable[[Sequence[float]], float], grouping: Grouping, vector: Vector) -> Vector:
    """Return one sample for each group: the function of its values."""
    groups: dict[Labels, list[float]] = {}
    key = grouping.key
    for labels, value in vector:
        group = key(labels)
        values = groups.get(group)
        if values is None:
            groups[group] = [value]
        else:
            values.append(value)
    return [Sample(labels, function(values)) for labels, values in groups.items()]


def group_quantile(q: float) -> Callable[[Sequence[float]], float]:
    """Return the q-quantile as a function of a group's values."""
    return lambda values: quantile(q, values)


def best(k: float, grouping: Grouping, vector: Vector, *, largest: bool) -> Vector:
    """Return the k largest (or smallest) samples of each group with all their labels; NaN comes last.

    Which of several equal samples stay is decided as in Prometheus: by a binary heap with the worst on
    top that a better sample replaces. Raises EvaluationError when k is no integer of 64 bits.
    """
    if k < 1 or not vector:
        return []
    if not k < 2.0**63:
        raise EvaluationError(f"Scalar value {k} overflows int64")
    count = min(int(k), len(vector))
    sign = 1.0 if largest else -1.0
    result: Vector = []
    for group in grouping.groups(vector).values():
        heap: Vector = []
        for sample in group:
            if len(heap) < count:
                heap.append(sample)
                _sift_up(heap, sign)
            elif _below(heap[0], sample, sign) and not math.isnan(sample.value):
                heap[0] = sample
                _sift_down(heap, sign)
        result.extend(sorted(heap, key=lambda sample: _rank(sample, sign), reverse=True))
    return result


def _rank(sample: Sample, sign: float) -> tuple[bool, float]:
    return not math.isnan(sample.value), sign * sample.value


def _below(left: Sample, right: Sample, sign: float) -> bool:
    return math.isnan(left.value) or sign * left.value < sign * right.value


def _sift_up(heap: Vector, sign: float) -> None:
    at = len(heap) - 1
    while at > 0:
        parent = (at - 1) // 2
        if not _below(heap[at], heap[parent], sign):
            return
        heap[at], heap[parent] = heap[parent], heap[at]
        at = parent


def _sift_down(heap: Vector, sign: float) -> None:
    at = 0
    while (child := 2 * at + 1) < len(heap):
        if child + 1 < len(heap) and _below(heap[child + 1], heap[child], sign):
            child += 1
        if not _below(heap[child], heap[at], sign):
            return
        heap[at], heap[child] = heap[child], heap[at]
        at = child


def _extreme(values: Iterable[float], better: Callable[[float, float], bool]) -> float:
    found = math.nan
    for value in values:
        if better(value, found) or math.isnan(found):
            found = value
    return found


def _variance(values: Sequence[float]) -> float:
    average = values[0]
    squares = 0.0 if math.isfinite(average) else math.nan
    for count, value in enumerate(values[1:], start=2):
        delta = value - average
        average += delta / count
        squares += delta * (value - average)
    return squares / len(values)


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": total,
    "avg": mean,
    "min": lambda values: _extreme(values, lambda value, found: value < found),
    "max": lambda values: _extreme(values, lambda value, found: value > found),
    "count": lambda values: float(len(values)),
    "group": lambda _: 1.0,
    "stdvar": _variance,
    "stddev": lambda values: sqrt(_variance(values)),
}
