"""Providers: nobody's are replaced, and what is missing is set up as the standard variables say."""

from __future__ import annotations

import json
import logging
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import SILENT, SPAN, facts, run

from llmkg_otel.telemetry.setup import set_up_telemetry

if TYPE_CHECKING:
    from llmkg_otel.testing import CapturedTelemetry


def test_importing_sets_no_provider_starts_no_thread_and_adds_no_handler() -> None:
    found = facts(
        "told(names=names(), threads=threading.active_count(), handlers=len(logging.root.handlers))"
    )
    assert found == {"names": ["ProxyTracerProvider", "_ProxyMeterProvider"], "threads": 1, "handlers": 0}


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
             still_read=system.get_prometheus_metrics().count("llmkg_operation_duration_seconds_count"),
             left="afterwards" not in system.get_prometheus_metrics())
    """)
    yes = dict.fromkeys(("kept", "used", "read", "alive", "left"), True)
    assert found == yes | {"still_read": 1}


PARTS = {
    "traces": """
from opentelemetry.sdk.trace import TracerProvider
mine = TracerProvider()
trace.set_tracer_provider(mine)
""",
    "metrics": """
from opentelemetry.sdk.metrics import MeterProvider
mine = MeterProvider()
metrics.set_meter_provider(mine)
""",
    "logs": """
from opentelemetry.sdk._logs import LoggerProvider
mine = LoggerProvider()
_logs.set_logger_provider(mine)
""",
}
USED = """
text = asyncio.run(use(make()))
every = trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider()
told(kept=mine in every, every=[type(each).__name__ for each in every],
     read="llmkg_operation_duration_seconds_count" in text)
"""


@pytest.mark.parametrize("part", PARTS)
def test_what_the_user_has_not_set_is_set_up_beside_what_they_have(part: str) -> None:
    done = run(PARTS[part] + USED, **dict.fromkeys(SILENT, "console"))
    every = ["TracerProvider", "MeterProvider", "LoggerProvider"]
    assert json.loads(done.stdout) == {"kept": True, "every": every, "read": True}
    shown = {"traces": SPAN, "metrics": '"llmkg.operation.duration"', "logs": '"body": "hello"'}
    assert {signal for signal, sign in shown.items() if sign not in done.stderr} == {part}
    assert "Overriding" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("tracer_provider=mine", ["ProxyTracerProvider", "MeterProvider"]),
        ("meter_provider=mine", ["TracerProvider", "_ProxyMeterProvider"]),
        ("mine, mine", ["ProxyTracerProvider", "_ProxyMeterProvider"]),
    ],
)
def test_a_provider_that_is_given_needs_no_global_one_and_the_other_does(
    arguments: str, expected: list[str]
) -> None:
    code = f"""
        from llmkg_otel.telemetry.setup import set_up_telemetry
        from opentelemetry.sdk.metrics import MeterProvider
        mine = MeterProvider()  # stands for either: nothing is asked of it here
        set_up_telemetry({arguments})
        told(names=names())
    """
    assert facts(code)["names"] == expected


SECOND = """
    reader = None
    {provider}

    async def serve():
        system = make()
        async with system:
            await system.execute_protected_operation("op", lambda: None)
            samples = system.telemetry.collected.collect()
            states = samples.named("llmkg_lifecycle_status")
            return {{
                "made": id(system.telemetry.meter_provider),
                "calls": samples.total("llmkg_operation_duration_seconds_count"),
                "states": [s.labels["state"] for s in states if s.value] + [len(states)],
                "breakers": samples.total("llmkg_circuit_breaker_calls_total", outcome="success"),
                "theirs": [point.value for part in reader.get_metrics_data().resource_metrics
                           for scope in part.scope_metrics for metric in scope.metrics
                           if metric.name == "llmkg.lifecycle.status"
                           for point in metric.data.data_points] if reader else [],
            }}

    first, second = asyncio.run(serve()), asyncio.run(serve())
    told(first=first, second=second)
"""
THEIRS = """
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
"""


@pytest.mark.parametrize("provider", ["", THEIRS], ids=["a provider of ours", "one of theirs"])
def test_a_processs_second_system_is_measured_and_read_as_the_first_was(provider: str) -> None:
    found = facts(SECOND.format(provider=provider))
    assert found["first"] == found["second"]
    assert found["second"]["calls"] == found["second"]["breakers"] == 1
    assert found["second"]["states"] == ["serving", 8]
    assert sorted(found["second"]["theirs"]) == ([0] * 7 + [1] if provider else [])


def test_the_second_systems_logs_are_exported_too_and_once() -> None:
    code = """
        asyncio.run(use(make()))
        asyncio.run(use(make()))
        told(handlers=len(logging.root.handlers))
    """
    done = run(code, OTEL_LOGS_EXPORTER="console")
    assert done.stderr.count('"body": "hello"') == 2
    assert json.loads(done.stdout) == {"handlers": 0}


WARNS = "health of alert_rules: unknown -> warn"


def test_a_disabled_sdk_leaves_calls_and_status_working_and_says_so_calmly() -> None:
    code = """
        from llmkg_otel.telemetry.logs import JsonLogs
        with JsonLogs("info"):
            system = make()
            result = system.execute_protected_operation_sync("op", lambda: 42)
            status = json.loads(json.dumps(system.read_status()))
            text = asyncio.run(use(system))
        told(result=result, sections=len(status), operations=status["system_metrics"]["operations"],
             text=text, alerts=status["alerts"], states=sorted(set(system.alerts.states().values())),
             open_metrics=system.telemetry.collected.expose("application/openmetrics-text")[1].decode(),
             evaluating="llmkg-alerts" in [thread.name for thread in threading.enumerate()])
    """
    exporters = dict.fromkeys(SILENT, "otlp")
    done = run(code, OTEL_SDK_DISABLED="true", **exporters)
    found = json.loads(done.stdout)
    assert (
        found.pop("alerts").items()
        >= {
            "active": [],
            "errors": ["there is no data: OTEL_SDK_DISABLED is true"],
        }.items()
    )
    assert found == {
        "result": 42,
        "sections": 8,
        "operations": 0,
        "text": "# no data: OTEL_SDK_DISABLED is true\n",
        "open_metrics": "# EOF\n",
        "states": ["unknown"],
        "evaluating": False,
    }
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = "OTEL_SDK_DISABLED is true: /metrics, status and alerts have no data"
    assert [line["level"] for line in lines if line["message"] == said] == ["info"]
    assert {line["level"] for line in lines if line["message"] not in ("hello", WARNS)} == {"info"}
    assert not [line for line in lines if "trace_id" in line or "correlation_id" in line]
    assert "000000" not in done.stderr.replace("+00:00", "")


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


def test_closing_twice_is_harmless(telemetry: CapturedTelemetry, caplog: pytest.LogCaptureFixture) -> None:
    ours = set_up_telemetry(telemetry.tracer_provider, telemetry.meter_provider)
    assert (ours.close(5), ours.close(5)) == (None, None)
    assert caplog.records == []


def test_a_meter_provider_that_cannot_be_read_is_told_of_once(
    telemetry: CapturedTelemetry, caplog: pytest.LogCaptureFixture
) -> None:
    other: Any = SimpleNamespace(get_meter=None)
    with caplog.at_level(logging.WARNING):
        ours = set_up_telemetry(telemetry.tracer_provider, other)
        assert list(ours.collected.collect()) == []
    (record,) = caplog.records
    assert "not the SDK's: /metrics, status and alerts have no data" in record.message


@pytest.mark.parametrize("calls", ["exhaust", "open"])
def test_a_disabled_sdk_protects_calls_as_ever(calls: str) -> None:
    code = f"""
        from llmkg_otel import OperationConfig
        from llmkg_otel.errors import RejectedError
        system = make()
        system.configure_operation("exhaust", OperationConfig(rate_limit="1/minute"))
        system.configure_operation("open", OperationConfig(
            retry={{"max_retries": 0}}, circuit_breaker={{"failure_threshold": 1}}))
        def fail():
            raise OSError
        seen = []
        for body in (fail if "{calls}" == "open" else list, list):
            try:
                system.execute_protected_operation_sync("{calls}", body)
            except (RejectedError, OSError) as error:
                seen.append(type(error).__name__)
        told(seen=seen)
    """
    expected = {"exhaust": ["RateLimitedError"], "open": ["OSError", "CircuitOpenError"]}
    assert facts(code, OTEL_SDK_DISABLED="true") == {"seen": expected[calls]}
