"""The caller's context, its span and what else it carries, is there in every thread started for it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from opentelemetry import baggage, context, trace
from support.calls import asynchronous, in_a_thread, in_the_calling_thread

from llmkg_otel._threads import run_in_daemon_thread
from llmkg_otel.call import current_call
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.telemetry.log_lines import call_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.calls import Path as CallPath

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry


class Seen:
    """What code of the user's finds around it."""

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.span = trace.get_current_span().get_span_context()
        self.tenant = baggage.get_baggage("tenant")
        self.correlation_id = call_ids().get("correlation_id")
        self.call = current_call()


@contextmanager
def caller(telemetry: CapturedTelemetry) -> Iterator[int]:
    """Be in a span, with baggage; give the trace id."""
    token = context.attach(baggage.set_baggage("tenant", "t-1"))
    try:
        with telemetry.tracer_provider.get_tracer("caller").start_as_current_span("caller") as span:
            yield span.get_span_context().trace_id
    finally:
        context.detach(token)


@pytest.mark.parametrize("path", [asynchronous, in_a_thread, in_the_calling_thread])
async def test_a_protected_operation_runs_in_its_calls_context(
    path: CallPath, system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    seen = Seen()
    with caller(telemetry) as trace_id:
        await path(system, seen)
    (span,) = telemetry.spans("op")
    assert span.context is not None
    assert (seen.span.trace_id, seen.span.span_id) == (trace_id, span.context.span_id)
    assert seen.tenant == "t-1"
    assert seen.call is not None
    assert seen.correlation_id == trace.format_trace_id(trace_id)
    if path is in_a_thread:
        assert seen.thread is not threading.current_thread()


@pytest.mark.parametrize("start", [asyncio.to_thread, lambda seen: run_in_daemon_thread(seen, "a-thread")])
async def test_threads_started_inside_a_call_keep_its_context(
    start: Callable[[Seen], object], system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    seen = Seen()

    async def work() -> None:
        await start(seen)  # type: ignore[misc] # both are awaitable

    with caller(telemetry) as trace_id:
        await system.execute_protected_operation("op", work, correlation_id="correlated-1")
    assert seen.thread is not threading.current_thread()
    (span,) = telemetry.spans("op")
    assert span.context is not None
    assert (seen.span.trace_id, seen.span.span_id) == (trace_id, span.context.span_id)
    assert (seen.tenant, seen.correlation_id) == ("t-1", "correlated-1")
    assert seen.call is not None


async def test_a_second_attempts_thread_is_inside_the_attempts_span(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    seen: list[trace.SpanContext] = []

    def fail_once() -> None:
        seen.append(trace.get_current_span().get_span_context())
        if len(seen) == 1:
            raise ConnectionError

    await system.execute_protected_operation("op", fail_once)
    (attempt,) = telemetry.spans("llmkg.attempt")
    (span,) = telemetry.spans("op")
    assert [each.span_id for each in seen] == [
        each.context.span_id for each in (span, attempt) if each.context
    ]


async def test_the_embedded_engines_calls_are_children_of_their_own_callers(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry, tmp_path: Path
) -> None:
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    system = make_system(engine)

    async def search() -> int:
        await engine.search("anything")  # through the lanes' threads, which many calls share
        return trace.get_current_span().get_span_context().span_id

    async with system:
        found = await asyncio.gather(
            *(system.execute_protected_operation(f"op-{n}", search) for n in range(5))
        )
    own = [span.context.span_id for n in range(5) for span in telemetry.spans(f"op-{n}") if span.context]
    assert found == own


async def test_health_checks_and_shutdown_handlers_run_in_the_context_of_who_asked(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    check, handler = Seen(), Seen()
    system.register_health_check("index", check, essential=False)
    system.register_shutdown_handler("own", handler)
    with caller(telemetry) as trace_id:
        await system.health.run_once()
        await system.shutdown()
    for seen in (check, handler):
        assert seen.thread is not threading.current_thread()
        assert (seen.span.trace_id, seen.tenant, seen.call) == (trace_id, "t-1", None)


async def test_scheduled_checks_are_in_nobodys_span_also_if_the_system_was_started_in_one(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    seen = [Seen(), Seen()]
    rest = iter(seen)
    done = threading.Event()

    def check() -> None:
        if (one := next(rest, None)) is None:
            done.set()
        else:
            one()

    system.register_health_check("index", check, essential=False, interval=0.01)
    with caller(telemetry):
        await system.health.start()
        await asyncio.to_thread(done.wait, 30)
    await system.health.stop()
    assert [each.span.trace_id for each in seen] == [0, 0]
