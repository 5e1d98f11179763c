"""The collected metrics, read back: the one store that /metrics, status and alerts all read."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from llmkg_otel.telemetry.prometheus import PrometheusReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from prometheus_client.metrics_core import Metric

__all__ = ["CollectedMetrics", "LatestCallbacks", "Sample", "Samples"]


WAIT_SECONDS = 10.0
"""How long a reader waits for another's collection, which ends never if a callback in it hangs."""


class Sample(NamedTuple):
    """One value under its Prometheus name and labels; an empty label is none, as in Prometheus."""

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
        self._provider: SdkMeterProvider | None = None
        self._last: list[Metric] = []
        self.reader = PrometheusReader(self._registry)
        self.no_data: str | None = None
        """Why nothing is ever collected; None when something is."""

    def attach(self, provider: MeterProvider, no_data: str | None = None) -> None:
        """Collect from this provider, unless there is a reason why it has nothing, or it is not the SDK's."""
        if no_data is None and isinstance(provider, SdkMeterProvider):
            self._provider = provider
            provider.add_metric_reader(self.reader)
        else:
            self.no_data = no_data or f"the meter provider is {type(provider).__name__}, not the SDK's"
            self.reader.shutdown()

    def detach(self) -> None:
        """Leave the provider, for good; what is collected now is what is read from now on."""
        with self._lock:
            provider, self._provider = self._provider, None
            if provider is not None:
                try:
                    self._last = list(self._registry.collect())
                finally:
                    provider.remove_metric_reader(self.reader)

    def collect(self) -> Samples:
        """Collect now and return every sample."""
        return Samples(
            Sample(sample.name, sample.labels, float(sample.value))
            for family in self._families()
            for sample in family.samples
        )

    def expose(self, accept: str = "") -> tuple[str, bytes]:
        """Return (content type, body) in the format an Accept header asks for: text or OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        body = encode(_Families(self._families()))
        if self.no_data is not None and content_type.startswith("text/plain"):
            body = f"# no data: {self.no_data}\n".encode()
        return content_type, body

    def _families(self) -> list[Metric]:
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise TimeoutError(
                f"another collection of the metrics has not ended for {WAIT_SECONDS:g} s: "
                "a callback of an instrument hangs"
            )
        try:
            return self._last or list(self._registry.collect())
        finally:
            self._lock.release()


class _Families:
    """Families that were collected already, in the shape the encoders ask for."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class LatestCallbacks:
    """A meter whose observable instruments read the callbacks they were last created with.

    The SDK keeps the callbacks of an instrument's first creation and ignores those of a second one, so
    the live values of a process's second system would stay those of its first, which is closed.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        create = getattr(self._meter, name)
        return functools.partial(self._observe, create) if name.startswith("create_observable") else create

    def _observe(self, create: Callable[..., object], name: str, callbacks: Any, **described: str) -> object:
        latest = vars(self._meter).setdefault("_llmkg_callbacks", {})  # lives and dies with the meter
        latest[name] = callbacks

        def read(options: CallbackOptions) -> Iterable[Observation]:
            return [observation for callback in latest[name] for observation in callback(options)]

        return create(name, callbacks=[read], **described)
