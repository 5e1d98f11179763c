"""What an expression is made of: label sets, samples, series, and the source they are read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llmkg_otel.errors import LlmkgOtelError

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql.matchers import Matcher

__all__ = ["EvaluationError", "Labels", "Sample", "Series", "Source", "Vector"]

Labels = tuple[tuple[str, str], ...]
"""Pairs sorted by name, `__name__` among them; an empty value is the same as no label, and never kept."""

METRIC_NAME = "__name__"
REMEMBERED_LABELS = 4_096
"""How many label sets' derivations each operator keeps: the same series come back at every evaluation."""

_METADATA = frozenset({METRIC_NAME, "__type__", "__unit__"})


SAME_LABELS = "vector cannot contain metrics with the same labelset"


class EvaluationError(LlmkgOtelError):
    """The expression has no answer on these samples: Prometheus, too, fails the rule here."""

    reason = "alert_evaluation"


class Sample(NamedTuple):
    """One series' value at the instant of evaluation."""

    labels: Labels
    value: float


Vector = list[Sample]


class Series(NamedTuple):
    """One series' points in a window: times in milliseconds, rising, and values of the same length.

    `monotonic` says that no value is below the one before it; False is "not known".
    """

    labels: Labels
    times: Sequence[int]
    values: Sequence[float]
    monotonic: bool = False


class Window(NamedTuple):
    """What a range selector gives: the series, and the window (start, end] in milliseconds."""

    series: list[Series]
    start: int
    end: int


class Source(Protocol):
    """Where selectors read from; `samples.SampleStore` is one."""

    def instant(
        self, name: str | None, matchers: Sequence[Matcher], at: float, lookback: float = ...
    ) -> Vector:
        """Return each matching series' newest value in (at - lookback, at] that is not stale."""
        ...

    def timestamps(
        self, name: str | None, matchers: Sequence[Matcher], at: float, lookback: float = ...
    ) -> Vector:
        """Return the times, in seconds, of the values that `instant` gives."""
        ...

    def range(
        self, name: str | None, matchers: Sequence[Matcher], start_exclusive: float, end: float
    ) -> list[Series]:
        """Return each matching series' points in (start_exclusive, end], stale markers left out."""
        ...


def labels_of(pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    """Return the label set of these pairs: sorted, without empty values."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return tuple(sorted(pair for pair in items if pair[1]))


def label_value(labels: Labels, name: str) -> str:
    """Return a label's value, "" when it is not there."""
    for key, value in labels:
        if key == name:
            return value
    return ""


def without(labels: Labels, names: frozenset[str]) -> Labels:
    """Return the labels but for these."""
    return tuple(pair for pair in labels if pair[0] not in names)


def only(labels: Labels, names: frozenset[str]) -> Labels:
    """Return none but these labels."""
    return tuple(pair for pair in labels if pair[0] in names)


@lru_cache(maxsize=4 * REMEMBERED_LABELS)
def without_name(labels: Labels) -> Labels:
    """Return the labels without the metric's name, as after any operation that changes the meaning."""
    return without(labels, _METADATA)


def unique(vector: Vector) -> Vector:
    """Return the vector itself; raise EvaluationError when two of its samples have the same labels."""
    if len(vector) > 1 and len({labels for labels, _ in vector}) != len(vector):
        raise EvaluationError(SAME_LABELS)
    return vector


def show(labels: Labels) -> str:
    """Return labels as PromQL writes them, for messages."""
    inner = ", ".join(f'{name}="{value}"' for name, value in labels if name != METRIC_NAME)
    return f"{label_value(labels, METRIC_NAME)}{{{inner}}}"
