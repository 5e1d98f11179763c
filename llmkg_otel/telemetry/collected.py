"""The collected metrics, read back: the one store that /metrics, status and alerts all read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

__all__ = ["CollectedMetrics", "Sample", "Samples"]


class Sample(NamedTuple):
    """One value under its Prometheus name and labels; an empty label is none, as in Prometheus.

    The exporter gives all points of a metric the same label names, and those that lack one an empty value.
    """

    name: str
    labels: Mapping[str, str]
    value: float


class Samples:
    """One collection, to look values up in."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def __iter__(self) -> Iterator[Sample]:
        for samples in self._by_name.values():
            yield from samples

    def named(self, name: str, /, **labels: str) -> list[Sample]:
        """Return the samples of one name whose labels have these values."""
        found = self._by_name.get(name, ())
        return [s for s in found if all(s.labels.get(key) == value for key, value in labels.items())]

    def total(self, name: str, /, **labels: str) -> float:
        """Return the sum over the samples that match; 0.0 when there is none."""
        return sum(sample.value for sample in self.named(name, **labels))


class CollectedMetrics:
    """Owns the Prometheus reader; collects on demand, one collection at a time, from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self.reader = PrometheusMetricReader(registry=self._registry, scope_info_enabled=False)

    def collect(self) -> Samples:
        """Collect now and return every sample."""
        with self._lock:
            families = list(self._registry.collect())
        return Samples(
            Sample(sample.name, {k: v for k, v in sample.labels.items() if v}, float(sample.value))
            for family in families
            for sample in family.samples
        )

    def expose(self, accept: str = "") -> tuple[str, bytes]:
        """Return (content type, body) in the format an Accept header asks for: text or OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        with self._lock:
            frozen = _Families(list(self._registry.collect()))
        return content_type, encode(frozen)


class _Families:
    """Families that were collected already, in the shape the encoders ask for."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
