"""IEEE 754 arithmetic as Go does it, where Python raises or rounds differently.

Source: Go's `math` package, and Prometheus 3.5 `promql/functions.go` and `promql/engine.go` for the
compensated sums (Kahan's, with Neumaier's improvement).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["ARITHMETIC", "COMPARISON", "CompensatedSum", "compensated", "mean", "quantile", "total"]


def divide(left: float, right: float) -> float:
    """X / 0 is an infinity with the sign of both, and 0 / 0 is NaN."""
    if right != 0:
        return left / right
    if left == 0 or math.isnan(left):
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


def modulo(left: float, right: float) -> float:
    """fmod: the sign is the dividend's; NaN where it is not defined."""
    if right == 0 or math.isinf(left):
        return math.nan
    return math.fmod(left, right)


def power(base: float, exponent: float) -> float:
    """C's and Go's pow: overflow is an infinity, a negative base with a fraction is NaN."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        negative = base < 0 and math.fmod(exponent, 2) != 0
        return -math.inf if negative else math.inf
    except ValueError:
        if base != 0:
            return math.nan
        odd = math.fmod(exponent, 2) in (1.0, -1.0)
        return math.copysign(math.inf, base) if odd else math.inf


def floor(value: float) -> float:
    """Round down; infinities, NaN and the sign of zero survive."""
    return value if not math.isfinite(value) else math.copysign(math.floor(value), value)


def ceil(value: float) -> float:
    """Round up; infinities, NaN and the sign of zero survive."""
    return value if not math.isfinite(value) else math.copysign(math.ceil(value), value)


def larger(left: float, right: float) -> float:
    """Go's math.Max: +Inf wins over NaN, and NaN over everything else."""
    if math.inf in (left, right):
        return math.inf
    return math.nan if math.isnan(left) or math.isnan(right) else max(left, right)


def smaller(left: float, right: float) -> float:
    """Go's math.Min: -Inf wins over NaN, and NaN over everything else."""
    if -math.inf in (left, right):
        return -math.inf
    return math.nan if math.isnan(left) or math.isnan(right) else min(left, right)


def exp(value: float) -> float:
    """Raise e to the value; overflow is +Inf."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def logarithm(function: Callable[[float], float]) -> Callable[[float], float]:
    """Return the logarithm with -Inf at zero and NaN below."""

    def apply(value: float) -> float:
        if value > 0:
            return function(value)
        return -math.inf if value == 0 else math.nan

    return apply


def sqrt(value: float) -> float:
    """Return the square root; NaN below zero."""
    return math.sqrt(value) if value >= 0 else math.nan


def sign(value: float) -> float:
    """Return -1, 1, or the value itself when it is zero or NaN."""
    if value == 0 or math.isnan(value):
        return value
    return math.copysign(1.0, value)


ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": divide,
    "%": modulo,
    "^": power,
    "atan2": math.atan2,
}
COMPARISON: dict[str, Callable[[float, float], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
}


class CompensatedSum:
    """A running sum with the part that rounding lost; one evaluation's, on one thread."""

    __slots__ = ("lost", "sum")

    def __init__(self, start: float = 0.0) -> None:
        self.sum = start
        self.lost = 0.0

    def add(self, value: float) -> None:
        """Add a value and keep what the addition lost."""
        old, new = self.sum, self.sum + value
        if math.isinf(new):
            self.lost = 0.0
        elif abs(old) >= abs(value):
            self.lost += (old - new) + value
        else:
            self.lost += (value - new) + old
        self.sum = new


def compensated(values: Iterable[float]) -> tuple[float, float]:
    """Return the sum and what rounding lost of it, as adding one by one to a CompensatedSum would."""
    running, lost = 0.0, 0.0
    for value in values:
        new = running + value
        if not -math.inf < new < math.inf:
            lost = 0.0
        elif abs(running) >= abs(value):
            lost += (running - new) + value
        else:
            lost += (value - new) + running
        running = new
    return running, lost


def total(values: Iterable[float]) -> float:
    """Return the compensated sum."""
    running, lost = compensated(values)
    return running + lost


def mean(values: Sequence[float]) -> float:
    """Return the average: the sum by the count, or incrementally from where the sum would overflow."""
    running, lost = compensated(values)
    count = len(values)
    return running / count + lost / count if math.isfinite(running) else _slow_mean(values)


def _slow_mean(values: Sequence[float]) -> float:
    running = CompensatedSum(values[0])
    for index in range(1, len(values)):
        before, lost = running.sum, running.lost
        running.add(values[index])
        if math.isinf(running.sum):
            return _incremental(values, index, before / index, lost / index)
    return running.sum / len(values) + running.lost / len(values)


def _incremental(values: Sequence[float], start: int, average: float, lost: float) -> float:
    for index in range(start, len(values)):
        count = index + 1.0
        kept = index / count
        running = CompensatedSum(kept * average)
        running.lost = kept * lost
        running.add(values[index] / count)
        average, lost = running.sum, running.lost
    return average + lost


def quantile(q: float, values: Sequence[float]) -> float:
    """Return the q-quantile, interpolated between the two nearest ranks; NaN sorts first."""
    if not values or math.isnan(q):
        return math.nan
    if q < 0 or q > 1:
        return math.copysign(math.inf, q)
    ordered = sorted(values, key=lambda value: (not math.isnan(value), value))
    rank = q * (len(ordered) - 1)
    low = int(rank)
    high = min(len(ordered) - 1, low + 1)
    weight = rank - low
    return ordered[low] * (1 - weight) + ordered[high] * weight
