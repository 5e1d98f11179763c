"""Functions of a range vector: the rate family, `*_over_time`, changes, resets and linear regression.

Source: Prometheus 3.5 `promql/functions.go`. Times are milliseconds; a window is (start, end].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.floats import CompensatedSum, divide, mean, quantile, sqrt, total
from llmkg_otel.alerting.promql.plans import RangePlan, ScalarPlan, Traits, VectorPlan
from llmkg_otel.alerting.promql.values import Sample, Series, Vector, Window, unique, without_name

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql.evaluation import Moment

__all__ = ["RANGE_FUNCTIONS", "absent_over_time", "apply_range", "predict_linear", "quantile_over_time"]

RangeFunction = Callable[[Series, Window], float | None]
"""One series with at least one point, and its window; None leaves the series out."""


def apply_range(name: str, plan: RangePlan, traits: Traits) -> VectorPlan:
    """Compile a function of one range; all but last_over_time drop the metric's name."""
    function = RANGE_FUNCTIONS[name]
    return _each(plan, lambda _: function, traits, keep_name=name == "last_over_time")


def _each(
    plan: RangePlan,
    function_at: Callable[[Moment], RangeFunction],
    traits: Traits,
    *,
    keep_name: bool = False,
) -> VectorPlan:
    def run(moment: Moment) -> Vector:
        function = function_at(moment)
        window = plan.run(moment)
        origins, result = [], []
        for series in window.series:
            value = function(series, window)
            if value is not None:
                labels = series.labels
                origins.append(labels)
                result.append(Sample(labels if keep_name else without_name(labels), value))
        return unique(result) if moment.trail is None else moment.distinct(traits.key, origins, result)

    return VectorPlan(run, traits)


def quantile_over_time(q: ScalarPlan, plan: RangePlan, traits: Traits) -> VectorPlan:
    """Compile the q-quantile of each series' values."""

    def function_at(moment: Moment) -> RangeFunction:
        rank = q.run(moment)
        return lambda series, _: quantile(rank, series.values)

    return _each(plan, function_at, traits)


def predict_linear(plan: RangePlan, seconds: ScalarPlan, traits: Traits) -> VectorPlan:
    """Compile the value that the regression line has `seconds` after the evaluation."""

    def function_at(moment: Moment) -> RangeFunction:
        ahead = seconds.run(moment)

        def predict(series: Series, _: Window) -> float | None:
            if len(series.values) < 2:
                return None
            slope, intercept = _regression(series.times, series.values, moment.at)
            return slope * ahead + intercept

        return predict

    return _each(plan, function_at, traits)


def absent_over_time(plan: RangePlan, traits: Traits) -> VectorPlan:
    """Compile 1 with the selector's own labels when no series has a point in the window."""

    def run(moment: Moment) -> Vector:
        return [] if plan.run(moment).series else [Sample(plan.absent_labels, 1.0)]

    return VectorPlan(run, traits)


def _extrapolated(*, counter: bool, per_second: bool) -> RangeFunction:
    """Scale the growth between first and last point to the whole window.

    Up to the window's edge when the gap there is under 1.1 average distances, else by half a distance;
    and never further back than where a counter would have been zero.
    """

    def apply(series: Series, window: Window) -> float | None:
        times, values = series.times, series.values
        if len(values) < 2:
            return None
        growth = values[-1] - values[0]
        if counter and not series.monotonic:
            for before, after in _pairs(values):
                if after < before:
                    growth += before
        sampled = (times[-1] - times[0]) / 1000
        distance = sampled / (len(values) - 1)
        to_start, to_end = (times[0] - window.start) / 1000, (window.end - times[-1]) / 1000
        if to_start >= distance * 1.1:
            to_start = distance / 2
        if counter and growth > 0 and values[0] >= 0:
            to_start = min(to_start, sampled * (values[0] / growth))
        if to_end >= distance * 1.1:
            to_end = distance / 2
        factor = (sampled + to_start + to_end) / sampled
        if per_second:
            factor /= (window.end - window.start) / 1000
        return growth * factor

    return apply


def _pairs(values: Sequence[float]) -> Iterable[tuple[float, float]]:
    return itertools.pairwise(values)


def _last_two(*, counter: bool, per_second: bool) -> RangeFunction:
    def apply(series: Series, _: Window) -> float | None:
        times, values = series.times, series.values
        if len(values) < 2:
            return None
        before, after = values[-2], values[-1]
        change = after if counter and after < before else after - before
        return change / ((times[-1] - times[-2]) / 1000) if per_second else change

    return apply


def _extreme(
    of: Callable[[Sequence[float]], float], better: Callable[[float, float], bool]
) -> Callable[[Sequence[float]], float]:
    def apply(values: Sequence[float]) -> float:
        if not math.isnan(sum(values)):
            return of(values)
        best = values[0]
        for value in values:
            if better(value, best) or math.isnan(best):
                best = value
        return best

    return apply


def _variance(values: Sequence[float]) -> float:
    average, squares = CompensatedSum(), CompensatedSum()
    for count, value in enumerate(values, start=1):
        delta = value - (average.sum + average.lost)
        average.add(delta / count)
        squares.add(delta * (value - (average.sum + average.lost)))
    return (squares.sum + squares.lost) / len(values)


def _changes(values: Sequence[float]) -> float:
    return float(
        sum(
            after != before and not (math.isnan(after) and math.isnan(before))
            for before, after in _pairs(values)
        )
    )


def _regression(times: Sequence[int], values: Sequence[float], origin: int) -> tuple[float, float]:
    """Return slope and intercept at `origin`, by least squares with compensated sums."""
    if all(value == values[0] for value in values[1:]):
        return (math.nan, math.nan) if math.isinf(values[0]) else (0.0, values[0])
    count = float(len(values))
    xs = [(time - origin) / 1000 for time in times]
    sum_x, sum_y = total(xs), total(values)
    sum_xy = total([x * y for x, y in zip(xs, values, strict=True)])
    sum_xx = total([x * x for x in xs])
    slope = divide(sum_xy - sum_x * sum_y / count, sum_xx - sum_x * sum_x / count)
    return slope, sum_y / count - slope * sum_x / count


def _deriv(series: Series, _: Window) -> float | None:
    if len(series.values) < 2:
        return None
    return _regression(series.times, series.values, series.times[0])[0]


def _of_values(function: Callable[[Sequence[float]], float]) -> RangeFunction:
    return lambda series, _: function(series.values)


RANGE_FUNCTIONS: dict[str, RangeFunction] = {
    "rate": _extrapolated(counter=True, per_second=True),
    "increase": _extrapolated(counter=True, per_second=False),
    "delta": _extrapolated(counter=False, per_second=False),
    "irate": _last_two(counter=True, per_second=True),
    "idelta": _last_two(counter=False, per_second=False),
    "deriv": _deriv,
    "avg_over_time": _of_values(mean),
    "min_over_time": _of_values(_extreme(min, lambda value, best: value < best)),
    "max_over_time": _of_values(_extreme(max, lambda value, best: value > best)),
    "sum_over_time": _of_values(total),
    "count_over_time": _of_values(lambda values: float(len(values))),
    "last_over_time": _of_values(lambda values: values[-1]),
    "present_over_time": _of_values(lambda _: 1.0),
    "stdvar_over_time": _of_values(_variance),
    "stddev_over_time": _of_values(lambda values: sqrt(_variance(values))),
    "changes": _of_values(_changes),
    "resets": _of_values(lambda values: float(sum(after < before for before, after in _pairs(values)))),
}
