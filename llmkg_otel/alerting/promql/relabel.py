"""label_replace and label_join, and count_values, which also makes a label.

Source: Prometheus 3.5 `promql/functions.go` and `promql/engine.go`, aggregationCountValues.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.plans import VectorPlan
from llmkg_otel.alerting.promql.regex import Pattern
from llmkg_otel.alerting.promql.values import EvaluationError, Labels, Sample, Vector, label_value, labels_of
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmkg_otel.alerting.promql.aggregate import Grouping
    from llmkg_otel.alerting.promql.evaluation import Moment
    from llmkg_otel.alerting.promql.plans import Traits

__all__ = ["count_values", "label_join", "label_replace"]

_LONGEST_VALUE = 16 * 1024  # a rule that reads its own output may double a label at every evaluation


def label_replace(plan: VectorPlan, texts: Sequence[str], traits: Traits) -> VectorPlan:
    """Compile `label_replace(v, dst, replacement, src, regex)`."""
    target, template, source, regex = texts
    expand = Pattern(regex).replacement(template)
    return _relabelled(plan, target, lambda labels: expand(label_value(labels, source)), traits)


def label_join(plan: VectorPlan, texts: Sequence[str], traits: Traits) -> VectorPlan:
    """Compile `label_join(v, dst, separator, src, ...)`."""
    target, separator, *sources = texts
    for source in sources:
        _check_name(source)
    return _relabelled(
        plan, target, lambda labels: separator.join(label_value(labels, source) for source in sources), traits
    )


def _relabelled(
    plan: VectorPlan, target: str, value_of: Callable[[Labels], str | None], traits: Traits
) -> VectorPlan:
    _check_name(target)

    def run(moment: Moment) -> Vector:
        before = plan.run(moment)
        after = [Sample(_with(labels, target, value_of(labels)), value) for labels, value in before]
        return moment.distinct(traits.key, [labels for labels, _ in before], after)

    return VectorPlan(run, traits)


def count_values(plan: VectorPlan, grouping: Grouping, label: str, traits: Traits) -> VectorPlan:
    """Compile how many samples of each group have each value; the value becomes a label."""
    _check_name(label)
    grouping = grouping if grouping.without else grouping.also(label)

    def run(moment: Moment) -> Vector:
        counts: dict[Labels, int] = {}
        for labels, value in plan.run(moment):
            group = grouping.key(_with(labels, label, _positional(value)))
            counts[group] = counts.get(group, 0) + 1
        return [Sample(labels, float(count)) for labels, count in counts.items()]

    return VectorPlan(run, traits)


def _with(labels: Labels, name: str, value: str | None) -> Labels:
    if value is None:
        return labels
    if len(value) > _LONGEST_VALUE:
        raise EvaluationError(
            f"label {name} would have {len(value):,} characters; at most {_LONGEST_VALUE:,}"
        )
    return labels_of(dict(labels) | {name: value})


def _positional(value: float) -> str:
    """Return a float without an exponent, in the shortest digits that give it back."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf")
    return f"{Decimal(repr(value)).normalize():f}"


def _check_name(name: str) -> None:
    if not name:
        raise ConfigurationError("a label's name cannot be empty")
