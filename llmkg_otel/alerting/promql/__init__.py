"""PromQL in process: Prometheus 3.x semantics for instant evaluation, refused at load where not exact."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmkg_otel.alerting.promql.compiler import compile_node
from llmkg_otel.alerting.promql.matchers import Matcher
from llmkg_otel.alerting.promql.parse import parse_text, shorten
from llmkg_otel.alerting.promql.plans import RangePlan, ScalarPlan, VectorPlan
from llmkg_otel.alerting.promql.values import EvaluationError, Labels, Moment, Sample, Source, Vector
from llmkg_otel.errors import ConfigurationError

__all__ = ["EvaluationError", "Expression", "Labels", "Matcher", "Sample", "Source"]


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
        if isinstance(plan, RangePlan):
            raise ConfigurationError(f"a rule needs a number or an instant vector, not {shorten(self.text)}")
        object.__setattr__(self, "_plan", plan)

    @property
    def lookback_seconds(self) -> float:
        """How far before the evaluation its oldest sample can be, in seconds."""
        return self._plan.reach / 1000

    def evaluate(self, source: Source, at: float) -> Vector:
        """Return the instant vector at `at` (seconds since the epoch); a number is one sample without labels.

        Raises EvaluationError where Prometheus would fail the rule: duplicate label sets, many-to-many
        matches.
        """
        moment = Moment(source, round(at * 1000))
        if isinstance(self._plan, ScalarPlan):
            return [Sample((), self._plan.run(moment))]
        return self._plan.run(moment)
