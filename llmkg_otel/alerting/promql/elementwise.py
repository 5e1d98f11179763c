"""Functions of one number, as Go's `math` has them where Python raises instead.

Source: Prometheus 3.5 `promql/functions.go`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql import floats

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ELEMENTWISE"]


def _or_nan(function: Callable[[float], float]) -> Callable[[float], float]:
    """Return the function with NaN outside of its domain."""

    def apply(value: float) -> float:
        try:
            return function(value)
        except ValueError:
            return math.nan

    return apply


def _overflowing(function: Callable[[float], float], *, odd: bool = False) -> Callable[[float], float]:
    """Return the function with an infinity for overflow: of the value's sign if the function is odd."""

    def apply(value: float) -> float:
        try:
            return function(value)
        except OverflowError:
            return math.copysign(math.inf, value) if odd else math.inf

    return apply


def _atanh(value: float) -> float:
    if abs(value) == 1:
        return math.copysign(math.inf, value)
    return math.atanh(value) if abs(value) < 1 else math.nan


ELEMENTWISE: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "acos": _or_nan(math.acos),
    "acosh": _or_nan(math.acosh),
    "asin": _or_nan(math.asin),
    "asinh": math.asinh,
    "atan": math.atan,
    "atanh": _atanh,
    "ceil": floats.ceil,
    "cos": _or_nan(math.cos),
    "cosh": _overflowing(math.cosh),
    "deg": lambda value: value * 180 / math.pi,
    "exp": _overflowing(math.exp),
    "floor": floats.floor,
    "ln": floats.logarithm(math.log),
    "log2": floats.logarithm(math.log2),
    "log10": floats.logarithm(math.log10),
    "rad": lambda value: value * math.pi / 180,
    "sgn": floats.sign,
    "sin": _or_nan(math.sin),
    "sinh": _overflowing(math.sinh, odd=True),
    "sqrt": floats.sqrt,
    "tan": _or_nan(math.tan),
    "tanh": math.tanh,
}
