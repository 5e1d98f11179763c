"""Label sets, values and durations as Prometheus prints them.

Source: Prometheus 3.5 `model/labels`, and `model.Metric`, `SampleValue` and `Duration` of prometheus/common.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from llmkg_otel.alerting.formats import go_float, go_quote
from llmkg_otel.alerting.promql.values import METRIC_NAME, label_value, without_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.promql import Labels

__all__ = ["UNITS", "show_duration", "show_labels", "show_metric", "show_number"]

UNITS = {
    "y": 31_536_000_000,
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
"""Of durations, in milliseconds, the longest first."""


def show_labels(labels: Iterable[tuple[str, str]]) -> str:
    """Return a label set as Prometheus prints it: `{__name__="up", job="a"}`."""
    named = (
        (name if re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) else go_quote(name), value)
        for name, value in labels
    )
    return "{" + ", ".join(f"{name}={go_quote(value)}" for name, value in named) + "}"


def show_metric(labels: Labels) -> str:
    """Return a series as promtool's queries print it: `up{job="a"}`, `up`, `{}`."""
    name = label_value(labels, METRIC_NAME)
    rest = without_name(labels)
    return name if name and not rest else name + show_labels(rest)


def show_number(value: float) -> str:
    """Return a value as promtool's queries print it, never with an exponent."""
    return f"{Decimal(repr(value)).normalize():f}" if math.isfinite(value) else go_float(value)


def show_duration(seconds: float) -> str:
    """Return a duration as Prometheus prints it: `1h30m`, `2d`, `500ms`; years and weeks only if whole."""
    left = round(seconds * 1000)
    if left == 0:
        return "0s"
    text = ""
    for unit, size in UNITS.items():
        if unit in "yw" and left % size:
            continue
        if count := left // size:
            text += f"{count}{unit}"
            left -= count * size
    return text
