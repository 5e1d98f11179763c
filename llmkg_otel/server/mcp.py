"""The production MCP server: an engine's operations, and how the system is, as tools."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastmcp import FastMCP
from fastmcp.tools import Tool
from pydantic import Field

from llmkg_otel._threads import run_in_daemon_thread
from llmkg_otel.config import OperationConfig
from llmkg_otel.engine.chunks import split_into_passages
from llmkg_otel.engine.protocol import Fact, Hit, KnowledgeEngine, Passage, SearchMode, SupportsAnswer
from llmkg_otel.server.auth import authentication, operators_only
from llmkg_otel.server.middleware import ProductionMiddleware

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem

__all__ = ["build_server"]

Limit = Annotated[int, Field(ge=1, le=1000)]
Confidence = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

RUNGS = {name: {"full_text": {"mode": "text"}} for name in ("hybrid_search", "ask_question")}
"""What may stand in for a tool that fails: the same one with these arguments."""

INSTRUCTIONS = """\
A knowledge graph of facts (subject, predicate, object) and passages of text.
Look things up with find_facts, explore_connections and hybrid_search; ask_question gathers ranked
evidence; store_fact and store_knowledge add to it. A result with isError carries code, reason, scope and
retry_after_ms: when retry_after_ms is a number, the call was not carried out and may be repeated after
that time."""


def build_server(system: ProductionSystem) -> FastMCP:
    """Return a FastMCP server with the engine's tools, protected by `system`, and the system's own.

    `system.engine` must be a KnowledgeEngine. Callers are authenticated as the configuration says. All
    protected tools are upserts or reads, so each is set up as idempotent unless configured otherwise.
    Beyond loopback, the operators' tools do not exist for anyone else.
    """
    probes = _probe_tools(system)
    unprotected = frozenset(tool.__name__ for tool in probes)
    server = FastMCP(
        "llmkg",
        instructions=INSTRUCTIONS,
        version=version("llmkg-otel"),
        auth=authentication(system.config),
        middleware=[ProductionMiddleware(system, unprotected=unprotected, rungs=RUNGS)],
    )
    operators = operators_only(system.config)
    restricted = [Tool.from_function(tool, auth=operators) for tool in _operator_tools(system)]
    tools = [server.add_tool(tool) for tool in (*_engine_tools(system.engine), *probes, *restricted)]
    for name in {tool.name for tool in tools} - unprotected:
        config = system.config.operations.get(name, OperationConfig())
        if "idempotent" not in config.model_fields_set:
            system.configure_operation(name, config.model_copy(update={"idempotent": True}))
    # Without this the SDK runs the whole tools/list handler before every call, for its schema. It asks
    # whoever the caller is, so a tool that not everyone may see has none here.
    schemas = {tool.name: tool.parameters for tool in tools if tool.auth is None}
    server._mcp_server.get_tool_input_schema = schemas.get  # noqa: SLF001
    return server


def _engine_tools(engine: KnowledgeEngine) -> list[Any]:
    async def store_fact(
        subject: Text,
        predicate: Text,
        object: Text,  # noqa: A002 - a triple's third part
        confidence: Confidence = 1.0,
    ) -> dict[str, Any]:
        """Store one fact. Storing the same subject, predicate and object again updates its confidence."""
        ids = await engine.store_facts([Fact(subject, predicate, object, confidence)])
        return {"id": ids[0]}

    async def store_knowledge(text: Text, title: str = "", source: str = "") -> dict[str, Any]:
        """Store text, cut into passages that hybrid_search and ask_question can find."""
        ids = [await engine.store_passage(Passage(part, title, source)) for part in split_into_passages(text)]
        return {"ids": ids}

    async def find_facts(
        subject: str | None = None,
        predicate: str | None = None,
        object: str | None = None,  # noqa: A002
        limit: Limit = 100,
        min_confidence: Confidence = 0.0,
    ) -> dict[str, Any]:
        """Find facts by any combination of exact subject, predicate and object, most confident first."""
        facts = await engine.find_facts(
            subject, predicate, object, limit=limit, min_confidence=min_confidence
        )
        return {"facts": [asdict(fact) for fact in facts]}

    async def ask_question(question: Text, limit: Limit = 10, mode: SearchMode = "hybrid") -> dict[str, Any]:
        """Gather ranked evidence for a question; with an answer in words only if the engine can give one."""
        hits = await engine.search(question, limit=limit, mode=mode)
        answer = await engine.answer(question) if isinstance(engine, SupportsAnswer) else None
        return {"answer": answer, "evidence": [_hit(hit) for hit in hits]}

    async def explore_connections(
        entity: Text, max_hops: Annotated[int, Field(ge=1, le=5)] = 1, limit: Limit = 100
    ) -> dict[str, Any]:
        """Find the facts around an entity, nearest first, in either direction."""
        facts = await engine.neighbours(entity, max_hops=max_hops, limit=limit)
        return {"facts": [asdict(fact) for fact in facts]}

    async def hybrid_search(query: Text, limit: Limit = 10, mode: SearchMode = "hybrid") -> dict[str, Any]:
        """Search facts and passages by text, vector, or both; each hit says which was used."""
        return {"hits": [_hit(hit) for hit in await engine.search(query, limit=limit, mode=mode)]}

    async def get_stats() -> dict[str, Any]:
        """Count what is stored."""
        return asdict(await engine.stats())

    return [
        store_fact,
        store_knowledge,
        find_facts,
        ask_question,
        explore_connections,
        hybrid_search,
        get_stats,
    ]


def _probe_tools(system: ProductionSystem) -> list[Any]:
    """Return the tools that only read what is known already: they answer also when others are refused."""

    async def get_health_report() -> dict[str, Any]:
        """Tell the health of every component."""
        return (await system.get_health_report()).to_health_json()

    async def readiness_check() -> dict[str, Any]:
        """Tell whether this instance should be sent calls, and if not, why."""
        result = system.probes.readiness()
        return {"ready": result.ok, "reasons": list(result.reasons)}

    async def liveness_check() -> dict[str, Any]:
        """Tell whether the event loop of this instance runs."""
        result = system.probes.liveness()
        return {"alive": result.ok, "reasons": list(result.reasons)}

    return [get_health_report, readiness_check, liveness_check]


def _operator_tools(system: ProductionSystem) -> list[Any]:
    """Return the tools that collect every metric, and tell of all callers' doings."""

    async def get_system_status() -> dict[str, Any]:
        """Tell how the system is: health, resources, rate limits, error recovery, performance, alerts."""
        return await system.get_system_status()

    async def get_prometheus_metrics() -> str:
        """Return the metrics as Prometheus text."""
        return await run_in_daemon_thread(system.get_prometheus_metrics, "llmkg-metrics")

    return [get_system_status, get_prometheus_metrics]


def _hit(hit: Hit) -> dict[str, Any]:
    return {key: value for key, value in asdict(hit).items() if value is not None}
