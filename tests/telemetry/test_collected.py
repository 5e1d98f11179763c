"""The collected metrics read back: complete, from any thread, in both exposition formats."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider

from llmkg_otel.telemetry.collected import CollectedMetrics, LatestCallbacks, Sample, Samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.metrics import Meter

    Reading = tuple[CollectedMetrics, Meter]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def reading() -> Iterator[Reading]:
    collected = CollectedMetrics()
    provider = MeterProvider([collected.reader], shutdown_on_exit=False)
    yield collected, provider.get_meter("t")
    provider.shutdown()


def test_values_are_read_back_under_their_prometheus_names(reading: Reading) -> None:
    collected, meter = reading
    meter.create_counter("a.calls", unit="{call}").add(2, {"who.what": "x"})
    meter.create_histogram("a.wait", unit="s", explicit_bucket_boundaries_advisory=[1.0]).record(0.5)
    samples = collected.collect()
    assert samples.named("a_calls_total") == [Sample("a_calls_total", {"who_what": "x"}, 2.0)]
    assert [(s.labels["le"], s.value) for s in samples.named("a_wait_seconds_bucket")] == [
        ("1.0", 1.0),
        ("+Inf", 1.0),
    ]
    assert samples.total("a_wait_seconds_sum") == 0.5


def test_an_empty_label_is_none(reading: Reading) -> None:
    collected, meter = reading
    calls = meter.create_counter("calls")
    calls.add(1, {"name": "a"})
    calls.add(1, {"name": "a", "error.type": "KeyError"})
    found = [dict(sample.labels) for sample in collected.collect().named("calls_total")]
    assert found == [{"name": "a"}, {"name": "a", "error_type": "KeyError"}]


def test_samples_are_found_by_name_and_labels() -> None:
    one, two = Sample("a", {"x": "1", "y": "1"}, 1.0), Sample("a", {"x": "2"}, 2.5)
    other = Sample("b", {"x": "1"}, 10.0)
    samples = Samples([one, other, two])
    assert list(samples) == [one, two, other]
    assert samples.named("a") == [one, two]
    assert samples.named("a", x="1", y="1") == [one]
    assert samples.named("a", y="2") == samples.named("nothing") == []
    assert (samples.total("a"), samples.total("a", x="2"), samples.total("nothing")) == (3.5, 2.5, 0.0)


@pytest.mark.parametrize("label", ["name", "self"])
def test_a_label_may_have_any_name(label: str) -> None:
    assert Samples([Sample("a", {label: "1"}, 2.0)]).total("a", **{label: "1"}) == 2.0


@pytest.mark.parametrize(
    ("accept", "content_type", "ends"),
    [
        ("", "text/plain", ""),
        ("text/html", "text/plain", ""),
        (OPENMETRICS, "application/openmetrics-text", "# EOF\n"),
        (f"{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.3", "application/openmetrics-text", "# EOF\n"),
    ],
)
def test_the_accept_header_chooses_the_format(
    accept: str, content_type: str, ends: str, reading: Reading
) -> None:
    collected, meter = reading
    meter.create_counter("calls").add(1)
    given, body = collected.expose(accept)
    text = body.decode()
    assert given.startswith(content_type)
    assert "\ncalls_total 1.0\n" in text
    assert ("# EOF" in text) == bool(ends)
    assert text.endswith(ends)


@pytest.mark.parametrize("collect", ["collect", "expose"])
def test_collections_from_two_threads_are_both_complete(collect: str, reading: Reading) -> None:
    collected, meter = reading
    meter.create_counter("calls").add(1)
    together = threading.Barrier(2)
    exporter: Any = collected.reader._collector
    gather = exporter._callback

    def gather_and_wait() -> None:
        gather()
        with suppress(threading.BrokenBarrierError):
            together.wait(0.1)  # gives the other thread, if it may be in here too, the time to mix things up

    exporter._callback = gather_and_wait

    def read(_number: int) -> object:
        return collected.expose() if collect == "expose" else collected.collect().total("calls_total")

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(read, range(2))
    assert first == second
    assert first in (1.0, collected.expose())


def test_what_was_collected_last_is_read_after_leaving_and_a_read_meanwhile_is_whole() -> None:
    collected = CollectedMetrics()
    provider = MeterProvider(shutdown_on_exit=False)
    collected.attach(provider)
    assert collected.no_data is None
    calls = provider.get_meter("t").create_counter("calls")
    calls.add(1)
    with ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(lambda: collected.collect().total("calls_total")) for _ in range(50)]
        collected.detach()
    calls.add(1)
    assert {read.result() for read in reads} == {1.0}
    assert collected.collect().total("calls_total") == 1.0
    assert b"calls_total 1.0" in collected.expose()[1]
    provider.shutdown()


def test_an_observable_instrument_reads_the_callbacks_it_was_last_created_with(reading: Reading) -> None:
    collected, meter = reading
    for value in (1, 2):
        latest: Any = LatestCallbacks(meter)
        latest.create_observable_counter("seen", [lambda _options, value=value: [Observation(value)]])
        latest.create_observable_up_down_counter("level", callbacks=[lambda _: [Observation(-1)]], unit="1")
        latest.create_counter("written").add(1)
        samples = collected.collect()
        assert [sample.value for sample in samples.named("seen_total")] == [value]
        assert [sample.value for sample in samples.named("level")] == [-1]
        assert samples.total("written_total") == value
