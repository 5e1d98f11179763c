"""Providers: nobody's are replaced, the standard variables count, and the end comes in time.

The global providers can be set once in a process, so each case has a process of its own.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from textwrap import dedent
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.telemetry.setup import set_up_telemetry

if TYPE_CHECKING:
    from llmkg_otel.testing import CapturedTelemetry

PREAMBLE = """
import asyncio, json, logging, threading, time
from opentelemetry import _logs, metrics, trace
import llmkg_otel
from llmkg_otel import ProductionConfig, ShutdownConfig, create_production_system

def told(**facts):
    print(json.dumps(facts))

def names():
    return [type(p).__name__ for p in (trace.get_tracer_provider(), metrics.get_meter_provider())]

def make(flush=2):
    shutdown = ShutdownConfig(lame_duck_seconds=0, flush_timeout_seconds=flush)
    return create_production_system(object(), ProductionConfig(shutdown=shutdown))

async def use(system):
    async with system:
        await system.execute_protected_operation("op", lambda: logging.getLogger("engine").warning("hello"))
        return system.get_prometheus_metrics()
"""
SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


def run(code: str, **environment: str) -> str:
    """Run code after the preamble, warnings as errors, and return what it printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLMKG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + dedent(code)],
        env=clean | SILENT | environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def facts(code: str, **environment: str) -> Any:
    return json.loads(run(code, **environment))


def test_importing_sets_no_provider_starts_no_thread_and_adds_no_handler() -> None:
    found = facts(
        "told(names=names(), threads=threading.active_count(), handlers=len(logging.root.handlers))"
    )
    assert found == {"names": ["ProxyTracerProvider", "_ProxyMeterProvider"], "threads": 1, "handlers": 0}


def test_without_providers_global_ones_are_made_and_a_second_system_takes_them_too() -> None:
    found = facts("""
        first = make()
        ours = trace.get_tracer_provider(), metrics.get_meter_provider()
        second = make()
        told(names=names(), owned=[len(first.telemetry.owned), len(second.telemetry.owned)],
             same=ours == (second.telemetry.tracer_provider, second.telemetry.meter_provider))
    """)
    assert found == {"names": ["TracerProvider", "MeterProvider"], "owned": [3, 0], "same": True}


def test_providers_that_the_user_has_set_are_kept_and_outlive_the_system() -> None:
    found = facts("""
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        reader = InMemoryMetricReader()
        mine = TracerProvider(), MeterProvider([reader])
        trace.set_tracer_provider(mine[0])
        metrics.set_meter_provider(mine[1])
        system = make()
        text = asyncio.run(use(system))
        metrics.get_meter("mine").create_counter("afterwards").add(1)
        told(kept=mine == (trace.get_tracer_provider(), metrics.get_meter_provider()),
             used=mine == (system.telemetry.tracer_provider, system.telemetry.meter_provider),
             read="llmkg_operation_duration_seconds_count" in text,
             alive="afterwards" in reader.get_metrics_data().to_json(),
             after=len(list(system.telemetry.collected.collect())))
    """)
    assert found == {"kept": True, "used": True, "read": True, "alive": True, "after": 0}


def test_a_disabled_sdk_leaves_calls_and_status_working() -> None:
    code = """
        system = make()
        result = system.execute_protected_operation_sync("op", lambda: 42)
        status = json.loads(json.dumps(system.read_status()))
        asyncio.run(use(system))
        told(result=result, sections=len(status), operations=status["system_metrics"]["operations"])
    """
    assert facts(code, OTEL_SDK_DISABLED="true") == {"result": 42, "sections": 8, "operations": 0}


RESOURCE = """
    make()
    told(**trace.get_tracer_provider().resource.attributes)
"""


def test_the_resource_describes_this_service_by_default() -> None:
    found = facts(RESOURCE)
    assert found["service.name"] == "llmkg"
    assert found["service.version"]
    assert len(found["service.instance.id"]) == 36


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_SERVICE_NAME": "theirs"},
        {"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,service.instance.id=pod-1,team=graphs"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_the_resource_that_the_environment_describes_wins(environment: dict[str, str]) -> None:
    found = facts(RESOURCE, **environment)
    assert found["service.name"] == "theirs"
    if "OTEL_RESOURCE_ATTRIBUTES" in environment:
        assert (found["service.instance.id"], found["team"]) == ("pod-1", "graphs")


def test_exporters_are_those_of_the_standard_variables() -> None:
    console = dict.fromkeys(SILENT, "console")
    printed = run("asyncio.run(use(make()))", **console)
    for expected in ('"name": "op"', '"name": "llmkg.shutdown"', '"llmkg.operation.duration"', '"hello"'):
        assert expected in printed


@pytest.mark.parametrize(("exporter", "expected"), [("none", []), ("console", ["LoggingHandler"])])
def test_logs_have_a_handler_where_they_have_an_exporter_and_until_the_end(
    exporter: str, expected: list[str]
) -> None:
    code = """
        system = make()
        handlers = [type(handler).__name__ for handler in logging.root.handlers]
        system.telemetry.close(2)
        told(during=handlers, after=len(logging.root.handlers))
    """
    found = json.loads(run(code, OTEL_LOGS_EXPORTER=exporter).splitlines()[-1])
    assert found == {"during": expected, "after": 0}


def test_a_collector_that_accepts_and_never_answers_holds_nobody_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        found = facts(
            """
            system = make(flush=0.3)
            system.execute_protected_operation_sync("op", lambda: None)
            began = time.monotonic()
            problem = system.telemetry.close(0.3)
            told(problem=problem, seconds=time.monotonic() - began)
            """,
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        )
        assert found["problem"] == "2 of 3 telemetry providers did not finish in 0.3 s"
        assert found["seconds"] < 3
        assert time.monotonic() - began < 30


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


def test_closing_tells_of_a_provider_that_raises_and_of_one_that_hangs(
    telemetry: CapturedTelemetry, release: threading.Event
) -> None:
    def raises() -> None:
        raise OSError("disk full")

    failing: Any = SimpleNamespace(force_flush=raises)
    assert set_up_telemetry(failing, telemetry.meter_provider).close(5) == "OSError('disk full')"
    hanging: Any = SimpleNamespace(force_flush=lambda: release.wait(20))
    began = time.monotonic()
    problem = set_up_telemetry(hanging, telemetry.meter_provider).close(0.05)
    assert problem == "1 of 2 telemetry providers did not finish in 0.05 s"
    assert time.monotonic() - began < 5
    release.set()


def test_closing_twice_is_harmless(telemetry: CapturedTelemetry) -> None:
    ours = set_up_telemetry(telemetry.tracer_provider, telemetry.meter_provider)
    assert (ours.close(5), ours.close(5)) == (None, None)


def test_a_meter_provider_that_cannot_be_read_is_told_of(
    telemetry: CapturedTelemetry, caplog: pytest.LogCaptureFixture
) -> None:
    other: Any = SimpleNamespace(get_meter=None)
    with caplog.at_level(logging.WARNING):
        ours = set_up_telemetry(telemetry.tracer_provider, other)
    assert "not the SDK's: /metrics, status and alerts stay empty" in caplog.text
    assert list(ours.collected.collect()) == []
