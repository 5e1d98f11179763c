"""The books: what the clients noted against what the server exported. Pure functions.

A call counts as sent when the server answered it or ended a span of it. A call without either met a
closed listener: the server cannot have counted it, so it is listed apart as `never_arrived`. That is
decided by the call's own trace id, not by what the client guesses from a broken connection. A call
that arrived and got no answer is a failed check: a shutdown must not do that.

Spans with a trace id that is nobody's are of other clients (somebody tried the server while it
ran). They are counted, as `foreign`, on the side of the clients, and are in order only when expected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkg_otel.demo.clients import ENGINE_ERROR, OK, UNANSWERED
from llmkg_otel.demo.questions import TOOLS
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmkg_otel.demo.clients import CallRecord
    from llmkg_otel.engine.protocol import Fact
    from llmkg_otel.testing.records import Attributes, Point, SpanRecord

__all__ = ["Books", "Check", "balance", "is_tool_call", "outcomes_in", "quantile"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the books: what must hold, whether it does, and the numbers behind it."""

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Books:
    """The balance. `by_outcome` maps each outcome to (as the clients saw it, as the metric has it)."""

    sent: int
    metric: int
    spans: int
    never_arrived: int
    foreign: int
    by_outcome: Mapping[str, tuple[int, int]]
    checks: tuple[Check, ...]

    @property
    def balanced(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


def is_tool_call(span: SpanRecord) -> bool:
    """Say whether a span is FastMCP's server span of a call to one of the demo's tools.

    A call refused early may leave the span without the tool's name, so a missing name counts.
    """
    tool = span.attributes.get(semconv.TOOL_NAME)
    method = span.attributes.get(semconv.MCP_METHOD)
    server_span = span.scope == "fastmcp" and span.kind == "SERVER" and method == "tools/call"
    return server_span and (tool is None or tool in TOOLS)


def outcomes_in(durations: Mapping[Attributes, Point]) -> Counter[str]:
    """Return calls by outcome from `llmkg.operation.duration`, in the words that clients are given.

    ok, or our reason. Anything else in `error.type` is the class of an exception of the engine's, which
    an agent is not told: to it they are all engine_error.
    """
    found: Counter[str] = Counter()
    for key, point in durations.items():
        attributes = dict(key)
        if attributes.get(semconv.OPERATION_NAME) in TOOLS:
            kind = str(attributes.get(semconv.ERROR_TYPE, OK))
            found[kind if kind.islower() else ENGINE_ERROR] += point.count
    return found


def balance(
    calls: Sequence[CallRecord],
    durations: Mapping[Attributes, Point],
    spans: Sequence[SpanRecord],
    *,
    missing: Sequence[Fact] = (),
    foreign_expected: bool = False,
) -> Books:
    """Balance the clients' calls, the metric and the tool-call spans; `missing` facts fail a check."""
    per_trace = Counter(span.trace_id for span in spans)
    ours = {call.trace_id for call in calls}
    answered = Counter(call.outcome for call in calls if call.outcome != UNANSWERED)
    unanswered = [call for call in calls if call.outcome == UNANSWERED]
    cut = sum(call.trace_id in per_trace for call in unanswered)
    foreign = sum(count for trace_id, count in per_trace.items() if trace_id not in ours)
    sent = answered.total() + cut
    recorded = outcomes_in(durations)
    one_to_one = sum(per_trace[call.trace_id] == 1 for call in calls if call.outcome != UNANSWERED)
    by_outcome = {name: (answered[name], recorded[name]) for name in sorted(answered | recorded)}
    checks = (
        _equal("calls sent = outcomes in the metric", sent + foreign, recorded.total()),
        _equal("calls sent = spans ended", sent + foreign, len(spans)),
        _equal("each answered call has one span", answered.total(), one_to_one),
        Check("each outcome agrees", *_agreement(by_outcome, cut + foreign)),
        Check("no call that arrived was cut off", cut == 0, f"{cut} cut off"),
        Check("no other client", foreign == 0 or foreign_expected, f"{foreign} other calls"),
        Check("every acknowledged fact is stored", not missing, f"{len(missing)} missing"),
    )
    never_arrived = len(unanswered) - cut
    return Books(sent, recorded.total(), len(spans), never_arrived, foreign, by_outcome, checks)


def _equal(name: str, left: int, right: int) -> Check:
    return Check(name, left == right, f"{left:,} and {right:,}")


def _agreement(by_outcome: Mapping[str, tuple[int, int]], unknown: int) -> tuple[bool, str]:
    """Compare both sides; the server may exceed only by calls whose outcome no client of ours saw."""
    off = {name: (seen, had) for name, (seen, had) in by_outcome.items() if seen != had}
    excess = sum(had - seen for seen, had in off.values())
    holds = all(had > seen for seen, had in off.values()) and excess == unknown
    return holds, ", ".join(f"{name} {seen:,} and {had:,}" for name, (seen, had) in off.items()) or "all"


def quantile(durations: Mapping[Attributes, Point], q: float) -> float | None:
    """Return a quantile (`q` in [0, 1]) of the calls that went well, in seconds; None without any.

    Linear within a bucket, as Prometheus' histogram_quantile does it; above the last bound, that bound.
    """
    points = [
        point
        for key, point in durations.items()
        if semconv.ERROR_TYPE not in dict(key) and dict(key).get(semconv.OPERATION_NAME) in TOOLS
    ]
    columns = zip(*(point.bucket_counts for point in points), strict=True)
    counts: list[int] = [sum(column) for column in columns]
    bounds: tuple[float, ...] = points[0].bounds if points else ()
    rank, below = q * sum(counts), 0
    if not sum(counts):
        return None
    for index, bound in enumerate(bounds):
        if below + counts[index] >= rank and counts[index]:
            floor = bounds[index - 1] if index else 0.0
            return floor + (bound - floor) * (rank - below) / counts[index]
        below += counts[index]
    return bounds[-1] if bounds else None
