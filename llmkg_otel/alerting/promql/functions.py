"""Functions of instant vectors, ranges, numbers and texts, each from its compiled arguments to a plan.

Source: Prometheus 3.5 `promql/functions.go`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from llmkg_otel.alerting.promql import floats, ranges, relabel
from llmkg_otel.alerting.promql.calendar import CALENDAR, seconds_of
from llmkg_otel.alerting.promql.elementwise import ELEMENTWISE
from llmkg_otel.alerting.promql.histogram import histogram_fraction, histogram_quantile
from llmkg_otel.alerting.promql.plans import Plan, RangePlan, ScalarPlan, TextPlan, Traits, VectorPlan
from llmkg_otel.alerting.promql.values import Sample, Vector, unique, without_name

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql.evaluation import Moment

__all__ = ["FUNCTIONS", "negated"]

Builder = Callable[[Sequence[Plan], Traits], Plan]
"""The parser has checked the number and types of the arguments, so each builder may rely on them."""


def _vector(plan: Plan) -> VectorPlan:
    return cast("VectorPlan", plan)


def _scalar(plan: Plan) -> ScalarPlan:
    return cast("ScalarPlan", plan)


def _range(plan: Plan) -> RangePlan:
    return cast("RangePlan", plan)


def _texts(plans: Sequence[Plan]) -> list[str]:
    return [cast("TextPlan", plan).text for plan in plans]


def negated(plan: VectorPlan, traits: Traits) -> VectorPlan:
    """Compile the unary minus."""

    def run(moment: Moment) -> Vector:
        before = plan.run(moment)
        after = [Sample(without_name(labels), -value) for labels, value in before]
        return moment.distinct(traits.key, [labels for labels, _ in before], after)

    return VectorPlan(run, traits)


def _mapped(vector: Vector, function: Callable[[float], float]) -> Vector:
    return unique([Sample(without_name(labels), function(value)) for labels, value in vector])


def _elementwise(function: Callable[[float], float]) -> Builder:
    def build(arguments: Sequence[Plan], traits: Traits) -> Plan:
        source = _vector(arguments[0]).run
        return VectorPlan(lambda moment: _mapped(source(moment), function), traits)

    return build


def _date(function: Callable[[int], int]) -> Builder:
    def now(moment: Moment) -> Vector:
        return [Sample((), float(function(int(moment.at / 1000))))]

    def build(arguments: Sequence[Plan], traits: Traits) -> Plan:
        if not arguments:
            return VectorPlan(now, traits)
        return _elementwise(lambda value: float(function(seconds_of(value))))(arguments, traits)

    return build


def _vector_of(arguments: Sequence[Plan], traits: Traits) -> Plan:
    number = _scalar(arguments[0]).run
    return VectorPlan(lambda moment: [Sample((), number(moment))], traits)


def _scalar_of(arguments: Sequence[Plan], traits: Traits) -> Plan:
    source = _vector(arguments[0]).run

    def run(moment: Moment) -> float:
        vector = source(moment)
        return vector[0].value if len(vector) == 1 else math.nan

    return ScalarPlan(run, traits)


def _absent(arguments: Sequence[Plan], traits: Traits) -> Plan:
    plan = _vector(arguments[0])
    return VectorPlan(lambda moment: [] if plan.run(moment) else [Sample(plan.absent_labels, 1.0)], traits)


def _clamp(plan: VectorPlan, low: ScalarPlan, high: ScalarPlan, traits: Traits) -> Plan:
    def run(moment: Moment) -> Vector:
        vector, least, most = plan.run(moment), low.run(moment), high.run(moment)
        if most < least:
            return []
        return _mapped(vector, lambda value: floats.larger(least, floats.smaller(most, value)))

    return VectorPlan(run, traits)


def _round(arguments: Sequence[Plan], traits: Traits) -> Plan:
    source = _vector(arguments[0]).run
    nearest = _scalar(arguments[1]) if len(arguments) > 1 else _constant(1.0)

    def run(moment: Moment) -> Vector:
        inverse = floats.divide(1.0, nearest.run(moment))
        return _mapped(
            source(moment), lambda value: floats.divide(floats.floor(value * inverse + 0.5), inverse)
        )

    return VectorPlan(run, traits)


def _sorted(*, descending: bool) -> Builder:
    """NaN comes last in both; of equal values the order is not defined."""

    def rank(sample: Sample) -> tuple[bool, float]:
        return math.isnan(sample.value), -sample.value if descending else sample.value

    def build(arguments: Sequence[Plan], traits: Traits) -> Plan:
        source = _vector(arguments[0]).run
        return VectorPlan(lambda moment: sorted(source(moment), key=rank), traits)

    return build


def _timestamp(arguments: Sequence[Plan], traits: Traits) -> Plan:
    """Of a computed vector: its samples are as old as the evaluation. The compiler knows selectors."""
    source = _vector(arguments[0]).run
    return VectorPlan(lambda moment: _mapped(source(moment), lambda _: moment.at / 1000), traits)


def _histogram_quantile(arguments: Sequence[Plan], traits: Traits) -> Plan:
    q, source = _scalar(arguments[0]).run, _vector(arguments[1]).run
    return VectorPlan(lambda moment: histogram_quantile(q(moment), source(moment)), traits)


def _histogram_fraction(arguments: Sequence[Plan], traits: Traits) -> Plan:
    low, high, source = _scalar(arguments[0]).run, _scalar(arguments[1]).run, _vector(arguments[2]).run
    return VectorPlan(lambda moment: histogram_fraction(low(moment), high(moment), source(moment)), traits)


def _of_range(name: str) -> Builder:
    return lambda arguments, traits: ranges.apply_range(name, _range(arguments[0]), traits)


def _constant(number: float) -> ScalarPlan:
    return ScalarPlan(lambda _: number, Traits(""))


_ALL, _NONE = _constant(math.inf), _constant(-math.inf)

FUNCTIONS: dict[str, Builder] = {
    **{name: _elementwise(function) for name, function in ELEMENTWISE.items()},
    **{name: _date(function) for name, function in CALENDAR.items()},
    **{name: _of_range(name) for name in ranges.RANGE_FUNCTIONS},
    "absent": _absent,
    "absent_over_time": lambda a, traits: ranges.absent_over_time(_range(a[0]), traits),
    "clamp": lambda a, traits: _clamp(_vector(a[0]), _scalar(a[1]), _scalar(a[2]), traits),
    "clamp_max": lambda a, traits: _clamp(_vector(a[0]), _NONE, _scalar(a[1]), traits),
    "clamp_min": lambda a, traits: _clamp(_vector(a[0]), _scalar(a[1]), _ALL, traits),
    "histogram_fraction": _histogram_fraction,
    "histogram_quantile": _histogram_quantile,
    "label_join": lambda a, traits: relabel.label_join(_vector(a[0]), _texts(a[1:]), traits),
    "label_replace": lambda a, traits: relabel.label_replace(_vector(a[0]), _texts(a[1:]), traits),
    "pi": lambda _, traits: ScalarPlan(lambda _: math.pi, traits),
    "predict_linear": lambda a, traits: ranges.predict_linear(_range(a[0]), _scalar(a[1]), traits),
    "quantile_over_time": lambda a, traits: ranges.quantile_over_time(_scalar(a[0]), _range(a[1]), traits),
    "round": _round,
    "scalar": _scalar_of,
    "sort": _sorted(descending=False),
    "sort_desc": _sorted(descending=True),
    "time": lambda _, traits: ScalarPlan(lambda moment: moment.at / 1000, traits),
    "timestamp": _timestamp,
    "timestamp of a selector": _elementwise(lambda seconds: seconds),
    "vector": _vector_of,
}
"""Every function that is evaluated; any other is refused when the rule is loaded."""
