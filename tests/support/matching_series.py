"""Series that an expression's selectors find, with values on both sides of its thresholds."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import promql_parser

from llmkg_otel.alerting.promql.regex import Pattern

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

POINTS = 100
WORDS = ("", "a", "b", "api", "x", "10", "500", "5xx", "/", "test", "default", "other")
SHAPES = (
    (r"\\[dw]\+?|\[[^\]]*\][+*]?", "7"),
    (r"\.[+*]", "x1"),
    (r"\(\?:|[()^$]|(?<!\\)\?", ""),
    (r"\\(.)", r"\1"),
)


def series_for(text: str, random_: random.Random) -> list[tuple[str, str]]:
    """Return one to four series for each selector, in promtool's notation."""
    nodes = list(_nodes(promql_parser.parse(text)))
    thresholds = [node.val for node in nodes if _kind(node) == "NumberLiteral" and abs(node.val) < 1e15] or [
        1.0
    ]
    names = sorted({"instance", "job"}.union(*map(_labels, nodes)) - {"__name__", "le"})
    found: dict[str, str] = {}
    for selector in (node for node in nodes if _kind(node) == "VectorSelector"):
        for number in range(random_.choice((1, 2, 2, 3, 4))):
            labels = {name: random_.choice("ab") for name in names if random_.random() < 0.9}
            labels["instance"] = str(number)
            metric = _match(selector, labels, random_)
            if random_.random() < 0.15:
                labels[random_.choice(sorted(labels))] = "unlike"
            found |= _written(metric, labels, random_, random_.choice(thresholds))
    return list(found.items())


def _kind(node: Any) -> str:
    return type(node).__name__


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if isinstance(child, promql_parser.Expr):
            yield from _nodes(child)
    for child in getattr(node, "args", None) or ():
        yield from _nodes(child)


def _labels(node: Any) -> set[str]:
    """Return the labels that an aggregation or a binary operator names."""
    modifier = getattr(node, "modifier", None)
    matching = getattr(modifier, "matching", modifier)
    return {*getattr(matching, "labels", ()), *(getattr(modifier, "group_labels", None) or ())}


def _match(selector: Any, labels: dict[str, str], random_: random.Random) -> str:
    """Change the labels so that the selector's matchers let them through; return the metric's name."""
    metric = selector.name or "some_metric"
    for matcher in selector.matchers.matchers:
        kind = str(matcher.op).rpartition(".")[2]
        pattern = Pattern(matcher.value if kind in ("Re", "NotRe") else re.escape(matcher.value))
        wanted = kind in ("Equal", "Re")
        candidates = [word for word in (*_shaped(matcher.value), *WORDS) if pattern.fullmatch(word) == wanted]
        value = matcher.value if kind == "Equal" else random_.choice(candidates or [""])
        if matcher.name != "__name__":
            labels[matcher.name] = value
        elif re.fullmatch(r"[a-zA-Z_:][\w:]*", value):
            metric = value
    return metric


def _shaped(pattern: str) -> Iterator[str]:
    for alternative in pattern.strip("()^$").split("|"):
        text = alternative
        for shape, replacement in SHAPES:
            text = re.sub(shape, replacement, text)
        yield text


def _written(metric: str, labels: dict[str, str], random_: random.Random, threshold: float) -> dict[str, str]:
    points = _points(metric, random_, threshold)
    bounds = {"0.1": 1, "1": 2, "+Inf": 3} if metric.endswith("_bucket") and "le" not in labels else {"": 1}
    written = {}
    for bound, times in bounds.items():
        pairs = {name: value for name, value in (labels | {"le": bound}).items() if value}
        inner = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(pairs.items()))
        written[f"{metric}{{{inner}}}"] = " ".join(
            point if isinstance(point, str) else repr(point * times) for point in points
        )
    return written


def _points(metric: str, random_: random.Random, threshold: float) -> list[float | str]:
    counter = metric.endswith(("_total", "_count", "_sum", "_bucket")) or random_.random() < 0.3
    flag, step = random_.random() < 0.3, random_.choice((0, 1, 10, abs(threshold) * 60, abs(threshold) * 120))
    near = (-1, 0, 1, 0.25, -0.25, abs(threshold) / 2, -abs(threshold) / 2)
    total, points = 0.0, list[float | str]()
    for _ in range(POINTS):
        total = 0.0 if random_.random() < 0.01 else total + random_.choice((0, step, step / 2))
        value = total if counter else random_.choice((0.0, 1.0)) if flag else threshold + random_.choice(near)
        odd = random_.random()
        points.append("_" if odd < 0.02 else "stale" if odd < 0.024 else "NaN" if odd < 0.0245 else value)
    return points
