"""Instant and range selectors and subqueries' windows: from the parser's nodes to reads of the source."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkg_otel.alerting.promql.matchers import Matcher, MatchOperator
from llmkg_otel.alerting.promql.parse import shorten
from llmkg_otel.alerting.promql.plans import RangePlan, Traits, VectorPlan, combined
from llmkg_otel.alerting.promql.values import METRIC_NAME, Labels, Vector, Window, labels_of
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql.evaluation import Moment

__all__ = ["Place", "instant_selector", "milliseconds", "place_of", "range_selector", "timestamp_selector"]

LOOKBACK_MS = 300_000
"""How old an instant selector's sample may be: Prometheus' default of five minutes."""

_LONGEST = timedelta(microseconds=2**63 // 1000)  # Go's durations are 64 bits of nanoseconds
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OPERATORS: dict[str, MatchOperator] = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


class Place(NamedTuple):
    """Where in time a selector or subquery looks: its offset, and what stands after @ (None: nothing)."""

    offset: int
    at: int | str | None

    def end(self, moment: Moment) -> int:
        """Return the instant it looks back from."""
        if self.at is None:
            return moment.at - self.offset
        if isinstance(self.at, str):  # start() and end() are both the instant of an instant query
            return moment.evaluation.at - self.offset
        return self.at - self.offset

    def reach(self, width: float) -> float:
        """Return how far before the evaluation a window of this width can begin."""
        return float("inf") if isinstance(self.at, int) else max(0, self.offset + width)


class _Selector(NamedTuple):
    name: str | None
    matchers: tuple[Matcher, ...]
    place: Place

    def traits(self, what: str, width: int) -> Traits:
        told = [(each.name, each.operator, each.value) for each in self.matchers]
        traits = combined(f"{what} {self.name!r} {told} {self.place.at} {self.place.offset}", ())
        reads = None if self.name is None else frozenset({self.name})
        fill = width if what.startswith("range") else 0
        return Traits(traits.key, self.place.reach(width), reads, self.place.reach(fill))


def instant_selector(node: Any) -> VectorPlan:
    """Compile `name{matchers} @ t offset d`."""
    selector = _selector(node)
    name, matchers, place = selector

    def run(moment: Moment) -> Vector:
        source = moment.evaluation.source
        vector = source.instant(name, matchers, place.end(moment) / 1000, LOOKBACK_MS / 1000)
        moment.evaluation.spend(len(vector))
        return vector

    return VectorPlan(run, selector.traits("instant", LOOKBACK_MS), absent_labels(matchers))


def timestamp_selector(node: Any) -> VectorPlan:
    """Compile what timestamp() of a selector reads: its samples' own times.

    With @ Prometheus 3.5 forgets the offset here, and yet its storage gives it only samples of the times
    that the offset says (rangeEvalTimestampFunctionOverVectorSelector, getTimeRangesForSelector): so the
    newest sample counts that both would show.
    """
    selector = _selector(node)
    name, matchers, place = selector
    lookback = LOOKBACK_MS
    if place.at is not None:
        lookback -= abs(place.offset)
        place = place._replace(offset=max(0, place.offset))

    def run(moment: Moment) -> Vector:
        source = moment.evaluation.source
        vector = source.timestamps(name, matchers, place.end(moment) / 1000, lookback / 1000)
        moment.evaluation.spend(len(vector))
        return vector

    return VectorPlan(run, selector.traits("timestamps", LOOKBACK_MS))


def range_selector(node: Any) -> RangePlan:
    """Compile `name{matchers}[range] @ t offset d`."""
    selector = _selector(node.vector_selector)
    name, matchers, place = selector
    width = milliseconds(node.range, node)

    def run(moment: Moment) -> Window:
        end = place.end(moment)
        start = end - width
        series = moment.evaluation.source.range(name, matchers, start / 1000, end / 1000)
        moment.evaluation.spend(sum([len(times) for _, times, _, _ in series]))
        return Window(series, start, end)

    return RangePlan(run, selector.traits(f"range {width}", width), absent_labels(matchers))


def place_of(node: Any) -> Place:
    """Return a selector's or subquery's offset and @ modifier."""
    offset = 0 if node.offset is None else milliseconds(node.offset, node)
    modifier = node.at
    if modifier is None:
        return Place(offset, None)
    kind = str(modifier.type).rpartition(".")[2].lower()
    if kind in ("start", "end"):
        return Place(offset, "now")
    try:
        return Place(offset, milliseconds(modifier.at - _EPOCH, node))
    except (OverflowError, ValueError):
        raise ConfigurationError(f"the time after @ is out of bounds, in {shorten(str(node))}") from None


def milliseconds(duration: timedelta, node: Any) -> int:
    """Return a duration of the parser's in whole milliseconds, Prometheus' unit of time."""
    if abs(duration) > _LONGEST:
        raise ConfigurationError(f"a duration is out of range, in {shorten(str(node))}")
    return -(-duration // _MILLISECOND) if duration < timedelta(0) else duration // _MILLISECOND


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


def _selector(node: Any) -> _Selector:
    if node.matchers.or_matchers:
        raise ConfigurationError(f"matchers joined with or are not PromQL: {shorten(str(node))}")
    matchers = tuple(
        Matcher(item.name, _OPERATORS[str(item.op)], item.value) for item in node.matchers.matchers
    )
    named = [each.value for each in matchers if each.name == METRIC_NAME and each.operator == "="]
    return _Selector(node.name or (named[0] if named else None), matchers, place_of(node))
