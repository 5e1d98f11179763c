"""Anchored regular expressions in linear time: a set of states is walked, nothing is ever tried twice.

Prometheus 3.x compiles a matcher as `^(?s:pattern)$`. Source: Cox, "Regular Expression Matching Can Be
Simple And Fast" (2007), Thompson's construction.
"""

from __future__ import annotations

from llmkg_otel.alerting.promql.regex_nodes import (
    Alternatives,
    Assertion,
    CharacterSet,
    Node,
    Repeat,
    Sequence,
)
from llmkg_otel.alerting.promql.regex_syntax import parse_regex
from llmkg_otel.errors import ConfigurationError

__all__ = ["Pattern"]

_MAX_STATES = 10_000
_REMEMBERED = 4096  # label values; they are few, and the same at every evaluation

State = tuple[CharacterSet | Assertion | None, list[int]]
"""What must be there, and the states after it; None asks for nothing."""


class Pattern:
    """A compiled pattern. Thread-safe: only its memory of earlier answers ever changes.

    Raises ConfigurationError when RE2 would refuse the pattern, when it uses what is not supported,
    or when its repeats expand to more than 10,000 states.
    """

    __slots__ = ("_answers", "_start", "_states", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._states: list[State] = [(None, [])]  # state 0 is the match
        self._start = self._emit(parse_regex(pattern), 0)
        self._answers: dict[str, bool] = {}

    def fullmatch(self, text: str) -> bool:
        """Say whether the whole text matches."""
        answer = self._answers.get(text)
        if answer is None:
            if len(self._answers) >= _REMEMBERED:
                self._answers = {}
            answer = self._answers[text] = self._run(text)
        return answer

    def _run(self, text: str) -> bool:
        current = self._closure([self._start], text, 0)
        for at, char in enumerate(text, start=1):
            code, after = ord(char), list[int]()
            for index in current:
                test, following = self._states[index]
                if isinstance(test, CharacterSet) and test.contains(code):
                    after.extend(following)
            if not after:
                return False
            current = self._closure(after, text, at)
        return 0 in current

    def _closure(self, states: list[int], text: str, at: int) -> set[int]:
        seen, todo = set[int](), states
        while todo:
            index = todo.pop()
            if index in seen:
                continue
            seen.add(index)
            test, following = self._states[index]
            if test is None or (isinstance(test, Assertion) and _holds(test.kind, text, at)):
                todo.extend(following)
        return seen

    def _new(self, test: CharacterSet | Assertion | None, following: list[int]) -> int:
        if len(self._states) >= _MAX_STATES:
            raise ConfigurationError(
                f"regular expression {self.pattern!r}: its repeats expand to more than {_MAX_STATES} states"
            )
        self._states.append((test, following))
        return len(self._states) - 1

    def _emit(self, node: Node, after: int) -> int:
        """Add the states of a node that goes on to `after`; return its first."""
        match node:
            case CharacterSet() | Assertion():
                return self._new(node, [after])
            case Sequence(parts):
                for part in reversed(parts):
                    after = self._emit(part, after)
                return after
            case Alternatives(parts):
                return self._new(None, [self._emit(part, after) for part in parts])
            case Repeat():
                return self._emit_repeat(node, after)

    def _emit_repeat(self, node: Repeat, after: int) -> int:
        if node.high is None:
            loop = self._new(None, [after])
            self._states[loop][1].append(self._emit(node.part, loop))
            after = loop
        for _ in range((node.high or node.low) - node.low):
            after = self._new(None, [self._emit(node.part, after), after])
        for _ in range(node.low):
            after = self._emit(node.part, after)
        return after


def _holds(kind: str, text: str, at: int) -> bool:
    match kind:
        case "begin":
            return at == 0
        case "end":
            return at == len(text)
        case "line_begin":
            return at == 0 or text[at - 1] == "\n"
        case "line_end":
            return at == len(text) or text[at] == "\n"
        case _:
            boundary = _is_word(text[at - 1 : at]) != _is_word(text[at : at + 1])
            return boundary == (kind == "word")


def _is_word(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")
