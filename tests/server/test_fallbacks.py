"""Fallback ladders and callers' deadlines over MCP, on a server whose engine is told when to fail."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from fastmcp import Client, FastMCP

from llmkg_otel import EmbeddedKnowledgeEngine, ProductionConfig, ProductionSystem
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.server.mcp import build_server
from llmkg_otel.server.middleware import CORRELATION_KEY, FALLBACK_KEY, TIMEOUT_KEY, ProductionMiddleware
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from llmkg_otel.testing import CapturedTelemetry

    Serving = Callable[..., Client[Any]]


class Moody(EmbeddedKnowledgeEngine):
    """Fails at the kinds of search it is told to."""

    broken: frozenset[str] = frozenset()

    async def search(self, query: str, *, limit: int = 10, mode: Any = "text") -> list[Any]:
        if mode in self.broken:
            raise ConnectionError("the vector index is gone")
        return await super().search(query, limit=limit, mode=mode)


@pytest.fixture
def telemetry() -> Iterator[CapturedTelemetry]:
    with captured_telemetry() as telemetry:
        yield telemetry


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Moody]:
    engine = Moody(tmp_path / "k.db")
    yield engine
    await engine.aclose()


def system_of(
    engine: Any, telemetry: CapturedTelemetry, ladders: dict[str, list[str]], **server: Any
) -> ProductionSystem:
    config = ProductionConfig(
        retry={"max_retries": 0},
        circuit_breaker={"failure_threshold": 100},
        server=server,
        operations={tool: {"fallbacks": ladder} for tool, ladder in ladders.items()},
    )
    return ProductionSystem(
        engine, config, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
    )


LADDER = {"hybrid_search": ["full_text", "cached_answer"], "ask_question": ["full_text"]}


async def test_a_failing_search_falls_back_to_full_text_and_then_to_what_it_said_before(
    engine: Moody, telemetry: CapturedTelemetry
) -> None:
    query, numbers = {"query": "Paris"}, count()
    system = system_of(engine, telemetry, LADDER)
    async with Client(build_server(system)) as client:

        async def searched(**arguments: Any) -> Any:
            meta = {CORRELATION_KEY: f"call-number-{next(numbers)}"}
            return await client.call_tool("hybrid_search", query | arguments, meta=meta, raise_on_error=False)

        await client.call_tool("store_fact", {"subject": "Paris", "predicate": "is_in", "object": "France"})
        fresh = await searched()
        assert FALLBACK_KEY not in fresh.meta
        engine.broken = frozenset({"hybrid"})
        second = await searched()
        assert (second.meta[FALLBACK_KEY], second.data["hits"][0]["mode"]) == ("full_text", "text")
        asked = await client.call_tool("ask_question", {"question": "Where is Paris?"})
        assert (asked.meta[FALLBACK_KEY], len(asked.data["evidence"])) == ("full_text", 1)
        engine.broken = frozenset({"hybrid", "text"})
        third = await searched()
        assert (third.meta[FALLBACK_KEY], third.data) == ("cached_answer", fresh.data)
        assert third.meta[CORRELATION_KEY] != fresh.meta[CORRELATION_KEY]
        never_asked = await searched(limit=3)
        assert never_asked.is_error
        assert never_asked.structured_content["code"] == "engine_error"
    seen = {
        (point["llmkg.operation.name"], point["llmkg.fallback.name"])
        for point in map(dict, telemetry.metric("llmkg.operation.duration"))
        if "llmkg.fallback.name" in point
    }
    assert seen == {
        ("hybrid_search", "full_text"),
        ("hybrid_search", "cached_answer"),
        ("ask_question", "full_text"),
    }


@pytest.mark.parametrize(
    ("ladder", "told"),
    [
        (
            {"hybrid_search": ["vectors"]},
            "operations.hybrid_search.fallbacks = 'vectors': should be one of full_text",
        ),
        (
            {"store_fact": ["full_text"]},
            "operations.store_fact.fallbacks = 'full_text': should be one of cached_answer",
        ),
    ],
)
def test_a_rung_that_a_tool_does_not_have_is_refused_at_the_start(
    ladder: dict[str, Any], told: str, engine: Moody, telemetry: CapturedTelemetry
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        build_server(system_of(engine, telemetry, ladder))


async def test_an_answer_is_kept_for_its_time_and_for_who_got_it(
    telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, broken, user = FastMCP("theirs"), False, "alice"

    @server.tool
    async def work() -> str:
        if broken:
            raise ConnectionError
        return f"for {user}"

    monkeypatch.setattr("llmkg_otel.server.middleware.caller", lambda _proxies: user)
    system = system_of(None, telemetry, {"work": ["cached_answer"]}, cached_answer_seconds=60)
    middleware = ProductionMiddleware(system)
    server.add_middleware(middleware)
    async with Client(server) as client:

        async def worked() -> Any:
            return (await client.call_tool("work", raise_on_error=False)).data

        assert await worked() == "for alice"
        broken = True
        assert await worked() == "for alice"
        user = "bob"
        assert await worked() is None
        user = "address 10.0.0.1"  # many may be behind it
        broken = False
        assert await worked() == "for address 10.0.0.1"
        broken = True
        assert await worked() is None
        user = "alice"
        middleware._answers._cache.expire(1e9)
        assert await worked() is None


async def test_an_answer_larger_than_the_whole_cache_is_given_and_not_kept(
    telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkg_otel.server.answers.CACHE_BYTES", 100)
    server, broken = FastMCP("theirs"), False

    @server.tool
    async def work() -> str:
        if broken:
            raise ConnectionError
        return "done"

    server.add_middleware(ProductionMiddleware(system_of(None, telemetry, {"work": ["cached_answer"]})))
    async with Client(server) as client:
        assert (await client.call_tool("work")).data == "done"
        broken = True
        assert (await client.call_tool("work", raise_on_error=False)).is_error


async def test_a_callers_deadline_ends_its_call_and_nobody_elses(telemetry: CapturedTelemetry) -> None:
    server = FastMCP("theirs")

    @server.tool
    async def work() -> None:
        await asyncio.Event().wait()

    system = system_of(None, telemetry, {})
    server.add_middleware(ProductionMiddleware(system))
    async with Client(server) as client:
        late = await client.call_tool("work", meta={TIMEOUT_KEY: 20}, raise_on_error=False)
        assert late.structured_content["code"] == "deadline_exceeded"
        assert late.structured_content["limit"] == "0.02s"
        for wrong in (0, -5, "soon", True):
            told = await client.call_tool("work", meta={TIMEOUT_KEY: wrong}, raise_on_error=False)
            assert told.structured_content["code"] == "invalid_input", wrong
            assert "milliseconds above 0" in told.structured_content["message"]
    assert system.circuit_breaker("work").calls == {"success": 0, "failure": 0, "ignored": 1, "rejected": 0}
