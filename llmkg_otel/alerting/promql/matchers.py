"""Label matchers: equal, not equal, and the two regular-expression ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from llmkg_otel.alerting.promql.regex import Pattern
from llmkg_otel.alerting.promql.values import Labels, label_value

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MatchOperator", "Matcher", "match_all"]

MatchOperator = Literal["=", "!=", "=~", "!~"]


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label; a label that is missing counts as empty.

    Immutable and thread-safe. Raises ConfigurationError for a regular expression that RE2 does not
    take, or that this layer does not evaluate.
    """

    name: str
    operator: MatchOperator
    value: str
    _pattern: Pattern | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.operator in ("=~", "!~"):
            object.__setattr__(self, "_pattern", Pattern(self.value))

    def matches(self, value: str) -> bool:
        """Say whether a label of this value passes."""
        if self._pattern is None:
            return (value == self.value) == (self.operator == "=")
        return self._pattern.fullmatch(value) == (self.operator == "=~")


def match_all(labels: Labels, matchers: Sequence[Matcher]) -> bool:
    """Say whether a series passes every matcher."""
    return all(matcher.matches(label_value(labels, matcher.name)) for matcher in matchers)
