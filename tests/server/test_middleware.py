"""The MCP tools through FastMCP's in-memory client, with a stub engine that does as it is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastmcp import Client, FastMCP
from fastmcp.exceptions import ToolError
from opentelemetry.trace import SpanKind, StatusCode

from llmkg_otel import EmbeddedKnowledgeEngine, OperationConfig, ProductionConfig, ProductionSystem
from llmkg_otel.server.mcp import build_server
from llmkg_otel.server.middleware import CORRELATION_KEY, ProductionMiddleware
from llmkg_otel.testing import CapturedTelemetry, captured_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    AnyClient = Client[Any]

FACT = {"subject": "Paris", "predicate": "capital_of", "object": "France"}
QUICK: dict[str, Any] = {
    "retry": {"base_delay_ms": 0, "max_delay_ms": 0},
    "shutdown": {"lame_duck_seconds": 0},
}


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[CapturedTelemetry]:
    with captured_telemetry() as telemetry:
        # FastMCP asks the global provider, which tests leave alone.
        monkeypatch.setattr("fastmcp.telemetry.otel_get_tracer", telemetry.tracer_provider.get_tracer)
        yield telemetry


def system_of(engine: Any, telemetry: CapturedTelemetry, **config: Any) -> ProductionSystem:
    return ProductionSystem(
        engine,
        ProductionConfig(**QUICK, **config),
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )


@pytest.fixture
async def client(engine: EmbeddedKnowledgeEngine, telemetry: CapturedTelemetry) -> AsyncIterator[AnyClient]:
    sizes = {"max_request_size_bytes": 2000, "max_response_size_bytes": 4000}
    system = system_of(engine, telemetry, resources=sizes)
    async with system, Client(build_server(system)) as client:
        yield client


class Tools:
    """A FastMCP server of somebody else's, its one tool failing as often as it is told."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.calls = 0
        self.server = FastMCP("theirs")
        self.server.tool(self.work)

    async def work(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


@pytest.fixture
def tools() -> Tools:
    return Tools()


def told(result: Any) -> dict[str, Any]:
    """Return what an error tells an agent."""
    assert result.is_error
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def called(tools: Tools, system: ProductionSystem, **options: Any) -> Any:
    tools.server.add_middleware(ProductionMiddleware(system))
    async with system, Client(tools.server) as client:
        return await client.call_tool("work", raise_on_error=False, **options)


def server_spans(telemetry: CapturedTelemetry) -> list[Any]:
    return [span for span in telemetry.spans("tools/call work") if span.kind is SpanKind.SERVER]


def tool_span(telemetry: CapturedTelemetry) -> Any:
    (span,) = server_spans(telemetry)
    return span


async def test_every_tool_does_its_work(client: AnyClient) -> None:
    await client.call_tool("store_fact", FACT)
    text = "Lyon lies on the Rhone.\n\n" + "Its trams are frequent. " * 60
    stored = await client.call_tool("store_knowledge", {"text": text, "title": "Lyon"})
    assert len(stored.data["ids"]) > 1
    found = await client.call_tool("find_facts", {"object": "France"})
    assert found.data["facts"][0]["subject"] == "Paris"
    around = await client.call_tool("explore_connections", {"entity": "France"})
    assert [fact["subject"] for fact in around.data["facts"]] == ["Paris"]
    asked = await client.call_tool("ask_question", {"question": "Where does Lyon lie?", "limit": 1})
    assert asked.data["answer"] is None
    assert asked.data["evidence"][0]["passage"]["title"] == "Lyon"
    hits = await client.call_tool("hybrid_search", {"query": "capital", "mode": "text"})
    assert hits.data["hits"][0]["fact"]["object"] == "France"
    assert (await client.call_tool("get_stats")).data["facts"] == 1


async def test_the_tools_about_the_system_tell_how_it_is(
    engine: EmbeddedKnowledgeEngine, telemetry: CapturedTelemetry
) -> None:
    system = system_of(engine, telemetry)
    async with system, Client(build_server(system)) as client:
        await client.call_tool("store_fact", FACT)
        status = (await client.call_tool("get_system_status")).data
        assert status["error_recovery"]["store_fact"]["succeeded"] == 1
        assert (await client.call_tool("get_health_report")).data["checks"]["engine"][0]["status"] == "pass"
        metrics = (await client.call_tool("get_prometheus_metrics")).data
        assert "llmkg_operation_duration_seconds_bucket" in metrics
        assert (await client.call_tool("readiness_check")).data == {"ready": True, "reasons": []}
        assert (await client.call_tool("liveness_check")).data == {"alive": True, "reasons": []}


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "reason"),
    [
        ("store_fact", {**FACT, "subject": ""}, "invalid_input", "subject"),
        ("store_fact", {**FACT, "confidence": 2}, "invalid_input", "confidence"),
        ("find_facts", {"limit": 0}, "invalid_input", "limit"),
        ("store_knowledge", {"text": "x" * 3000}, "resource_exhausted", "2000 are allowed"),
    ],
)
async def test_a_bad_call_is_told_what_is_wrong(
    client: AnyClient, tool: str, arguments: dict[str, Any], code: str, reason: str
) -> None:
    result = await client.call_tool(tool, arguments, raise_on_error=False)
    assert result.is_error
    assert told(result)["code"] == code
    assert reason in told(result)["message"]
    assert "Traceback" not in str(result.content)


async def test_an_answer_over_the_limit_is_refused_and_says_so(client: AnyClient) -> None:
    for number in range(40):
        await client.call_tool("store_fact", {**FACT, "subject": f"a town with a long name, number {number}"})
    result = await client.call_tool("find_facts", {"object": "France"}, raise_on_error=False)
    assert told(result)["code"] == "response_too_large"
    assert "4000 are allowed" in told(result)["message"]
    assert not (await client.call_tool("find_facts", {"object": "France", "limit": 3})).is_error


async def test_callers_whose_requests_are_too_large_close_the_door_to_nobody_else(client: AnyClient) -> None:
    large = {"text": "x" * 3000}
    for _ in range(12):
        assert (
            told(await client.call_tool("store_knowledge", large, raise_on_error=False))["scope"]
            == "request_size"
        )
    assert not (await client.call_tool("store_knowledge", {"text": "short"})).is_error


@pytest.mark.parametrize("cause", [None, ValueError("seven is no number")])
async def test_a_tools_word_to_its_caller_is_said_once_and_closes_no_door(
    cause: Exception | None, tools: Tools, telemetry: CapturedTelemetry
) -> None:
    tools.failures = [ToolError("ask differently") for _ in range(12)]
    for failure in tools.failures:
        failure.__cause__ = cause
    tools.server.add_middleware(ProductionMiddleware(system_of(None, telemetry)))
    async with Client(tools.server) as client:
        for _ in range(12):
            result = await client.call_tool("work", raise_on_error=False)
            assert told(result) == {"code": "tool_error", "message": "ask differently"}
        assert (await client.call_tool("work")).data == "done"
    assert tools.calls == 13


async def test_a_tool_nobody_has_makes_no_series_of_its_own(
    client: AnyClient, telemetry: CapturedTelemetry
) -> None:
    for name in ("nope", "drop table"):
        assert (await client.call_tool(name, raise_on_error=False)).is_error
    counted = telemetry.metric("mcp.server.operation.duration")
    tools = {dict(attributes).get("gen_ai.tool.name") for attributes in counted}
    assert "_OTHER" in tools
    assert not tools & {"nope", "drop table"}
    assert not [a for a in telemetry.metric("llmkg.operation.duration") if "nope" in str(a)]


async def test_a_call_that_recovers_is_one_span_without_an_error(
    tools: Tools, telemetry: CapturedTelemetry
) -> None:
    tools.failures = [ConnectionError("secret-host refused")]
    result = await called(tools, system_of(None, telemetry))
    assert (result.data, tools.calls) == ("done", 2)
    span = tool_span(telemetry)
    assert span.status.status_code is not StatusCode.ERROR
    assert span.attributes["llmkg.operation.attempts"] == 2
    assert [event.name for event in span.events] == ["llmkg.retry.scheduled"]


async def test_a_failure_is_one_span_with_the_class_and_not_the_words(
    tools: Tools, telemetry: CapturedTelemetry
) -> None:
    tools.failures = [ConnectionError("secret-host refused")] * 4
    result = await called(tools, system_of(None, telemetry))
    assert tools.calls == 4
    assert told(result) == {
        "code": "engine_error",
        "message": "the engine failed: ConnectionError",
    }
    span = tool_span(telemetry)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ConnectionError"
    assert "secret-host" not in str((span.attributes, span.events, span.status))


@pytest.mark.parametrize("error", [ToolError("ask differently"), ValueError("a bug")])
async def test_a_tools_own_refusal_keeps_its_words(
    tools: Tools, telemetry: CapturedTelemetry, error: Exception
) -> None:
    tools.failures = [error] * 4
    result = await called(tools, system_of(None, telemetry))
    assert ("ask differently" in str(result.structured_content)) == isinstance(error, ToolError)


async def test_an_open_circuit_refuses_with_the_time_to_come_back(
    tools: Tools, telemetry: CapturedTelemetry
) -> None:
    system = system_of(None, telemetry)
    system.configure_operation(
        "work", OperationConfig(retry={"max_retries": 0}, circuit_breaker={"failure_threshold": 1})
    )
    tools.failures = [ConnectionError()]
    tools.server.add_middleware(ProductionMiddleware(system))
    async with system, Client(tools.server) as client:
        await client.call_tool("work", raise_on_error=False)
        refused = await client.call_tool("work", raise_on_error=False)
    assert tools.calls == 1
    assert told(refused)["code"] == "circuit_open"
    assert 59_000 < told(refused)["retry_after_ms"] <= 60_000
    failed, rejected = server_spans(telemetry)
    assert [link.context.span_id for link in rejected.links] == [failed.context.span_id]


@pytest.mark.parametrize(
    ("given", "taken"),
    [("order-12345678", True), ("short", False), ("x" * 65, False), ("a b c d e f", False)],
)
async def test_a_well_formed_correlation_id_is_taken_and_given_back(
    tools: Tools, telemetry: CapturedTelemetry, given: str, taken: bool
) -> None:
    result = await called(tools, system_of(None, telemetry), meta={CORRELATION_KEY: given})
    span = tool_span(telemetry)
    trace_id = f"{span.context.trace_id:032x}"
    assert result.meta[CORRELATION_KEY] == (given if taken else trace_id)
    assert span.attributes.get("llmkg.correlation.id") == (given if taken else None)


async def test_a_client_that_hangs_up_is_recorded_as_cancelled(
    tools: Tools, telemetry: CapturedTelemetry
) -> None:
    entered, gone = asyncio.Event(), asyncio.Event()

    async def linger() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    tools.server.tool(linger)
    system = system_of(None, telemetry)
    tools.server.add_middleware(ProductionMiddleware(system))
    async with system, Client(tools.server) as client:
        call = asyncio.create_task(client.call_tool("linger"))
        await entered.wait()
        call.cancel()
        await asyncio.wait({call})
        await gone.wait()
        assert len(system.calls) == 0
    (attributes,) = telemetry.metric("llmkg.operation.duration")
    assert dict(attributes) == {"llmkg.operation.name": "linger", "error.type": "cancelled"}
