"""Subqueries: an instant vector evaluated at every step of a window.

Source: Prometheus 3.5 `promql/engine.go`, evalSubquery. Steps are multiples of the step since the epoch.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.promql.evaluation import MAX_SAMPLES, Moment, Trail
from llmkg_otel.alerting.promql.parse import shorten
from llmkg_otel.alerting.promql.plans import RangePlan, Traits, VectorPlan, combined
from llmkg_otel.alerting.promql.selectors import milliseconds, place_of
from llmkg_otel.alerting.promql.values import Labels, Series, Vector, Window
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["subquery"]


def subquery(node: Any, inner: VectorPlan) -> RangePlan:
    """Compile `inner[range:step] @ t offset d`; without a step it is the evaluation interval.

    Raises ConfigurationError when it has more steps than an expression may take.
    """
    place, width = place_of(node), milliseconds(node.range, node)
    step = None if node.step is None else milliseconds(node.step, node)
    if step is not None and (step < 1 or width // step > MAX_SAMPLES):
        raise ConfigurationError(f"the subquery has more than {MAX_SAMPLES:,} steps: {shorten(str(node))}")

    def run(moment: Moment) -> Window:
        end = place.end(moment)
        start = end - width
        every = moment.evaluation.step if step is None else step
        steps = range((start // every + 1) * every, end + 1, every)
        moment.evaluation.spend(len(steps))
        return Window(_gather(inner, moment, steps), start, end)

    key = f"{inner.traits.key}[{width}:{step}] {place.at} {place.offset}"
    traits = combined(key, [inner])
    reach, fill = (place.reach(width + inner) for inner in (traits.reach, traits.fill))
    return RangePlan(run, Traits(traits.key, reach, traits.reads, fill))


def _gather(inner: VectorPlan, moment: Moment, steps: Iterable[int]) -> list[Series]:
    trail = Trail() if moment.trail is None else moment.trail
    gathered: dict[Labels, tuple[array[int], array[float]]] = {}
    for at in steps:
        vector = _vector(inner, Moment(moment.evaluation, at, trail), nested=moment.trail is not None)
        for labels, value in vector:
            points = gathered.get(labels)
            if points is None:
                points = gathered[labels] = (array("q"), array("d"))
            points[0].append(at)
            points[1].append(value)
    return [Series(labels, times, values) for labels, (times, values) in gathered.items()]


def _vector(inner: VectorPlan, moment: Moment, *, nested: bool) -> Vector:
    if not nested or moment.trail is None:
        return inner.run(moment)
    key = inner.traits.key, moment.at
    vector = moment.trail.vectors.get(key)
    if vector is None:
        vector = moment.trail.vectors[key] = inner.run(moment)
    return vector
