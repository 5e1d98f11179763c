"""Series and their values as Prometheus reads them in unit tests, and series as it reads them anywhere.

Source: Prometheus 3.5 `promql/parser`: lexValueSequence, series_description.
"""

from __future__ import annotations

import ast
import re
from enum import Enum
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.values import METRIC_NAME, labels_of
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql import Labels

__all__ = ["MAX_POINTS", "Gap", "Point", "parse_labels", "parse_values", "split_series"]

MAX_POINTS = 1_000_000
"""Of one test's series: `1x1000000000` is short to write."""


class Gap(Enum):
    """What stands for no value: nothing was collected, or the series has ended there."""

    OMITTED = "_"
    STALE = "stale"


Point = float | Gap

_STRING = r'"(?:[^"\\\n]|\\.)*"|' + r"'(?:[^'\\\n]|\\.)*'|`[^`]*`"
_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
_SERIES = re.compile(
    rf"\s*(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)?\s*(?:\{{(?P<labels>(?:{_STRING}|[^{{}}\"'`])*)\}})?\s*"
)
_LABEL = re.compile(rf"\s*(?:(?P<name>{_NAME}|{_STRING})\s*=\s*)?(?P<value>{_STRING})\s*(?:,|$)")
_ESCAPE = re.compile(
    r"\\(?:[abfnrtv\\'\"]|x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|(?P<bad>.))", re.DOTALL
)
_NUMBER = r"(?:\d(?:_?\d)*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ITEM = re.compile(
    rf"""
    (?P<gap> _ ) (?: x (?P<gaps> \d{{1,12}} ) )?
  | (?P<stale> stale )
  | (?P<value> [-+]? (?: {_NUMBER} | (?i:inf|nan)(?!x) ) )
    (?: (?P<step> [-+] {_NUMBER} )? x (?P<times> \d{{1,12}} ) )?
    """,
    re.VERBOSE | re.ASCII,
)


def parse_labels(text: str) -> Labels:
    """Read `name{a="b"}`, `{a="b"}` or `{"a name", "a label"="b"}`; an empty label is none.

    Raises ConfigurationError for anything else.
    """
    labels, rest = split_series(text)
    if rest:
        raise ConfigurationError(f'{text!r} is no series; write one as name{{label="value"}}')
    return labels


def split_series(text: str) -> tuple[Labels, str]:
    """Read a series at the beginning of a text, and return it with the rest. Raises as `parse_labels`."""
    found = _SERIES.match(text)
    assert found is not None  # noqa: S101 - every part of it may be missing
    pairs = [] if found["name"] is None else [(METRIC_NAME, found["name"])]
    inner, at = (found["labels"] or "").rstrip(), 0
    while at < len(inner):
        label = _LABEL.match(inner, at)
        if label is None:
            raise ConfigurationError(f"{text!r} is no series: {inner[at:].strip()!r} is no label")
        name = label["name"] or METRIC_NAME
        pairs.append((_unquote(name) if name[0] in "\"'`" else name, _unquote(label["value"])))
        at = label.end()
    if len(dict(pairs)) < len(pairs):
        raise ConfigurationError(f"{text!r} has a label twice")
    return labels_of(pairs), text[found.end() :]


def _unquote(text: str) -> str:
    if text[0] == "`" or "\\" not in text:
        return text[1:-1]
    if any(escape["bad"] for escape in _ESCAPE.finditer(text)):
        raise ConfigurationError(f"{text} has an escape that is none")
    return str(ast.literal_eval(text))


def parse_values(text: str) -> list[Point]:
    """Read the expanding notation: `1 2x3 0+10x5 _ _x2 stale`.

    `a+bxn` is a and n more, each b above the one before; `axn` is a and n more of it. Returns one entry for
    each interval. Raises ConfigurationError for anything else, for a native histogram, and for more than
    1,000,000 points.
    """
    points: list[Point] = []
    for item in text.split():
        found = _ITEM.fullmatch(item)
        if found is None:
            kind = "a native histogram, which is not supported" if item.startswith("{{") else "no value"
            raise ConfigurationError(f"{item!r} is {kind}; write 1, 1+2x3, _, _x3, stale or NaN")
        times = int(found["gaps"] or found["times"] or 0)
        if times + len(points) > MAX_POINTS:
            raise ConfigurationError(f"{item!r} makes more than {MAX_POINTS:,} points")
        if found["gap"]:
            points += [Gap.OMITTED] * (times if found["gaps"] else 1)
        elif found["stale"]:
            points.append(Gap.STALE)
        else:  # added up as there: 0.1 five times is not 0.5
            steps = repeat(float(found["step"] or 0), times)
            points += accumulate(chain([float(found["value"])], steps))
    return points
