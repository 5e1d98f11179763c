"""The status dictionary: eight sections, fit for JSON, with the collected metrics' own numbers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from support.calls import asynchronous, failing_first, in_a_thread, in_the_calling_thread

from llmkg_otel.config import (
    MonitoringConfig,
    OperationConfig,
    RateLimitConfig,
    RateLimitRule,
    ResourceLimits,
    RetryConfig,
)
from llmkg_otel.errors import InvalidInputError
from llmkg_otel.limiting.resources import ResourceUsage
from llmkg_otel.testing import attributes_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.calls import Path as CallPath

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

SECTIONS = {
    *("health", "resources", "rate_limits", "error_recovery"),
    *("system_metrics", "shutdown", "performance", "alerts"),
}


@pytest.fixture
def busy(make_system: Callable[..., ProductionSystem]) -> ProductionSystem:
    """Make a system that has had two successes, one of them after a retry, two failures and a refusal."""
    system = make_system(
        resources=ResourceLimits(max_memory_bytes=1000, max_cpu_percent=50, max_concurrent_operations=7),
        rate_limiting=RateLimitConfig(requests_per_second=1e-3, burst_capacity=4),
        operations={"quiet": OperationConfig(max_concurrent=3)},
    )

    def fails() -> None:
        raise KeyError

    for step in (lambda: None, failing_first(lambda: None), fails, fails, fails):
        with suppress(Exception):
            system.execute_protected_operation_sync("op", step)
    system.resources.observe(ResourceUsage(memory=800, cpu=0.4))
    system.resources.observe(ResourceUsage(memory=250, cpu=0.2))
    return system


def number(telemetry: CapturedTelemetry, name: str, /, **attributes: str) -> Any:
    """Return one point of the metrics that were collected without this library's own reader."""
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    return telemetry.metric(name)[attributes_key(named)]


async def test_the_status_has_eight_sections_and_is_json(busy: ProductionSystem) -> None:
    status = await busy.get_system_status()
    assert set(status) == SECTIONS
    assert json.loads(json.dumps(status, allow_nan=False)) == status


def test_a_new_system_has_a_status_too(system: ProductionSystem) -> None:
    system.configure_operation("op", OperationConfig())
    status = json.loads(json.dumps(system.read_status(), allow_nan=False))
    assert status["error_recovery"]["op"]["success_rate"] is None
    assert status["performance"]["op"]["p99_seconds"] is None


async def test_the_status_can_be_read_when_all_is_over(busy: ProductionSystem) -> None:
    async with busy:
        pass
    status = json.loads(json.dumps(busy.read_status(), allow_nan=False))
    assert status["shutdown"] == {
        "state": "stopped",
        "operations": {"drained": 0, "cancelled": 0, "refused": 0},
    }
    assert status["error_recovery"]["op"]["calls"] == 5
    assert status["system_metrics"]["memory_usage_percent"] > 0  # as it was at the end


def test_calls_and_failures_are_those_of_the_duration_metric(
    busy: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    status = busy.read_status()
    recovery = status["error_recovery"]["op"]
    name = {"llmkg__operation__name": "op"}
    for error, count in recovery["failed"].items():
        assert number(telemetry, "llmkg.operation.duration", **name, error__type=error)[0] == count
    assert recovery["failed"] == {"KeyError": 2, "rate_limited": 1}
    assert recovery["succeeded"] == number(telemetry, "llmkg.operation.duration", **name)[0] == 2
    assert (recovery["calls"], recovery["success_rate"]) == (5, 0.4)
    assert (status["system_metrics"]["operations"], status["system_metrics"]["failed_operations"]) == (5, 3)


def test_retries_and_circuit_are_those_of_the_operation(
    busy: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    recovery = busy.read_status()["error_recovery"]["op"]
    for outcome, count in recovery["retries"].items():
        assert number(telemetry, "llmkg.retry.calls", name="op", outcome=outcome) == count
    assert {k: v for k, v in recovery["retries"].items() if v} == {
        "first_try": 1,
        "recovered": 1,
        "exhausted": 1,
        "not_retryable": 1,
    }
    assert recovery["circuit_breaker"] == "open"  # five failures in a row: three attempts and two
    assert number(telemetry, "llmkg.circuit_breaker.status", name="op", state="open") == 1


def test_timing_is_read_from_the_histogram(busy: ProductionSystem, telemetry: CapturedTelemetry) -> None:
    timing = busy.read_status()["performance"]["op"]
    points = [p for p in telemetry.metric("llmkg.operation.duration").values() if isinstance(p, tuple)]
    assert timing["calls"] == sum(count for count, _ in points)
    assert timing["mean_seconds"] == pytest.approx(sum(total for _, total in points) / 5)
    assert 0 < timing["p50_seconds"] <= timing["p95_seconds"] <= timing["p99_seconds"] < 60


def test_resources_and_permits_are_those_of_the_metrics(
    busy: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    status = busy.read_status()
    expected = {"memory_bytes": 250, "max_memory_bytes": 1000, "peak_memory_bytes": 800}
    expected |= {"cpu_percent": 20, "max_cpu_percent": 50, "peak_cpu_percent": 40, "operations_in_flight": 0}
    assert {key: status["resources"][key] for key in expected} == expected
    assert status["system_metrics"]["memory_usage_percent"] == 25
    assert number(telemetry, "llmkg.resource.usage", name="memory") == 250
    assert status["resources"]["permits"] == {
        "operations": {"limit": 7, "in_use": 0, "waiting": 0},
        "quiet": {"limit": 3, "in_use": 0, "waiting": 0},
    }


def test_rate_limits_are_those_of_the_metric(busy: ProductionSystem, telemetry: CapturedTelemetry) -> None:
    limits = busy.read_status()["rate_limits"]
    assert limits["global"] == {"acquired": 4, "rejected": 1}
    assert number(telemetry, "llmkg.rate_limit.requests", policy="global", result="rejected") == 1


def test_per_user_refusals_are_told_without_the_user(make_system: Callable[..., ProductionSystem]) -> None:
    once = RateLimitRule(requests_per_second=1e-3, burst_capacity=1)
    system = make_system(rate_limiting=RateLimitConfig(per_user=once))
    for _ in range(2):
        with suppress(Exception):
            system.execute_protected_operation_sync("op", lambda: None, user_id="ann")
    status = system.read_status()
    assert status["rate_limits"]["user"] == {"acquired": 1, "rejected": 1}
    assert "ann" not in json.dumps(status)


async def test_health_and_alerts_are_those_of_the_report_and_the_rules(busy: ProductionSystem) -> None:
    async with busy:
        status = busy.read_status()
    assert status["health"]["status"] == "warn"
    breakers = status["health"]["components"]["circuit_breakers"]
    assert breakers == {"status": "warn", "message": "op open", "essential": False}
    assert status["health"]["components"]["engine"]["status"] == "pass"
    assert status["alerts"] == {"rules": 0, "active": [], "errors": [], "history": []}


@pytest.mark.parametrize("path", [asynchronous, in_a_thread, in_the_calling_thread])
async def test_tracked_performance_tells_attempts_from_calls(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry, path: CallPath
) -> None:
    system = make_system(
        retry=RetryConfig(base_delay_ms=0, max_delay_ms=0),
        monitoring=MonitoringConfig(enable_performance_tracking=True),
    )
    await path(system, failing_first(lambda: "done"))
    failed = number(
        telemetry, "llmkg.attempt.duration", llmkg__operation__name="op", error__type="ConnectionError"
    )
    succeeded = number(telemetry, "llmkg.attempt.duration", llmkg__operation__name="op")
    assert (failed[0], succeeded[0]) == (1, 1)
    told = (await system.get_system_status())["performance"]["op"]
    assert told["calls"] == 1
    assert told["attempt"]["mean_seconds"] == pytest.approx((failed[1] + succeeded[1]) / 2)


def test_attempts_are_not_measured_unless_asked_for(
    busy: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    assert "attempt" not in busy.read_status()["performance"]["op"]
    assert telemetry.metric("llmkg.attempt.duration") == {}


def test_a_breakers_status_has_its_state_and_the_collected_counts(busy: ProductionSystem) -> None:
    status = busy.get_circuit_breaker_status("op")
    assert set(status) == {
        *("name", "state", "consecutive_failures", "opened_by", "retry_after_seconds", "window", "calls"),
    }
    calls = busy.read_status()["error_recovery"]["op"]
    assert (status["name"], status["state"]) == ("op", calls["circuit_breaker"])
    assert status["calls"]["success"] == calls["succeeded"] == 2
    with pytest.raises(InvalidInputError, match="nobody"):
        busy.get_circuit_breaker_status("nobody")
