"""From text to promql-parser's tree, without its traps.

promql-parser recurses: about 5,000 nested operators end the process on an 8 MiB stack, where no
exception can be caught. So the text is measured before it is parsed.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from llmkg_otel.errors import ConfigurationError

__all__ = ["MAX_NESTING", "MAX_OPERATORS", "parse_text"]

MAX_NESTING = 150
MAX_OPERATORS = 500
MAX_LENGTH = 64 * 1024

_QUOTED = r""""(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'"""
_STRING = rf"{_QUOTED} | `[^`]*`"
_TOKEN = re.compile(
    rf"""
    (?P<skip>   {_STRING} | \#[^\n]* | \{{ (?: {_STRING} | [^"'`{{}}] )* \}} )
  | (?P<open>   [(\[{{] )
  | (?P<close>  [)\]}}] )
  | (?P<negative> @ \s* - )
  | (?P<number> (?<![\w:.]) \d+ (?: \.\d* )? (?: e[-+]?\d+ )? )
  | (?P<operator> [-+*/%^<>=!] | \b(?:and|or|unless|atan2)\b )
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_TEXT = re.compile(rf"(?P<quoted> {_QUOTED} ) | (?P<raw> `[^`]*` ) | \#[^\n]*", re.VERBOSE | re.DOTALL)
_NO_CHARACTER = re.compile(r"(?<!\\)(?:\\\\)*\\(?:x[89a-f]|[23][0-7][0-7])", re.IGNORECASE)


def parse_text(text: str) -> Any:
    """Return the root node of promql-parser's tree.

    Raises ConfigurationError with the parser's words when the text is not PromQL, and when it is longer
    than 64 KiB, nested deeper than 150 brackets, or has more than 500 operators.
    """
    _measure(text)
    text = _TEXT.sub(_readable, text)
    import promql_parser  # noqa: PLC0415 - 5 ms that a process without rules need not pay

    try:
        return promql_parser.parse(text)
    except ValueError as error:
        raise ConfigurationError(f"not valid PromQL: {error}; in {shorten(text)}") from None
    except BaseException as error:
        # A Rust panic arrives as pyo3's PanicException, which is no Exception and cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise ConfigurationError(f"the parser cannot read {shorten(text)}: {error}") from None


def _readable(found: re.Match[str]) -> str:
    """Return a text as the parser takes it: it refuses backslashes in raw ones, and reads bytes wrongly."""
    if found["raw"]:
        return json.dumps(found["raw"][1:-1], ensure_ascii=False)
    if found["quoted"] and _NO_CHARACTER.search(found["quoted"]):
        raise ConfigurationError(f"not supported: a text that is not UTF-8: {shorten(found['quoted'])}")
    return found.group()


def shorten(text: str) -> str:
    """Return a piece of an expression as messages show it: on one line, at most 120 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:117] + "..."


def _measure(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise ConfigurationError(f"the expression has {len(text)} characters; at most {MAX_LENGTH} are read")
    depth = operators = 0
    for token in _TOKEN.finditer(text):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        operators += token.lastgroup == "operator"
        if token.lastgroup == "negative":  # the parser makes 0 of it
            raise ConfigurationError(f"not supported: a time before 1970 after @, in {shorten(text)}")
        if token.lastgroup == "number" and math.isinf(float(token.group())):
            raise ConfigurationError(f"a number is out of range: {shorten(token.group())}")
        if depth > MAX_NESTING:
            raise ConfigurationError(f"the expression is nested deeper than {MAX_NESTING} brackets")
        if operators > MAX_OPERATORS:
            raise ConfigurationError(f"the expression has more than {MAX_OPERATORS} operators")
