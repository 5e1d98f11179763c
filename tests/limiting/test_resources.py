from __future__ import annotations

import os
import socket
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import ResourceLimits
from llmkg_otel.errors import ResourceExhaustedError
from llmkg_otel.limiting import resources as module
from llmkg_otel.limiting.resources import Resources, ResourceUsage

LIMITS = ResourceLimits(max_memory_bytes=1000, max_cpu_percent=80, max_database_connections=3)
CPUS = len(os.sched_getaffinity(0))


def exhausted_after(*samples: tuple[float, ...]) -> frozenset[str]:
    resources = Resources(LIMITS)
    for sample in samples:
        resources.observe(ResourceUsage(*sample))
    return resources.exhausted


def refusal(resources: Resources) -> ResourceExhaustedError:
    with pytest.raises(ResourceExhaustedError) as caught:
        resources.check("search")
    return caught.value


def test_the_limits_are_told_in_the_units_of_the_samples() -> None:
    assert Resources(LIMITS).limits == {"memory": 1000.0, "cpu": 0.8, "connections": 3.0}


def test_before_the_first_sample_nothing_is_refused() -> None:
    Resources(LIMITS).check("search")


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ((1000, 0.8, 3), set()),
        ((1001, 0), {"memory"}),
        ((0, 0.801), {"cpu"}),
        ((0, 0, 4), {"connections"}),
        ((1001, 0.801, 4), {"memory", "cpu", "connections"}),
    ],
)
def test_a_resource_is_exhausted_above_its_limit_and_not_at_it(
    sample: tuple[float, ...], expected: set[str]
) -> None:
    assert exhausted_after(sample) == expected


@pytest.mark.parametrize(("memory", "still"), [(1000, True), (951, True), (950, False), (0, False)])
def test_what_ran_out_is_free_again_only_well_below_its_limit(memory: float, still: bool) -> None:
    assert exhausted_after((1001, 0), (memory, 0)) == ({"memory"} if still else set())
    assert exhausted_after((1001, 0), (0, 0), (memory, 0)) == set()


def test_each_resource_recovers_by_itself() -> None:
    assert exhausted_after((1001, 0.81), (960, 0.7)) == {"memory"}
    assert exhausted_after((1001, 0.81), (900, 0.79)) == {"cpu"}


@given(st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 1), st.floats(0, 9)), min_size=1))
def test_the_peaks_are_the_largest_samples_and_the_usage_is_the_last(
    samples: list[tuple[float, float, float]],
) -> None:
    resources = Resources(LIMITS)
    for sample in samples:
        resources.observe(ResourceUsage(*sample))
    assert resources.usage == ResourceUsage(*samples[-1])
    assert resources.peak == ResourceUsage(*(max(column) for column in zip(*samples, strict=True)))


@pytest.mark.parametrize(
    ("usage", "scope", "limit"),
    [
        (ResourceUsage(memory=2000), "memory", "1000 bytes"),
        (ResourceUsage(cpu=0.9), "cpu", f"80% of {CPUS} CPUs"),
        (ResourceUsage(connections=4), "connections", "3 connections"),
        (ResourceUsage(memory=2000, cpu=0.9), "cpu", f"80% of {CPUS} CPUs"),
    ],
)
def test_a_refusal_names_the_resource_its_limit_with_unit_and_when_to_come_back(
    usage: ResourceUsage, scope: str, limit: str
) -> None:
    resources = Resources(LIMITS)
    resources.observe(usage)
    error = refusal(resources)
    assert str(error) == f"search: {scope} is over its limit"
    assert (error.operation, error.scope, error.limit, error.retry_after) == ("search", scope, limit, 1.0)


def test_a_resource_that_recovers_while_a_call_is_checked_breaks_nothing() -> None:
    class Recovering(Resources):
        """Is over its limit at the first look and no longer at the second."""

        looks = iter([frozenset({"memory"}), frozenset[str]()])

        @property
        def _exhausted(self) -> frozenset[str]:
            return next(self.looks)

        @_exhausted.setter
        def _exhausted(self, _value: frozenset[str]) -> None:
            """Keep the looks."""

    assert refusal(Recovering(LIMITS)).scope == "memory"


def test_cpu_is_a_running_mean_of_what_all_usable_cpus_could_do(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = SimpleNamespace(
        cpu_percent=lambda: 100.0 * CPUS,
        memory_info=lambda: SimpleNamespace(rss=77),
        net_connections=lambda kind: [],
    )
    monkeypatch.setattr(psutil, "Process", lambda: busy)
    resources = Resources(LIMITS)
    for mean in (0.3, 0.51, 0.657, 0.7599, 0.83193):
        resources.observe(resources._sample())
        assert resources.usage.cpu == pytest.approx(mean)
        assert bool(resources.exhausted) is (mean > 0.8)
    assert resources.usage.memory == 77


class Watched(Resources):
    """Says when it has taken a second sample from its thread."""

    def __init__(self) -> None:
        super().__init__(ResourceLimits(max_memory_bytes=1))
        self.threads: list[threading.Thread] = []
        self.sampled = threading.Event()

    def observe(self, usage: ResourceUsage) -> None:
        super().observe(usage)
        self.threads.append(threading.current_thread())
        if len(self.threads) > 2:
            self.sampled.set()


def test_samples_are_taken_on_a_thread_between_start_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.05)  # at 0 the sampler itself would use up the CPU
    resources = Watched()
    for _ in range(2):
        resources.threads.clear()
        resources.sampled.clear()
        resources.start()
        assert resources.threads[0] is threading.current_thread()  # the first one at once
        assert resources.sampled.wait(5)
        resources.stop()
        sampler = resources.threads[-1]
        assert (sampler.name, sampler.daemon, sampler.is_alive()) == ("llmkg-resources", True, False)
    assert resources.usage.memory > 1_000_000
    assert refusal(resources).limit == "1 bytes"


def test_connections_are_those_that_this_process_has_opened_itself() -> None:
    resources = Resources(LIMITS)
    before = resources._sample().connections
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for _ in range(4):
            stack.enter_context(socket.create_connection(server.getsockname()))
            stack.enter_context(server.accept()[0])  # the other end is in this process too, and not counted
        resources.observe(resources._sample())
        assert resources.usage.connections == before + 4
        assert "connections" in resources.exhausted
    resources.observe(resources._sample())
    assert resources.usage.connections == before


def test_stopping_what_never_started_does_nothing() -> None:
    Resources(LIMITS).stop()
