"""Go templates in labels and annotations: the part that alert rules use, and nothing that loops or reads.

`{{ $labels.x }}`, `{{ $labels }}`, `{{ $value }}`, the humanize functions, printf, title, toUpper, toLower,
and pipelines of them. Source: Prometheus 3.5 `template/template.go`, Go `text/template` and `fmt`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmkg_otel.alerting.formats import FUNCTIONS, TemplateError, go_value, unsupported_verb
from llmkg_otel.alerting.promql import EvaluationError
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql import Labels

__all__ = ["Template"]

_ACTION = re.compile(r'\{\{(-\s)?((?:"(?:\\.|[^"\\])*"|`[^`]*`|[^"`])*?)(\s-)?\}\}', re.DOTALL)
_WORD = re.compile(
    r"""\s*(?:
        (?P<string> "(?:\\[\\"nt]|[^"\\\n])*" | `[^`]*` )
      | (?P<number> [+-]?\d+(?:\.\d+)? )
      | (?P<label>  (?:\$labels|\.Labels)\.[A-Za-z_][A-Za-z0-9_]* )
      | (?P<labels> (?:\$labels|\.Labels)(?![\w.]) )
      | (?P<value>  (?:\$value|\.Value)(?![\w.]) )
      | (?P<name>   [A-Za-z][A-Za-z0-9]* )
      | (?P<pipe>   \| )
    )""",
    re.VERBOSE,
)
_LONGEST = 64 * 1024
_ESCAPES = {"\\n": "\n", "\\t": "\t", '\\"': '"', "\\\\": "\\"}

Value = str | float | int | dict[str, str]
Part = Callable[[dict[str, str], float], Value]


@dataclass(frozen=True, slots=True)
class Template:
    """One text, compiled once; immutable and thread-safe.

    Raises ConfigurationError for anything but the actions above (`if`, `range`, `query`, variables,
    external labels): refused when the rule is loaded, never printed wrongly later.
    """

    text: str
    _parts: tuple[str | Part, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", tuple(_split(self.text)))

    @property
    def static(self) -> bool:
        """Whether the text is the same for every alert."""
        return all(isinstance(part, str) for part in self._parts)

    def expand(self, labels: Labels, value: float) -> str:
        """Return the text for an alert's labels (with the metric's name) and value.

        A function that cannot take its argument puts `<error expanding template: ...>` in its stead, for
        the whole text, as Prometheus does. Raises EvaluationError when the text is longer than 64 Ki: a
        rule on ALERTS could double its own label at every evaluation.
        """
        named = dict(labels)
        try:
            text = "".join(
                part if isinstance(part, str) else go_value(part(named, value)) for part in self._parts
            )
        except TemplateError as error:
            return f"<error expanding template: {error}>"
        if len(text) > _LONGEST:
            raise EvaluationError(f"a template expands to {len(text):,} characters; at most {_LONGEST:,}")
        return text


def _split(text: str) -> list[str | Part]:
    parts: list[str | Part] = []
    at, trim = 0, False
    for action in _ACTION.finditer(text):
        before = text[at : action.start()]
        before = before.lstrip() if trim else before
        parts.append(before.rstrip() if action.group(1) else before)
        parts.append(_compile(action.group(2)))
        at, trim = action.end(), action.group(3) is not None
    parts.append(text[at:].lstrip() if trim else text[at:])
    if any(isinstance(part, str) and "{{" in part for part in parts):
        raise ConfigurationError(f"the template has an action without an end: {text!r}")
    return [part for part in parts if part != ""]


def _compile(action: str) -> Part:
    """Compile `command | command | ...`; each command takes the one before as its last argument."""
    commands: list[list[tuple[str, str]]] = [[]]
    at = 0
    text = action.strip()
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None or word.lastgroup is None:
            raise _refused(action)
        if word.lastgroup == "pipe":
            commands.append([])
        else:
            commands[-1].append((word.lastgroup, word.group(word.lastgroup)))
        at = word.end()
    part: Part | None = None
    for command in commands:
        part = _command(command, part, action)
    if part is None:
        raise _refused(action)
    return part


def _refused(action: str) -> ConfigurationError:
    return ConfigurationError(f"not supported yet: the template action {{{{{action}}}}}")


def _command(words: list[tuple[str, str]], piped: Part | None, action: str) -> Part:
    if not words:
        raise _refused(action)
    kind, text = words[0]
    if kind != "name":
        if len(words) > 1 or piped is not None:
            raise _refused(action)
        return _operand(kind, text)
    if text not in FUNCTIONS or any(kind == "name" for kind, _ in words[1:]):
        raise _refused(action)
    if text == "printf" and (
        len(words) < 2 or words[1][0] != "string" or unsupported_verb(_unquote(words[1][1]))
    ):
        raise _refused(action)
    function, count = FUNCTIONS[text]
    operands = [_operand(kind, word) for kind, word in words[1:]] + ([piped] if piped is not None else [])
    if len(operands) < 1 or (count is not None and len(operands) != count):
        raise ConfigurationError(f"wrong number of arguments for {text} in {{{{{action}}}}}")
    return lambda labels, value: function(*(operand(labels, value) for operand in operands))


def _operand(kind: str, text: str) -> Part:
    match kind:
        case "label":
            name = text.rpartition(".")[2]
            return lambda labels, _: labels.get(name, "")
        case "labels":
            return lambda labels, _: labels
        case "value":
            return lambda _, value: value
        case "number":
            number = float(text) if "." in text else _whole(text)
            return lambda _labels, _value: number
        case _:
            literal = _unquote(text)
            return lambda _labels, _value: literal


def _whole(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits.startswith("0"):
        raise ConfigurationError(f"not supported: the octal number {text} in a template")
    if len(digits) > 19 or not -(2**63) <= int(text) < 2**63:
        raise ConfigurationError(f"the number {text} in a template has more than 64 bits")
    return int(text)


def _unquote(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    return re.sub(r"\\.", lambda found: _ESCAPES[found.group()], text[1:-1])
