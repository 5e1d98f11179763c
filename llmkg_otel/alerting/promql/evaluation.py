"""One evaluation of an expression: what it reads, when, what it may cost, and what it shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from llmkg_otel.alerting.promql.values import SAME_LABELS, EvaluationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.promql.values import Labels, Source, Vector

__all__ = ["MAX_SAMPLES", "Evaluation", "Moment", "SharedResults", "Trail"]

MAX_SAMPLES = 2_000_000
"""How many samples, and steps of subqueries, one expression may read: some seconds' work."""


@dataclass(slots=True)
class SharedResults:
    """Answers that the expressions of one evaluation have in common; for one instant and one thread.

    `written` are the metrics that the rules themselves write meanwhile: what reads them is never shared.
    """

    written: frozenset[str] = frozenset()
    vectors: dict[str, Vector] = field(default_factory=dict)

    def holds(self, reads: frozenset[str] | None) -> bool:
        """Say whether an answer that reads these metrics stays right."""
        return not self.written or (reads is not None and self.written.isdisjoint(reads))


@dataclass(slots=True)
class Evaluation:
    """One expression at one instant: `at` and `step` (of a subquery that has none) in milliseconds."""

    source: Source
    at: int
    step: int
    results: SharedResults | None = None
    spent: int = 0

    def spend(self, samples: int) -> None:
        """Count samples or steps; EvaluationError when it is too many."""
        self.spent += samples
        if self.spent > MAX_SAMPLES:
            raise EvaluationError(f"the expression takes more than {MAX_SAMPLES:,} samples and steps")


@dataclass(slots=True)
class Trail:
    """What the steps of one subquery know of each other.

    Prometheus evaluates some functions for all steps at once, and fails when two series become one, even
    if no step has both. `vectors` keeps the steps that the windows of a nested subquery have in common.
    """

    origins: dict[tuple[str, Labels], Labels] = field(default_factory=dict)
    vectors: dict[tuple[str, int], Vector] = field(default_factory=dict)


class Moment(NamedTuple):
    """An instant, in milliseconds since the epoch, at which a part of the expression is evaluated."""

    evaluation: Evaluation
    at: int
    trail: Trail | None = None

    def distinct(self, key: str, origins: Iterable[Labels], vector: Vector) -> Vector:
        """Return the vector, each sample of which came from the series at its place in `origins`.

        Raises EvaluationError when two series came to have the same labels, in this step or another one of
        the subquery; `key` is the plan's.
        """
        known = {} if self.trail is None else self.trail.origins
        for origin, (labels, _) in zip(origins, vector, strict=True):
            if known.setdefault((key, labels), origin) != origin:
                raise EvaluationError(SAME_LABELS)
        return vector
