"""YAML with line numbers: nodes that know where they stand, and say so when they are wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn, TypeVar

import yaml

from llmkg_otel.alerting.printed import UNITS
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

__all__ = ["Field", "Fields", "read_yaml"]

T = TypeVar("T")
_DURATION = re.compile("".join(rf"(?:(\d+){unit})?" for unit in UNITS), re.ASCII)
_LONGEST = (2**63 - 1) // 10**6
"""Milliseconds: Go's durations are 64 bits of nanoseconds."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Field:
    """One node of a file; `context` is the rule it belongs to, for messages."""

    node: yaml.Node
    file: str
    context: str = ""

    @property
    def line(self) -> int:
        """The line it begins on, 1-based."""
        return int(self.node.start_mark.line) + 1

    def named(self, context: str) -> Field:
        """Return the same node, speaking for a rule."""
        return replace(self, context=context)

    def fail(self, reason: str) -> NoReturn:
        """Raise ConfigurationError with file, line and rule."""
        where = f"{self.context}: " if self.context else ""
        raise ConfigurationError(f"{self.file}:{self.line}: {where}{reason}")

    def checked(self, build: Callable[[], T]) -> T:
        """Return what `build` returns; a ConfigurationError of its gets file, line and rule."""
        try:
            return build()
        except ConfigurationError as error:
            self.fail(str(error))

    def text(self, what: str) -> str:
        """Return a scalar's text, whatever its YAML type is; null is empty, as in Prometheus."""
        if not isinstance(self.node, yaml.ScalarNode):
            self.fail(f"{what} must be a text")
        text = "" if self.node.tag == "tag:yaml.org,2002:null" else str(self.node.value)
        if _SURROGATE.search(text):
            self.fail(f"{what} has half a surrogate pair, which is no character")
        return text

    def integer(self, what: str) -> int:
        """Return a whole number; null is 0, as in Prometheus."""
        if self._null():
            return 0
        plain = isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:int"
        if not plain or re.fullmatch(r"[-+]?(0|[1-9]\d{0,17})", str(self.node.value)) is None:
            self.fail(f"{what} must be a whole number")
        return int(self.node.value)

    def duration(self, what: str) -> float:
        """Return a duration such as 1h30m, in seconds; null is 0, as in Prometheus."""
        if self._null():
            return 0.0
        text = self.text(what)
        found = _DURATION.fullmatch(text)
        if text == "0":
            return 0.0
        if found is None or not text:
            self.fail(f"{what}: {text!r} is no duration; write one as 30s, 5m or 1h30m")
        counts = [part.lstrip("0")[:20] for part in found.groups("")]  # 20 digits are too many of any unit
        total = sum(int(count or 0) * unit for count, unit in zip(counts, UNITS.values(), strict=True))
        if total > _LONGEST:
            self.fail(f"{what}: a duration of more than 292 years: {text[:40]!r}")
        return total / 1000

    def sequence(self, what: str) -> list[Field]:
        """Return the items of a list; null is empty."""
        if self._null():
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"{what} must be a list")
        return [replace(self, node=item) for item in self.node.value]

    def mapping(self, what: str, known: AbstractSet[str] | None) -> Fields:
        """Return the values of a mapping; a key not in `known` (None: any) or given twice is an error."""
        if self._null():
            return Fields()
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{what} must be a mapping")
        found = Fields()
        for key_node, value_node in self.node.value:
            key = replace(self, node=key_node)
            name = key.text("a key")
            if known is not None and name not in known:
                key.fail(f"{what} has no field {name!r}; it has {', '.join(sorted(known))}")
            if name in found:
                key.fail(f"{name!r} is given twice")
            found[name] = replace(self, node=value_node)
        return found

    def _null(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"


class Fields(dict[str, Field]):
    """The values of a mapping by their keys; one that is not there is empty, or 0."""

    def text(self, key: str) -> str:
        """Return a scalar's text."""
        return self[key].text(key) if key in self else ""

    def integer(self, key: str) -> int:
        """Return a whole number."""
        return self[key].integer(key) if key in self else 0

    def duration(self, key: str) -> float:
        """Return a duration in seconds."""
        return self[key].duration(key) if key in self else 0.0

    def sequence(self, key: str) -> list[Field]:
        """Return the items of a list."""
        return self[key].sequence(key) if key in self else []

    def texts(self, key: str) -> dict[str, Field]:
        """Return the values of a mapping with any keys."""
        return self[key].mapping(key, None) if key in self else {}


def read_yaml(text: str, file: str) -> Field | None:
    """Return the root of a YAML document, None when it is empty; raise ConfigurationError with the line."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigurationError(f"{file}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{file}:1: not valid YAML: {type(error).__name__} {error}") from None
    return None if node is None else Field(node, file)
