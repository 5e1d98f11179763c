"""PromQL in process: Prometheus 3.x semantics for instant evaluation, refused at load where not exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.compiler import compile_node
from llmkg_otel.alerting.promql.evaluation import Evaluation, Moment, SharedResults
from llmkg_otel.alerting.promql.matchers import Matcher
from llmkg_otel.alerting.promql.parse import parse_text, shorten
from llmkg_otel.alerting.promql.plans import ScalarPlan, Traits, VectorPlan
from llmkg_otel.alerting.promql.possible import possible
from llmkg_otel.alerting.promql.values import EvaluationError, Labels, Sample, Source, Vector
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EvaluationError",
    "Expression",
    "Labels",
    "Matcher",
    "Sample",
    "SharedResults",
    "Source",
    "Traits",
]


@dataclass(frozen=True, slots=True)
class Expression:
    """One PromQL expression, parsed and compiled once; immutable and thread-safe.

    Raises ConfigurationError, with the part of the expression, when `text` is not PromQL, when it uses
    what is not supported (never a silently wrong answer), or when it yields a range.
    """

    text: str
    _plan: ScalarPlan | VectorPlan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plan = compile_node(parse_text(self.text))
        if not isinstance(plan, ScalarPlan | VectorPlan):
            raise ConfigurationError(f"a rule needs a number or an instant vector, not {shorten(self.text)}")
        object.__setattr__(self, "_plan", plan)

    @property
    def lookback_seconds(self) -> float:
        """How far before the evaluation its oldest sample can be, in seconds; infinite for `@` a time."""
        return self._plan.traits.reach / 1000

    @property
    def traits(self) -> Traits:
        """What is known of it before it is evaluated."""
        return self._plan.traits

    @property
    def reads(self) -> frozenset[str] | None:
        """The names of the metrics that it selects; None when a selector has no name."""
        return self._plan.traits.reads

    def evaluate(
        self, source: Source, at: float, *, step_seconds: float = 60.0, shared: SharedResults | None = None
    ) -> Vector:
        """Return the instant vector at `at` (seconds since the epoch); a number is one sample without labels.

        `step_seconds` (at least 0.001) is the step of a subquery that has none: the evaluation interval.
        Expressions that are evaluated at the same `at` on the same samples may share one `shared` (None:
        nothing is shared), which is then theirs alone.

        Raises EvaluationError where Prometheus would fail the rule: duplicate label sets, many-to-many
        matches; and when it would read more than 2,000,000 samples and steps of subqueries.
        """
        moment = _moment(source, at, step_seconds, shared)
        if isinstance(self._plan, ScalarPlan):
            return [Sample((), self._plan.run(moment))]
        return self._plan.run(moment)

    def possible(
        self, source: Source, at: float, is_filled: Callable[[Traits], bool], *, step_seconds: float = 60.0
    ) -> Vector | None:
        """Return the most it can yield at `at` once all samples are there; None when that is anything.

        `is_filled` says of a part whether all the samples that it looks back on are there already: one side
        of an `and` rules out what it does not have, whatever the other will say.
        """
        return possible(self._plan, _moment(source, at, step_seconds, None), is_filled)


def _moment(source: Source, at: float, step_seconds: float, shared: SharedResults | None) -> Moment:
    evaluation = Evaluation(source, round(at * 1000), max(1, round(step_seconds * 1000)), shared)
    return Moment(evaluation, evaluation.at)
