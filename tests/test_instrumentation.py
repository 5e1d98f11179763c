"""Auto-instrumentation: no code changed, spans and metrics of engine operations, and no trace left behind."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client
from opentelemetry.trace import SpanKind, StatusCode
from support.servers import DEADLINE_SECONDS, SCRIPTS, Servers

from llmkg_otel import EmbeddedKnowledgeEngine, LLMKGInstrumentor
from llmkg_otel.engine.protocol import Fact
from llmkg_otel.errors import InvalidInputError
from llmkg_otel.testing import CapturedTelemetry, OtlpReceiver, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
import asyncio, sys
from llmkg_otel import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact

async def main():
    engine = EmbeddedKnowledgeEngine(sys.argv[1])
    await engine.store_facts([Fact("Paris", "capital_of", "France")])
    print(await engine.find_facts("Paris"))
    await engine.aclose()

asyncio.run(main())
"""


@pytest.fixture
def instrumented() -> Iterator[CapturedTelemetry]:
    with captured_telemetry() as telemetry:
        instrumentor = LLMKGInstrumentor()
        instrumentor.instrument(
            tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
        )
        yield telemetry
        instrumentor.uninstrument()


def engine_operations(receiver: OtlpReceiver) -> set[str]:
    return {span.name for span in receiver.spans(scope="llmkg_otel", kind="CLIENT")}


def test_a_program_that_only_uses_the_engine_is_seen_without_a_change(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    with OtlpReceiver() as receiver:
        done = subprocess.run(
            [SCRIPTS / "opentelemetry-instrument", "python", app, tmp_path / "k.db"],
            env={**os.environ, **receiver.environment(), "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert "France" in done.stdout
        assert engine_operations(receiver) == {"store_facts", "find_facts"}
        counted = receiver.metric("db.client.operation.duration")
        operations = {dict(attributes)["db.operation.name"]: point for attributes, point in counted.items()}
    assert operations["store_facts"].count == 1
    assert operations["find_facts"].count == 1


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_the_server_under_auto_instrumentation_shows_engine_operations_inside_its_calls(
    tmp_path: Path, protocol: Any
) -> None:
    servers = Servers(tmp_path)
    with OtlpReceiver(protocol=protocol) as receiver:
        server = servers.start(env={"OTEL_INSTRUMENT": "1", **receiver.environment()})
        try:
            async with Client(server.mcp_url) as client:
                await client.call_tool("store_fact", {"subject": "a", "predicate": "b", "object": "c"})
            assert server.terminate() == 0
        finally:
            servers.kill_remaining()
        calls = {span.span_id: span for span in receiver.spans("tools/call store_fact")}
        stored = receiver.spans("store_facts")
        durations = receiver.metric("llmkg.operation.duration")
    assert len(calls) == 1
    assert [span.parent_id in calls for span in stored] == [True]
    assert sum(point.count for point in durations.values()) == 1


async def test_an_operation_has_one_client_span_and_one_duration(
    instrumented: CapturedTelemetry, tmp_path: Path
) -> None:
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    await engine.store_facts([Fact("Paris", "capital_of", "France")])
    with pytest.raises(InvalidInputError):
        await engine.find_facts(limit=0)
    await engine.aclose()
    stored, failed = instrumented.spans()
    assert (stored.name, stored.kind) == ("store_facts", SpanKind.CLIENT)
    assert dict(stored.attributes or {}) == {
        "db.system.name": "sqlite",
        "db.operation.name": "store_facts",
        "db.response.returned_rows": 1,
    }
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "invalid_input"
    assert not failed.events
    assert "Paris" not in stored.to_json()
    counts = [point[0] for point in instrumented.metric("db.client.operation.duration").values()]  # type: ignore[index]
    assert counts == [1, 1]


def test_uninstrumenting_leaves_the_class_as_it_was() -> None:
    before = dict(vars(EmbeddedKnowledgeEngine))
    with captured_telemetry() as telemetry:
        LLMKGInstrumentor().instrument(tracer_provider=telemetry.tracer_provider)
        assert vars(EmbeddedKnowledgeEngine)["search"] is not before["search"]
        LLMKGInstrumentor().uninstrument()
    assert dict(vars(EmbeddedKnowledgeEngine)) == before
