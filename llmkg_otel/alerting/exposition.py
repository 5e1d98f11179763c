"""What a /metrics page says, read into a store: Prometheus' text format and OpenMetrics.

prometheus_client's own parser renames a counter that does not end in _total, which Prometheus does not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llmkg_otel.alerting.printed import show_labels
from llmkg_otel.alerting.promql.values import METRIC_NAME
from llmkg_otel.alerting.series_text import split_series
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkg_otel.alerting.promql import Labels
    from llmkg_otel.alerting.samples import SampleStore

__all__ = ["MAX_SAMPLES", "append_exposition"]

MAX_SAMPLES = 100_000
"""Of one page: as many series as a store keeps. More is refused, for some would be left out."""

_REST = re.compile(
    r"(?P<value>\S+)(?:[ \t]+(?P<time>[-+]?[\d.]+(?:e[-+]?\d+)?))?[ \t]*(?:#.*)?", re.IGNORECASE
)


def append_exposition(store: SampleStore, text: str, at: float | None, *, now: float, name: str) -> float:
    """Add a page's samples to the store and return when the newest is of, in seconds since the epoch.

    A sample without a time is of `at`; None: of the newest sample that has one, else of `now`. Raises
    ConfigurationError that tells `name` and the line for what is no sample, and for more than 100,000.
    """
    openmetrics = text.rstrip().endswith("# EOF")
    dated: list[tuple[float, Labels, float]] = []
    undated: list[tuple[Labels, float]] = []
    for labels, value, time in _samples(text, name):
        if time is None:
            undated.append((labels, value))
        else:
            dated.append((time if openmetrics else time / 1000, labels, value))
    dated.sort(key=lambda sample: sample[0])
    if at is None:
        at = dated[-1][0] if dated else now
    for time, labels, value in dated:  # each on its own: a series that others have outlived is not stale
        store.append(time, [_named(labels, value)], source=show_labels(labels))
    store.append(at, [_named(labels, value) for labels, value in undated])
    return at


def _named(labels: Labels, value: float) -> tuple[str, dict[str, str], float]:
    named = dict(labels)
    return named.pop(METRIC_NAME), named, value


def _samples(text: str, name: str) -> Iterator[tuple[Labels, float, float | None]]:
    count = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not (stripped := line.strip()) or stripped.startswith("#"):
            continue
        try:
            yield _sample(stripped)
        except (ConfigurationError, ValueError) as error:
            raise ConfigurationError(f"{name}:{number}: {error}: {stripped[:80]!r}") from None
        count += 1
        if count > MAX_SAMPLES:
            raise ConfigurationError(f"{name}: more than {MAX_SAMPLES:,} samples; so many are not evaluated")


def _sample(line: str) -> tuple[Labels, float, float | None]:
    labels, rest = split_series(line)
    found = _REST.fullmatch(rest.strip())
    if found is None or METRIC_NAME not in dict(labels):
        raise ConfigurationError('no sample; one is: name{label="value"} 1.5')
    return labels, float(found["value"]), None if found["time"] is None else float(found["time"])
