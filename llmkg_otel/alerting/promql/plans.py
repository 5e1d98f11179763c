"""What an expression compiles to: closures over one evaluation's moment, by the type they return."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmkg_otel.alerting.promql.evaluation import Moment
    from llmkg_otel.alerting.promql.values import Labels, Vector, Window

__all__ = [
    "Plan",
    "RangePlan",
    "ScalarPlan",
    "Sides",
    "TextPlan",
    "Traits",
    "VectorPlan",
    "combined",
    "remembered",
]

_LONGEST_KEY = 200


class Traits(NamedTuple):
    """What is known of a plan before it runs.

    Plans of one `key` give the same answer at the same moment. `reach` is how many milliseconds before
    the evaluation its oldest sample can be, and `reads` the metric names it selects (None: not known).
    `fill` is how many milliseconds the samples must go back for its answer to be the true one: of what
    each collection has, the newest sample is enough.
    """

    key: str
    reach: float = 0
    reads: frozenset[str] | None = frozenset()
    fill: float = 0


class Sides(NamedTuple):
    """The operands of `and` and of `or`; `on_all` is whether the labels that are matched are all of them."""

    operator: str
    left: VectorPlan
    right: VectorPlan
    on_all: bool
    combine: Callable[[Vector, Vector], Vector]


@dataclass(frozen=True, slots=True)
class ScalarPlan:
    """Gives one number."""

    run: Callable[[Moment], float]
    traits: Traits


@dataclass(frozen=True, slots=True)
class TextPlan:
    """Gives the same text always; only an argument can be one."""

    text: str
    traits: Traits


@dataclass(frozen=True, slots=True)
class VectorPlan:
    """Gives an instant vector, which nobody changes. `absent_labels` are what absent() answers with.

    `sides` are what it is made of if it is an `and` or an `or`.
    """

    run: Callable[[Moment], Vector]
    traits: Traits
    absent_labels: Labels = ()
    sides: Sides | None = None


@dataclass(frozen=True, slots=True)
class RangePlan:
    """Gives each series' points in a window; only a range function can consume it."""

    run: Callable[[Moment], Window]
    traits: Traits
    absent_labels: Labels = ()


Plan = ScalarPlan | TextPlan | VectorPlan | RangePlan


def combined(key: str, parts: Iterable[Plan]) -> Traits:
    """Return the traits of a plan made of others; `key` must name them all, by their own keys."""
    reach: float = 0
    fill: float = 0
    reads: frozenset[str] | None = frozenset()
    for part in parts:
        reach = max(reach, part.traits.reach)
        fill = max(fill, part.traits.fill)
        reads = None if reads is None or part.traits.reads is None else reads | part.traits.reads
    if len(key) > _LONGEST_KEY:
        key = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
    return Traits(key, reach, reads, fill)


def remembered(plan: VectorPlan) -> VectorPlan:
    """Return the plan, which other expressions of the same evaluation take the answer of."""
    key, reads, run = plan.traits.key, plan.traits.reads, plan.run

    def recall(moment: Moment) -> Vector:
        results = moment.evaluation.results
        if results is None or moment.trail is not None or not results.holds(reads):
            return run(moment)
        vector = results.vectors.get(key)
        if vector is None:
            vector = results.vectors[key] = run(moment)
        return vector

    return replace(plan, run=recall)
