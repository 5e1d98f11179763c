"""Points that are one series in Prometheus: there an empty label is none, keys lose their dots.

A scrape in which a series comes twice is not valid. Source: OpenTelemetry, "Prometheus and OpenMetrics
Compatibility": values of keys that become one label are joined by `;`, in the order of the keys.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.prometheus._mapping import sanitize_attribute
from opentelemetry.sdk.metrics.export import Histogram, Metric, Sum

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RESERVED", "one_point_a_series"]

RESERVED = "le"
"""A histogram's own label; an attribute of this name becomes `exported_le`."""

_label = lru_cache(1024)(sanitize_attribute)


def one_point_a_series(metric: Metric) -> Metric:
    """Return a metric whose points differ in their labels, which are their attributes now.

    What is one series is added up. Gauges cannot be: of their values, whose age the SDK does not tell, the
    one that came last into its list stands.
    """
    reserved = RESERVED if isinstance(metric.data, Histogram) else None
    points: dict[frozenset[tuple[str, str]], list[Any]] = {}
    plain = True
    for point in metric.data.data_points:
        attributes = point.attributes or {}
        labels = _labels(attributes, reserved)
        plain = plain and len(labels) == len(attributes) and reserved not in attributes
        points.setdefault(frozenset(labels.items()), []).append(point)
    if plain and len(points) == len(metric.data.data_points):
        return metric
    join = partial(_joined, metric)
    joined = [replace(reduce(join, each), attributes=dict(labels)) for labels, each in points.items()]
    data: Any = metric.data
    return replace(metric, data=replace(data, data_points=joined))


def _labels(attributes: Mapping[str, Any], reserved: str | None) -> dict[str, str]:
    labels: dict[str, str] = {}
    for key in sorted(attributes):
        value = attributes[key]
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        label = _label(key)
        if label == reserved:
            label = f"exported_{label}"
        if text:
            labels[label] = f"{labels[label]};{text}" if label in labels else text
    return labels


def _joined(metric: Metric, one: Any, other: Any) -> Any:
    since = min(one.start_time_unix_nano or 0, other.start_time_unix_nano or 0)
    both = {
        "start_time_unix_nano": since,
        "time_unix_nano": max(one.time_unix_nano, other.time_unix_nano),
        "exemplars": [*one.exemplars, *other.exemplars],
    }
    if isinstance(metric.data, Histogram):
        return replace(
            one,
            count=one.count + other.count,
            sum=one.sum + other.sum,
            bucket_counts=[a + b for a, b in zip(one.bucket_counts, other.bucket_counts, strict=True)],
            min=min(one.min, other.min),
            max=max(one.max, other.max),
            **both,
        )
    if isinstance(metric.data, Sum):
        return replace(one, value=one.value + other.value, **both)
    return other
