"""A real fork: a child that uses what its parent made is refused at once, and exports none of its series."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import run

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator

FORK = """
import os, signal, sys, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads

def in_a_fork(work):
    sys.stdout.flush()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(20)  # a deadlock ends the child, and the test
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os.close(writing)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child did not end by itself"
    return json.loads(told)
"""
HELD = """
from contextlib import contextmanager

@contextmanager
def held_by_another_thread(*locks):
    taken, over = threading.Event(), threading.Event()
    def hold():
        for lock in locks:
            lock.acquire()
        taken.set()
        over.wait()
        for lock in locks:
            lock.release()
    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield
    over.set()
    thread.join()
"""


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.mark.parametrize(
    "use",
    [
        'system.execute_protected_operation_sync("op", list)',
        'system.execute_protected_operation_sync("another", list)',
        'asyncio.run(system.execute_protected_operation("op", list))',
        "protected()",
        "system.get_prometheus_metrics()",
        "system.read_status()",
        "asyncio.run(system.shutdown())",
    ],
)
def test_a_child_is_refused_even_while_another_thread_of_its_parent_holds_the_locks(use: str) -> None:
    code = f"""
        system = make()
        protected = system.protected("op")(list)
        protected()
        locks = system.operations._lock, system.telemetry.collected._lock
        with held_by_another_thread(*locks):
            child = in_a_fork(lambda: {use} and "served")
        told(child=child, parent=protected(), pid=os.getpid())
    """
    found: Any = json.loads(run(FORK + HELD + code_of(code)).stdout)
    said = f"this ProductionSystem was made in process {found['pid']}, a fork of which this is"
    assert found["child"].startswith(f"ConfigurationError: {said}")
    assert found["parent"] == []


def code_of(text: str) -> str:
    return "\n".join(line.removeprefix(" " * 8) for line in text.splitlines())


def test_a_child_exports_none_of_its_parents_series(collector: OtlpReceiver) -> None:
    code = """
        system = make()
        for _ in range(3):
            system.execute_protected_operation_sync("op", list)
        exported = lambda: metrics.get_meter_provider().force_flush() and os.getpid()
        child = in_a_fork(exported)
        first = metrics.get_meter_provider().force_flush()
        told(child=child, first=first)
    """
    done = run(FORK + code_of(code), **collector.environment() | {"OTEL_METRIC_EXPORT_INTERVAL": "3600000"})
    assert json.loads(done.stdout)["first"] is True
    points = collector.metric("llmkg.operation.duration")
    assert [point.count for point in points.values()] == [3]
    assert collector.exports["metrics"] == 2  # the flush and the last at exit, both the parent's


def test_a_system_of_the_childs_own_needs_providers_of_its_own() -> None:
    code = """
        make()
        def own(*providers):
            system = llmkg_otel.ProductionSystem(object(), None, **dict(providers))
            system.execute_protected_operation_sync("op", list)
            return system.telemetry.collected.collect().total("llmkg_operation_duration_seconds_count")
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        told(theirs=in_a_fork(own), own=in_a_fork(lambda: own(
            ("meter_provider", MeterProvider()), ("tracer_provider", TracerProvider()))))
    """
    found = json.loads(run(FORK + code_of(code)).stdout)
    assert found["own"] == 1
    assert found["theirs"].startswith(
        "ConfigurationError: the global provider of traces was set up in process"
    )


def test_a_fork_before_the_first_system_is_no_matter() -> None:
    code = """
        def serve():
            system = make()
            return system.execute_protected_operation_sync("op", lambda: 42)
        told(children=[in_a_fork(serve), in_a_fork(serve)], parent=serve())
    """
    assert json.loads(run(FORK + code_of(code)).stdout) == {"children": [42, 42], "parent": 42}


def test_a_child_that_ends_as_programs_do_waits_for_nothing() -> None:
    code = """
        make(flush=30)
        began = time.monotonic()
        if (child := os.fork()) == 0:
            sys.exit()
        os.waitpid(child, 0)
        told(quick=time.monotonic() - began < 4)
    """
    assert json.loads(run(FORK + code_of(code)).stdout) == {"quick": True}


def test_the_lines_that_a_child_logs_are_written() -> None:
    code = """
        from llmkg_otel.telemetry import logs
        with logs.JsonLogs("info") as written:
            def log():
                logging.getLogger("child").warning("from the child")
                written._lines.flush()
            with held_by_another_thread(written._lines.lock, logs._drop_lock):
                in_a_fork(log)
            logging.getLogger("parent").warning("from the parent")
        told()
    """
    done = run(FORK + HELD + code_of(code))
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == [
        "from the child",
        "from the parent",
    ]
