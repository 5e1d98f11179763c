"""What an expression can still yield while some of its parts lack samples that they look back on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.plans import ScalarPlan, VectorPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.alerting.promql.evaluation import Moment
    from llmkg_otel.alerting.promql.plans import Traits
    from llmkg_otel.alerting.promql.values import Vector

__all__ = ["possible"]


def possible(
    plan: ScalarPlan | VectorPlan, moment: Moment, is_filled: Callable[[Traits], bool]
) -> Vector | None:
    """Return the samples beyond which the plan has none once it is filled; None: no bound is known."""
    if isinstance(plan, VectorPlan) and is_filled(plan.traits):
        return plan.run(moment)
    if isinstance(plan, ScalarPlan) or plan.sides is None:
        return None
    sides = plan.sides
    left, right = (possible(side, moment, is_filled) for side in (sides.left, sides.right))
    if sides.operator == "or":
        return None if left is None or right is None else [*left, *right]
    if left is not None:
        return left if right is None else sides.combine(left, right)
    return right if sides.on_all or not right else None  # the labels of the result are the left side's
