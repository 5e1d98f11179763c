"""What an expression compiles to: closures over one evaluation's moment, by the type they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.alerting.promql.values import Moment, Vector, Window

__all__ = ["Plan", "RangePlan", "ScalarPlan", "VectorPlan"]


@dataclass(frozen=True, slots=True)
class ScalarPlan:
    """Gives one number; `reach` is how many milliseconds before the evaluation its samples can be."""

    run: Callable[[Moment], float]
    reach: int = 0


@dataclass(frozen=True, slots=True)
class VectorPlan:
    """Gives an instant vector. `absent_labels` are what absent() answers with for this selector."""

    run: Callable[[Moment], Vector]
    reach: int
    absent_labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RangePlan:
    """Gives each series' points in a window; only a range function can consume it."""

    run: Callable[[Moment], Window]
    reach: int
    absent_labels: tuple[tuple[str, str], ...] = ()


Plan = ScalarPlan | VectorPlan | RangePlan
