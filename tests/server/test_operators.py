"""What only an operator may ask of a server that others can reach."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from fastmcp import Client as MemoryClient
from support.tokens import issuing, with_token

from llmkg_otel.config import OperationConfig, RateLimitRule
from llmkg_otel.server.mcp import build_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp import Client
    from opentelemetry.metrics import CallbackOptions, Observation
    from support.servers import Servers

    from llmkg_otel import EmbeddedKnowledgeEngine, ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

OPERATORS = {"get_system_status", "get_prometheus_metrics"}
PROBES = {"get_health_report", "readiness_check", "liveness_check"}
OPERATOR = "operator-token-0123456789"
TOKENS = {"LLMKG_AUTH_TOKENS": "ann=token-of-ann", "LLMKG_SERVER__OPERATOR_TOKEN": OPERATOR}


async def tools_about_the_system(client: Client) -> set[str]:
    return {tool.name for tool in (await client.list_tools()).tools} & (OPERATORS | PROBES)


async def answer(client: Client, tool: str) -> str:
    """Return how a call ended, the tool's name left out."""
    return repr(await client.call_tool(tool, {"format": "text"})).replace(tool, "TOOL")


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_beyond_loopback_others_cannot_tell_that_there_are_operators_tools(
    servers: Servers, mode: str
) -> None:
    server = servers.start("--host", "0.0.0.0", env=TOKENS)
    async with with_token(server.mcp_url, "token-of-ann", mode) as ann:
        assert await tools_about_the_system(ann) == PROBES
        for tool in OPERATORS:
            assert await answer(ann, tool) == await answer(ann, "no_such_tool")


async def test_beyond_loopback_the_operator_token_opens_them_and_all_the_rest(servers: Servers) -> None:
    server = servers.start("--host", "0.0.0.0", env=TOKENS)
    async with with_token(server.mcp_url, OPERATOR) as operator:
        assert await tools_about_the_system(operator) == OPERATORS | PROBES
        for tool in (*OPERATORS, "get_stats"):
            assert not (await operator.call_tool(tool)).is_error


async def test_who_may_call_is_asked_each_time(servers: Servers) -> None:
    server = servers.start("--host", "0.0.0.0", env=TOKENS)
    async with (
        with_token(server.mcp_url, OPERATOR) as operator,
        with_token(server.mcp_url, "token-of-ann") as ann,
    ):
        await operator.call_tool("get_system_status")
        assert await answer(ann, "get_system_status") == await answer(ann, "no_such_tool")


async def test_a_json_web_token_says_by_its_scope_who_operates(servers: Servers) -> None:
    with issuing() as issuer:
        server = servers.start("--host", "0.0.0.0", env=issuer.environment)
        async with with_token(server.mcp_url, issuer.token("ann")) as ann:
            assert await tools_about_the_system(ann) == PROBES
        operates = issuer.token("bob", scopes=["llmkg:operator"])
        async with with_token(server.mcp_url, operates) as bob:
            assert await tools_about_the_system(bob) == OPERATORS | PROBES
            assert not (await bob.call_tool("get_system_status")).is_error


async def test_on_loopback_every_caller_has_them(servers: Servers) -> None:
    server = servers.start(env=TOKENS)
    async with with_token(server.mcp_url, "token-of-ann") as ann:
        assert await tools_about_the_system(ann) == OPERATORS | PROBES
        assert not (await ann.call_tool("get_system_status")).is_error


async def test_they_are_operations_like_any_other_and_the_probes_are_not(
    make_system: Callable[..., ProductionSystem], engine: EmbeddedKnowledgeEngine
) -> None:
    once = OperationConfig(rate_limit=RateLimitRule(requests_per_second=1e-9, burst_capacity=1))
    system = make_system(engine, operations=dict.fromkeys(OPERATORS | PROBES, once))
    async with system, MemoryClient(build_server(system)) as client:
        for tool in OPERATORS:
            assert not (await client.call_tool(tool)).is_error
            refused = await client.call_tool(tool, raise_on_error=False)
            assert refused.structured_content["code"] == "rate_limited"
        for tool in (*PROBES, *PROBES):
            assert not (await client.call_tool(tool)).is_error


async def test_they_may_be_repeated_unless_configured_otherwise(
    make_system: Callable[..., ProductionSystem], engine: EmbeddedKnowledgeEngine
) -> None:
    own = {"get_system_status": OperationConfig(idempotent=False), "find_facts": OperationConfig(timeout=5)}
    system = make_system(engine, operations=own)
    build_server(system)
    assert system.operations.named("get_prometheus_metrics").retry.idempotent
    assert system.operations.named("find_facts").retry.idempotent
    assert system.operations.named("find_facts").timeout == 5
    assert not system.operations.named("get_system_status").retry.idempotent


async def test_the_metrics_are_collected_off_the_loop(
    make_system: Callable[..., ProductionSystem],
    engine: EmbeddedKnowledgeEngine,
    telemetry: CapturedTelemetry,
) -> None:
    collecting: set[threading.Thread] = set()

    def slow(_: CallbackOptions) -> list[Observation]:
        collecting.add(threading.current_thread())
        return []

    telemetry.meter_provider.get_meter("slow").create_observable_gauge("slow", [slow])
    async with make_system(engine) as system, MemoryClient(build_server(system)) as client:
        collecting.clear()
        await client.call_tool("get_prometheus_metrics")
        assert collecting
        assert threading.main_thread() not in collecting
