"""Anchored regular expressions as Prometheus has them: RE2, so linear time whatever the pattern.

Python's own `re` is another language, and can be made to backtrack for ages by one rule file.
Source: Prometheus 3.x compiles a matcher as `^(?s:pattern)$`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import re2

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pattern"]

_LONGEST = 10_000
_REMEMBERED = 4096  # label values; they are few, and the same at every evaluation
_ANY_BYTE = re.compile(r"(?<!\\)(?:\\\\)*\\C")  # RE2 has it, Go's regexp, and so Prometheus, does not

_TEMPLATE = re.compile(r"(?P<text>[^$]+)|\$\{(?P<braced>\w+)\}|\$(?P<name>\w+)|\$\$?")

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


class Pattern:
    """A compiled pattern. Thread-safe: only its memory of earlier answers ever changes.

    Raises ConfigurationError when Prometheus would refuse the pattern, or when it is longer than 10,000
    characters or expands to more than RE2's memory limit (8 MiB).
    """

    __slots__ = ("_answers", "_compiled")

    def __init__(self, pattern: str) -> None:
        self._answers: dict[str, bool] = {}
        if len(pattern) > _LONGEST or _ANY_BYTE.search(pattern):
            raise ConfigurationError(f"regular expression {pattern[:80]!r}: too long, or has \\C")
        try:
            re2.compile(pattern, options=_OPTIONS)  # by itself first: "a)(b" must not close our group
            self._compiled = re2.compile(f"(?s:{pattern})", options=_OPTIONS)
        except re2.error as error:
            told = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
            raise ConfigurationError(f"regular expression {pattern!r}: {told}") from None

    def fullmatch(self, text: str) -> bool:
        """Say whether the whole text matches."""
        answer = self._answers.get(text)
        if answer is None:
            if len(self._answers) >= _REMEMBERED:
                self._answers = {}
            answer = self._answers[text] = self._compiled.fullmatch(text) is not None
        return answer

    def replacement(self, template: str) -> Callable[[str], str | None]:
        """Return the function from a text that matches to `template` with its groups in it, else to None.

        Source: Go's `regexp.Expand`: `$1`, `${1}`, `$name`, `$$`; a group that does not exist is empty.
        """
        parts = [self._part(found) for found in _TEMPLATE.finditer(template)]

        def expand(text: str) -> str | None:
            match = self._compiled.fullmatch(text)
            if match is None:
                return None
            return "".join(part if isinstance(part, str) else match.group(part) or "" for part in parts)

        return expand

    def _part(self, found: re.Match[str]) -> str | int:
        """Return a piece of a template: its text, or the number of the group that stands for it."""
        name = found["braced"] or found["name"]
        if name is None:
            return found["text"] if found["text"] is not None else "$"
        if name.isascii() and name.isdigit() and len(name) <= 8 and (name == "0" or name[0] != "0"):
            return int(name) if int(name) <= self._compiled.groups else ""
        groups: dict[str, int] = self._compiled.groupindex
        return groups.get(name, "")
