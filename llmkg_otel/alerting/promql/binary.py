"""Binary operators: between numbers, between a vector and a number, and between two vectors.

Source: Prometheus 3.5 `promql/engine.go`, VectorBinop, VectorscalarBinop and the set operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from llmkg_otel.alerting.promql.floats import ARITHMETIC, COMPARISON
from llmkg_otel.alerting.promql.values import (
    METRIC_NAME,
    REMEMBERED_LABELS,
    EvaluationError,
    Labels,
    Sample,
    Vector,
    label_value,
    labels_of,
    only,
    show,
    unique,
    without,
    without_name,
)

__all__ = ["SET_OPERATORS", "Matching", "scalar_scalar", "vector_scalar", "vector_vector"]

Cardinality = Literal["one-to-one", "many-to-one", "one-to-many"]
Element = Callable[[float, float], float | None]
"""The operator on two numbers: the result, or None when a comparison filters the element out."""


class Matching:
    """How two vectors' samples find each other: `on` or `ignoring` these labels, and who is many.

    Remembers the signatures of label sets.
    """

    __slots__ = ("_results", "_signatures", "cardinality", "include", "labels", "on")

    def __init__(
        self,
        labels: Iterable[str] = (),
        *,
        on: bool = False,
        cardinality: Cardinality = "one-to-one",
        include: tuple[str, ...] = (),
    ) -> None:
        self.labels = frozenset(labels)
        self.on = on
        self.cardinality = cardinality
        self.include = include
        self._signatures: dict[Labels, Labels] = {}
        self._results: dict[tuple[Labels, Labels], Labels] = {}

    @property
    def told(self) -> str:
        """All of it in words, the same for equal ones."""
        return f"{self.on} {sorted(self.labels)} {self.cardinality} {self.include}"

    def signature(self, labels: Labels) -> Labels:
        """Return what must be equal on both sides."""
        found = self._signatures.get(labels)
        if found is None:
            if len(self._signatures) >= REMEMBERED_LABELS:
                self._signatures = {}
            found = only(labels, self.labels) if self.on else without(labels, self.labels | {METRIC_NAME})
            self._signatures[labels] = found
        return found

    def result(self, labels: Labels, partner: Labels, *, drops: bool) -> Labels:
        """Return the labels of two matched samples' result; `drops` says that the name is lost.

        A matching belongs to one operator, so `drops` is the same at every call.
        """
        key = labels, partner if self.include else ()
        found = self._results.get(key)
        if found is None:
            if len(self._results) >= REMEMBERED_LABELS:
                self._results = {}
            found = self._results[key] = self._result(without_name(labels) if drops else labels, partner)
        return found

    def _result(self, labels: Labels, partner: Labels) -> Labels:
        if self.cardinality == "one-to-one":
            return only(labels, self.labels) if self.on else without(labels, self.labels)
        if self.include:
            return labels_of(dict(labels) | {name: label_value(partner, name) for name in self.include})
        return labels


def scalar_scalar(operator: str) -> Callable[[float, float], float]:
    """Return the operator on two numbers; a comparison gives 1 or 0."""
    if operator in ARITHMETIC:
        return ARITHMETIC[operator]
    compare = COMPARISON[operator]
    return lambda left, right: float(compare(left, right))


def _element(operator: str, *, keep_right: bool = False) -> Element:
    if operator in ARITHMETIC:
        return ARITHMETIC[operator]
    compare = COMPARISON[operator]
    if keep_right:
        return lambda left, right: right if compare(left, right) else None
    return lambda left, right: left if compare(left, right) else None


def vector_scalar(operator: str, *, swapped: bool, as_bool: bool) -> Callable[[Vector, float], Vector]:
    """Return the operator on a vector and a number; `swapped` says that the number stands on the left.

    A comparison keeps the vector's value and name; `bool` gives 1 or 0 and drops the name.
    """
    element = _element(operator, keep_right=swapped)
    drops = as_bool or operator in ARITHMETIC

    def apply(vector: Vector, number: float) -> Vector:
        result = []
        for labels, value in vector:
            answer = element(number, value) if swapped else element(value, number)
            if as_bool:
                answer = float(answer is not None)
            if answer is not None:
                result.append(Sample(without_name(labels) if drops else labels, answer))
        return unique(result)

    return apply


def vector_vector(operator: str, matching: Matching, *, as_bool: bool) -> Callable[[Vector, Vector], Vector]:
    """Return the operator on two vectors; EvaluationError where more than the allowed samples match."""
    element = _element(operator)
    drops = operator in ARITHMETIC
    swapped = matching.cardinality == "one-to-many"

    def apply(left: Vector, right: Vector) -> Vector:
        if not left or not right:
            return []
        many, one = (right, left) if swapped else (left, right)
        partners = _one_side(one, matching)
        matched: dict[Labels, set[Labels]] = {}
        result = []
        for labels, value in many:
            signature = matching.signature(labels)
            partner = partners.get(signature)
            if partner is None:
                continue
            answer = element(partner.value, value) if swapped else element(value, partner.value)
            if as_bool:
                answer = float(answer is not None)
            if answer is None:
                continue
            metric = matching.result(labels, partner.labels, drops=drops)
            if as_bool:
                metric = without_name(metric)
            _check_match(metric, signature, matching, matched)
            result.append(Sample(metric, answer))
        return unique(result)

    return apply


def _one_side(vector: Vector, matching: Matching) -> dict[Labels, Sample]:
    partners: dict[Labels, Sample] = {}
    for sample in vector:
        signature = matching.signature(sample.labels)
        other = partners.setdefault(signature, sample)
        if other is not sample:
            side = "left" if matching.cardinality == "one-to-many" else "right"
            raise EvaluationError(
                f"found duplicate series for the match group {show(signature)} on the {side} hand-side of "
                f"the operation: [{show(sample.labels)}, {show(other.labels)}]; many-to-many matching not "
                "allowed: matching labels must be unique on one side"
            )
    return partners


def _check_match(
    metric: Labels, signature: Labels, matching: Matching, matched: dict[Labels, set[Labels]]
) -> None:
    earlier = matched.setdefault(signature, set())
    if matching.cardinality == "one-to-one":
        if earlier:
            raise EvaluationError(
                "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
            )
    elif metric in earlier:
        raise EvaluationError("multiple matches for labels: grouping labels must ensure unique matches")
    earlier.add(metric)


def _and(left: Vector, right: Vector, matching: Matching) -> Vector:
    wanted = {matching.signature(sample.labels) for sample in right}
    return [sample for sample in left if matching.signature(sample.labels) in wanted]


def _or(left: Vector, right: Vector, matching: Matching) -> Vector:
    known = {matching.signature(sample.labels) for sample in left}
    return left + [sample for sample in right if matching.signature(sample.labels) not in known]


def _unless(left: Vector, right: Vector, matching: Matching) -> Vector:
    unwanted = {matching.signature(sample.labels) for sample in right}
    return [sample for sample in left if matching.signature(sample.labels) not in unwanted]


SET_OPERATORS: dict[str, Callable[[Vector, Vector, Matching], Vector]] = {
    "and": _and,
    "or": _or,
    "unless": _unless,
}
