"""The stock Prometheus reader, put right where it loses or mixes up what was measured."""

from __future__ import annotations

import dataclasses
import logging
from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader, _CustomCollector
from opentelemetry.exporter.prometheus._mapping import sanitize_attribute
from opentelemetry.sdk.metrics.export import ExponentialHistogram, Histogram, HistogramDataPoint
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client.samples import Exemplar

from llmkg_otel.telemetry.series import RESERVED, one_point_a_series

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
    from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint, Metric, MetricsData
    from opentelemetry.util.types import AnyValue
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

    Labels = frozenset[tuple[str, str]]

__all__ = ["PrometheusReader"]

_log = logging.getLogger(__name__)


class PrometheusReader(PrometheusMetricReader):
    """OpenTelemetry's reader for a registry, with six differences.

    Exemplars are kept. Each sample has its own labels, however many meters use the name; the scope is a
    label only where two scopes' series would be one. Points that have the same labels in Prometheus are
    one (see series.py). A name that comes with a second type, or would be a second series of the same labels,
    is left out, with a warning. Of an exponential histogram count and sum are told: the text formats have
    no more. What a flush has collected is not told twice. Not thread-safe: one collection at a time.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry=registry)
        registry.unregister(self._collector)
        self._collector = _Collector(self.collect)
        registry.register(self._collector)


class _Collector(_CustomCollector):
    """Translates one metric at a time with the stock code, and joins what it gives."""

    _callback: Any  # the stock class starts with None

    def __init__(self, collect: Callable[[], None]) -> None:
        super().__init__()
        self._callback = collect
        self._exemplars: dict[tuple[str, Labels], dict[int, Exemplar]] = {}
        self._older = self._exemplars
        self._refused: set[str] = set()
        self._owners: dict[str, str] = {}

    def add_metrics_data(self, metrics_data: MetricsData) -> None:
        self._metrics_datas.clear()
        super().add_metrics_data(metrics_data)

    def _translate_to_prometheus(
        self, metrics_data: MetricsData, metric_family_id_metric_family: dict[str, Family]
    ) -> None:
        self._older, self._exemplars = self._exemplars, {}
        families = metric_family_id_metric_family.values()
        self._owners = {sample.name: family.name for family in families for sample in family.samples}
        super()._translate_to_prometheus(metrics_data, metric_family_id_metric_family)

    def _translate_metric(
        self,
        metric: Metric,
        scope_attrs: dict[str, AnyValue],
        resource_attrs: dict[str, AnyValue],
        metric_family_id_metric_family: dict[str, Family],
    ) -> None:
        metric = one_point_a_series(_classic(metric))
        alone: dict[str, Family] = {}
        super()._translate_metric(metric, {}, resource_attrs, alone)
        for family in alone.values():
            known = metric_family_id_metric_family.get(family.name, family)
            if not self._may_join(family, known):
                continue
            scope = {sanitize_attribute(k): str(v) for k, v in scope_attrs.items() if v}
            doubles = _relabel(family, known, scope)
            if isinstance(metric.data, Histogram):
                self._add_exemplars(family, metric.data)
            if doubles:
                self._refuse(family, "samples of", "the same series is there")
                family.samples = [each for i, each in enumerate(family.samples) if i not in doubles]
            if known is not family:
                known.samples += family.samples
            metric_family_id_metric_family[family.name] = known

    def _may_join(self, family: Family, known: Family) -> bool:
        """Say whether a name means one thing: samples of one family, all of one type."""
        names = {sample.name for sample in family.samples}
        others = {self._owners.get(name, family.name) for name in names} - {family.name}
        if known.type != family.type:
            self._refuse(family, f"a {family.type} named", f"there is a {known.type} of this name")
        elif others:
            self._refuse(family, f"a {family.type} named", f"{', '.join(others)} has samples of its name")
        else:
            self._owners |= dict.fromkeys(names, family.name)
            return True
        return False

    def _add_exemplars(self, family: Family, data: Histogram) -> None:
        """Give each bucket its latest exemplar, also one that an earlier collection has taken away.

        The SDK forgets an exemplar once it was collected, and alerts and status collect between scrapes.
        """
        samples = family.samples
        buckets = (index for index, sample in enumerate(samples) if sample.name.endswith("_bucket"))
        for point in data.data_points:
            own = list(islice(buckets, len(point.bucket_counts)))
            key = family.name, frozenset(samples[own[-1]].labels.items())
            latest = dict(self._older.get(key, {}))
            for exemplar in point.exemplars:
                if exemplar.trace_id:
                    latest[bisect_left(point.explicit_bounds, exemplar.value)] = _exemplar(exemplar)
            if latest:
                self._exemplars[key] = latest
            for bucket, found in latest.items():
                samples[own[bucket]] = samples[own[bucket]]._replace(exemplar=found)

    def _refuse(self, family: Family, what: str, why: str) -> None:
        if family.name not in self._refused:
            self._refused.add(family.name)
            _log.warning("/metrics leaves out %s %s: %s", what, family.name, why)


def _classic(metric: Metric) -> Metric:
    """Return a metric without exponential buckets."""
    if not isinstance(metric.data, ExponentialHistogram):
        return metric
    points = [_one_bucket(point) for point in metric.data.data_points]
    return dataclasses.replace(metric, data=Histogram(points, metric.data.aggregation_temporality))


def _one_bucket(point: ExponentialHistogramDataPoint) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=point.attributes,
        start_time_unix_nano=point.start_time_unix_nano,
        time_unix_nano=point.time_unix_nano,
        count=point.count,
        sum=point.sum,
        bucket_counts=[point.count],
        explicit_bounds=[],
        min=point.min,
        max=point.max,
        exemplars=point.exemplars,
    )


def _relabel(family: Family, known: Family, scope: Mapping[str, str]) -> set[int]:
    """Take empty labels away, and add the scope to series that are in the known family already.

    A histogram's buckets, sum and count go together: those of two scopes with other bounds would mix.
    Returns the samples whose series are there even so: two names of one scope may differ in Prometheus' eyes
    only by what is no letter.
    """
    others = known.samples if known is not family else []
    seen: dict[Labels, Labels | None] = dict.fromkeys(_series(sample.labels) for sample in others)
    doubles = set()
    for index, sample in enumerate(family.samples):
        before = _series(sample.labels)
        labels = {key: value for key, value in sample.labels.items() if value}
        if seen.get(_series(labels), before) != before:
            labels |= scope
        if seen.setdefault(_series(labels), before) != before:
            doubles.add(index)
        family.samples[index] = sample._replace(labels=labels)
    return doubles


def _series(labels: Mapping[str, str]) -> Labels:
    """Return what the samples of one series of a family have in common."""
    return frozenset((key, value) for key, value in labels.items() if key != RESERVED)


def _exemplar(exemplar: SdkExemplar) -> Exemplar:
    """Keep the ids alone: attributes that a View has dropped may be the user's data."""
    labels = {
        "trace_id": format_trace_id(exemplar.trace_id or 0),
        "span_id": format_span_id(exemplar.span_id or 0),
    }
    return Exemplar(labels, exemplar.value, exemplar.time_unix_nano / 1e9)
