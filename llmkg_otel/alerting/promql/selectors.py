"""Instant and range selectors: from the parser's nodes to reads of the source."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from llmkg_otel.alerting.promql.matchers import Matcher, MatchOperator
from llmkg_otel.alerting.promql.parse import shorten
from llmkg_otel.alerting.promql.plans import RangePlan, VectorPlan
from llmkg_otel.alerting.promql.values import METRIC_NAME, Labels, Moment, Vector, Window, labels_of
from llmkg_otel.errors import ConfigurationError

__all__ = ["LOOKBACK_MS", "instant_selector", "range_selector"]

LOOKBACK_MS = 300_000
"""How old an instant selector's sample may be: Prometheus' default of five minutes."""

_OPERATORS: dict[str, MatchOperator] = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


def instant_selector(node: Any) -> VectorPlan:
    """Compile `name{matchers} offset d`."""
    name, matchers, offset = _parts(node)

    def run(moment: Moment) -> Vector:
        return moment.source.instant(name, matchers, (moment.at - offset) / 1000, LOOKBACK_MS / 1000)

    return VectorPlan(run, max(0, offset + LOOKBACK_MS), absent_labels(matchers))


def range_selector(node: Any) -> RangePlan:
    """Compile `name{matchers}[range] offset d`."""
    name, matchers, offset = _parts(node.vector_selector)
    width = milliseconds(node.range)

    def run(moment: Moment) -> Window:
        end = moment.at - offset
        start = end - width
        return Window(moment.source.range(name, matchers, start / 1000, end / 1000), start, end)

    return RangePlan(run, max(0, offset + width), absent_labels(matchers))


def milliseconds(duration: timedelta) -> int:
    """Return a duration of the parser's in whole milliseconds, Prometheus' unit of time."""
    return duration // timedelta(milliseconds=1)


def absent_labels(matchers: tuple[Matcher, ...]) -> Labels:
    """Return what absent() can say: labels that exactly one `=` matcher names."""
    found: dict[str, str] = {}
    seen = set[str]()
    for matcher in matchers:
        if matcher.name == METRIC_NAME:
            continue
        if matcher.operator == "=" and matcher.name not in seen:
            found[matcher.name] = matcher.value
            seen.add(matcher.name)
        else:
            found.pop(matcher.name, None)
    return labels_of(found)


def _parts(node: Any) -> tuple[str | None, tuple[Matcher, ...], int]:
    if node.at is not None:
        raise ConfigurationError(f"not supported yet: the @ modifier, in {shorten(str(node))}")
    if node.matchers.or_matchers:
        raise ConfigurationError(f"matchers joined with or are not PromQL: {shorten(str(node))}")
    matchers = tuple(
        Matcher(item.name, _OPERATORS[str(item.op)], item.value) for item in node.matchers.matchers
    )
    return node.name, matchers, 0 if node.offset is None else milliseconds(node.offset)
