"""Anchored regular expressions as Prometheus has them: RE2, so linear time whatever the pattern.

Python's own `re` is another language, and can be made to backtrack for ages by one rule file.
Source: Prometheus 3.x compiles a matcher as `^(?s:pattern)$`.
"""

from __future__ import annotations

import re

import re2

from llmkg_otel.errors import ConfigurationError

__all__ = ["Pattern"]

_LONGEST = 10_000
_REMEMBERED = 4096  # label values; they are few, and the same at every evaluation
_ANY_BYTE = re.compile(r"(?<!\\)(?:\\\\)*\\C")  # RE2 has it, Go's regexp, and so Prometheus, does not

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
