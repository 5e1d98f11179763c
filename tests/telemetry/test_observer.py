"""What calls and events become in traces and metrics, and that telemetry never fails a call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import get_current_span
from support.calls import asynchronous, exits, failing_first, in_the_calling_thread, retried, retried_sync

from llmkg_otel.config import (
    CircuitBreakerConfig,
    OperationConfig,
    ProductionConfig,
    RateLimitConfig,
    RetryConfig,
)
from llmkg_otel.errors import CircuitOpenError, RateLimitedError
from llmkg_otel.system import ProductionSystem

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.calls import Path

    from llmkg_otel.testing import CapturedTelemetry

    MakeSystem = Callable[..., ProductionSystem]


class Broken:
    """An instrument or a span: whatever one does with it raises."""

    def __getattr__(self, name: str) -> Any:
        def raises(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError(f"{name} is broken")

        return raises


class BrokenMeter:
    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: Broken()


def provider(**parts: Any) -> Any:
    (name,) = parts
    return SimpleNamespace(**{f"get_{name}": lambda *_args: parts[name]})


TRACERS = {
    "start_span raises": provider(tracer=Broken()),
    "spans raise": provider(tracer=SimpleNamespace(start_span=lambda *_args, **_kwargs: Broken())),
}


@pytest.mark.parametrize("path", [asynchronous, in_the_calling_thread, retried, retried_sync])
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("meter", ["works", "is broken"])
async def test_telemetry_that_raises_changes_no_result_and_no_error(
    path: Path, tracer: str, meter: str, telemetry: CapturedTelemetry
) -> None:
    meters = telemetry.meter_provider if meter == "works" else provider(meter=BrokenMeter())
    system = ProductionSystem(
        object(),
        ProductionConfig(retry=RetryConfig(base_delay_ms=0, max_delay_ms=0)),
        tracer_provider=TRACERS[tracer],
        meter_provider=meters,
    )
    outside = get_current_span()
    assert await path(system, lambda: 42) == 42
    raised = KeyError()
    with pytest.raises(KeyError) as caught:
        await path(system, exits(raised))
    assert caught.value is raised
    assert get_current_span() is outside
    assert len(system.calls) == 0
    if meter == "works":
        durations = telemetry.metric("llmkg.operation.duration")
        assert sorted(point[0] for point in durations.values() if isinstance(point, tuple)) == [1, 1]
        errors = telemetry.metric("llmkg.telemetry.hook.errors")
        assert {dict(key)["hook"] for key in errors} >= {
            "call_started" if "start" in tracer else "call_ended"
        }
        assert {dict(key)["error.type"] for key in errors} <= {"RuntimeError", "AttributeError"}


def test_a_span_processor_that_raises_is_counted_and_fails_no_call(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    processor: Any = SimpleNamespace(
        on_start=lambda *_args, **_kwargs: None,
        _on_ending=lambda _span: None,
        on_end=lambda _span: exits(OSError())(),
        shutdown=lambda: None,
    )
    telemetry.tracer_provider.add_span_processor(processor)
    assert system.execute_protected_operation_sync("op", lambda: 42) == 42
    errors = telemetry.metric("llmkg.telemetry.hook.errors")
    assert errors == {(("error.type", "OSError"), ("hook", "call_ended")): 1}


def test_an_event_of_no_known_kind_is_counted_not_raised(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    system._observer.on_event("news")  # type: ignore[arg-type]
    errors = telemetry.metric("llmkg.telemetry.hook.errors")
    assert errors == {(("error.type", "TypeError"), ("hook", "on_event")): 1}


async def test_the_second_and_later_attempts_have_spans_of_their_own_below_the_call(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    with pytest.raises(ConnectionError):
        await asynchronous(system, exits(ConnectionError()))
    await asynchronous(system, failing_first(lambda: None))
    failed, succeeded = telemetry.spans("op")
    attempts = [
        (span.parent and span.parent.span_id, (span.attributes or {})["llmkg.operation.attempts"])
        for span in telemetry.spans("llmkg.attempt")
    ]
    assert failed.context is not None
    assert succeeded.context is not None
    expected = [(failed.context.span_id, 2), (failed.context.span_id, 3), (succeeded.context.span_id, 2)]
    assert attempts == expected
    assert [span.status.status_code.name for span in telemetry.spans("llmkg.attempt")] == [
        "ERROR",
        "ERROR",
        "UNSET",
    ]
    assert [(span.attributes or {})["llmkg.operation.attempts"] for span in (failed, succeeded)] == [3, 2]


async def test_a_call_that_an_open_circuit_refused_links_to_the_span_that_opened_it(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(retry=RetryConfig(max_retries=0), circuit_breaker=CircuitBreakerConfig())
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await asynchronous(system, exits(ConnectionError()))
    with pytest.raises(CircuitOpenError) as refused:
        await asynchronous(system, lambda: None)
    *_, opener, last = telemetry.spans("op")
    assert [link.context for link in last.links] == [opener.context]
    assert last.status.status_code.name == "ERROR"
    assert last.status.description == str(refused.value)
    attributes = last.attributes or {}
    assert attributes["error.type"] == "circuit_open"
    assert attributes["llmkg.rejection.scope"] == "circuit_breaker"
    assert attributes["llmkg.rejection.retry_after"] == refused.value.retry_after
    assert opener.links == ()


async def test_a_circuit_that_has_closed_since_links_to_nothing_when_it_is_opened_by_hand(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1, recovery_timeout=0.001, success_threshold=1)
    system = make_system(retry=RetryConfig(max_retries=0), circuit_breaker=breaker)
    with pytest.raises(ConnectionError):
        await asynchronous(system, exits(ConnectionError()))
    await asyncio.sleep(0.002)  # for the circuit's recovery_timeout
    await asynchronous(system, lambda: None)
    system.circuit_breaker("op").force_open()
    with pytest.raises(CircuitOpenError):
        await asynchronous(system, lambda: None)
    *_, refused = telemetry.spans("op")
    assert refused.links == ()


async def test_a_circuit_forced_open_by_hand_has_no_span_to_link_to(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    system.configure_operation("op", OperationConfig())
    next(iter(system.operations)).breaker.force_open()
    with pytest.raises(CircuitOpenError):
        await asynchronous(system, lambda: None)
    (span,) = telemetry.spans("op")
    assert span.links == ()


async def test_the_message_of_a_foreign_error_stays_out_of_the_trace(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    with pytest.raises(ValueError, match="secret"):
        await asynchronous(system, exits(ValueError("the secret of a user")))
    assert all("secret" not in span.to_json() for span in telemetry.spans())
    assert telemetry.spans("op")[0].status.description == "ValueError"


async def test_a_span_around_the_call_is_enriched_and_no_second_one_opened(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("server")
    with tracer.start_as_current_span("tools/call op") as around:
        inside = await system.execute_protected_operation(
            "op", get_current_span, correlation_id="correlated-1", enrich_current_span=True
        )
        assert around.is_recording()
    assert inside is around
    (span,) = telemetry.spans()
    assert span.attributes == {"llmkg.operation.name": "op", "llmkg.correlation.id": "correlated-1"}


async def test_a_call_without_a_span_to_enrich_gets_one(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    await system.execute_protected_operation("op", lambda: None, enrich_current_span=True)
    assert len(telemetry.spans("op")) == 1


async def test_a_shutdown_has_a_span_with_a_child_for_each_phase_before_the_flush(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    def fails() -> None:
        raise OSError("disk full")

    system.register_shutdown_handler("disk", fails)
    async with system:
        pass
    (shutdown,) = telemetry.spans("llmkg.shutdown")
    children = [span for span in telemetry.spans() if span.parent == shutdown.context]
    assert [child.name.removeprefix("llmkg.shutdown.") for child in children] == [
        "lame_duck",
        "draining",
        "cleaning_up",
    ]
    assert [child.status.description for child in children] == [None, None, "disk: OSError: disk full"]


async def test_rate_limit_refusals_are_logged_once_a_second_with_how_many_were_left_out(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(rate_limiting=RateLimitConfig(requests_per_second=1e-3, burst_capacity=1))
    await asynchronous(system, lambda: None)
    for _ in range(4):
        with pytest.raises(RateLimitedError):
            await asynchronous(system, lambda: None)
    (entry,) = telemetry.logs("llmkg.rate_limit.rejected")
    system._observer._records._next_rejection = 0.0
    with pytest.raises(RateLimitedError):
        await asynchronous(system, lambda: None)
    _, later = telemetry.logs("llmkg.rate_limit.rejected")
    assert [(each.log_record.attributes or {})["not_logged"] for each in (entry, later)] == [0, 3]


async def test_debug_logs_tell_each_calls_start_and_end(
    make_system: MakeSystem, telemetry: CapturedTelemetry
) -> None:
    system = make_system(monitoring={"log_level": "debug"})
    await asyncio.gather(*(asynchronous(system, lambda: None) for _ in range(3)))
    bodies = [str(entry.log_record.body).split(" after")[0] for entry in telemetry.logs()]
    assert sorted(body for body in bodies if body.startswith("op")) == ["op ended"] * 3 + ["op started"] * 3
