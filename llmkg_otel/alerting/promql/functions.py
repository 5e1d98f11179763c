"""Functions of instant vectors and numbers, each from its compiled arguments to a plan.

Source: Prometheus 3.5 `promql/functions.go`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from llmkg_otel.alerting.promql import floats
from llmkg_otel.alerting.promql.histogram import histogram_quantile
from llmkg_otel.alerting.promql.plans import Plan, RangePlan, ScalarPlan, VectorPlan
from llmkg_otel.alerting.promql.ranges import (
    RANGE_FUNCTIONS,
    absent_over_time,
    apply_range,
    predict_linear,
    quantile_over_time,
)
from llmkg_otel.alerting.promql.values import Moment, Sample, Vector, unique, without_name

__all__ = ["FUNCTIONS"]

Builder = Callable[[Sequence[Plan]], Plan]
"""The parser has checked the number and types of the arguments, so each builder may rely on them."""

ELEMENTWISE: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "ceil": floats.ceil,
    "floor": floats.floor,
    "exp": floats.exp,
    "ln": floats.logarithm(math.log),
    "log2": floats.logarithm(math.log2),
    "log10": floats.logarithm(math.log10),
    "sqrt": floats.sqrt,
    "sgn": floats.sign,
}


def _vector(plan: Plan) -> VectorPlan:
    return cast("VectorPlan", plan)


def _scalar(plan: Plan) -> ScalarPlan:
    return cast("ScalarPlan", plan)


def _range(plan: Plan) -> RangePlan:
    return cast("RangePlan", plan)


def each(plan: VectorPlan, function: Callable[[float], float]) -> VectorPlan:
    """Compile a function of every value; the metric's name is dropped."""
    return VectorPlan(lambda moment: _mapped(plan.run(moment), function), plan.reach)


def _mapped(vector: Vector, function: Callable[[float], float]) -> Vector:
    return unique([Sample(without_name(labels), function(value)) for labels, value in vector])


def _time(_: Sequence[Plan]) -> Plan:
    return ScalarPlan(lambda moment: moment.at / 1000)


def _vector_of(arguments: Sequence[Plan]) -> Plan:
    number = _scalar(arguments[0])
    return VectorPlan(lambda moment: [Sample((), number.run(moment))], number.reach)


def _scalar_of(arguments: Sequence[Plan]) -> Plan:
    plan = _vector(arguments[0])

    def run(moment: Moment) -> float:
        vector = plan.run(moment)
        return vector[0].value if len(vector) == 1 else math.nan

    return ScalarPlan(run, plan.reach)


def _absent(arguments: Sequence[Plan]) -> Plan:
    plan = _vector(arguments[0])
    return VectorPlan(
        lambda moment: [] if plan.run(moment) else [Sample(plan.absent_labels, 1.0)], plan.reach
    )


def _clamp(plan: VectorPlan, low: ScalarPlan, high: ScalarPlan) -> Plan:
    def run(moment: Moment) -> Vector:
        least, most = low.run(moment), high.run(moment)
        if most < least:
            return []
        return _mapped(plan.run(moment), lambda value: floats.larger(least, floats.smaller(most, value)))

    return VectorPlan(run, max(plan.reach, low.reach, high.reach))


def _round(arguments: Sequence[Plan]) -> Plan:
    plan = _vector(arguments[0])
    nearest = _scalar(arguments[1]) if len(arguments) > 1 else ScalarPlan(lambda _: 1.0)

    def run(moment: Moment) -> Vector:
        inverse = floats.divide(1.0, nearest.run(moment))
        return _mapped(
            plan.run(moment), lambda value: floats.divide(floats.floor(value * inverse + 0.5), inverse)
        )

    return VectorPlan(run, max(plan.reach, nearest.reach))


def _histogram_quantile(arguments: Sequence[Plan]) -> Plan:
    q, plan = _scalar(arguments[0]), _vector(arguments[1])
    return VectorPlan(
        lambda moment: histogram_quantile(q.run(moment), plan.run(moment)), max(q.reach, plan.reach)
    )


def _elementwise(name: str) -> Builder:
    return lambda arguments: each(_vector(arguments[0]), ELEMENTWISE[name])


def _of_range(name: str) -> Builder:
    return lambda arguments: apply_range(name, _range(arguments[0]))


_ALL = ScalarPlan(lambda _: math.inf)
_NONE = ScalarPlan(lambda _: -math.inf)

FUNCTIONS: dict[str, Builder] = {
    **{name: _elementwise(name) for name in ELEMENTWISE},
    **{name: _of_range(name) for name in RANGE_FUNCTIONS},
    "absent": _absent,
    "absent_over_time": lambda arguments: absent_over_time(_range(arguments[0])),
    "clamp": lambda a: _clamp(_vector(a[0]), _scalar(a[1]), _scalar(a[2])),
    "clamp_max": lambda a: _clamp(_vector(a[0]), _NONE, _scalar(a[1])),
    "clamp_min": lambda a: _clamp(_vector(a[0]), _scalar(a[1]), _ALL),
    "histogram_quantile": _histogram_quantile,
    "predict_linear": lambda a: predict_linear(_range(a[0]), _scalar(a[1])),
    "quantile_over_time": lambda a: quantile_over_time(_scalar(a[0]), _range(a[1])),
    "round": _round,
    "scalar": _scalar_of,
    "time": _time,
    "vector": _vector_of,
}
"""Every function that is evaluated; any other is refused when the rule is loaded."""
