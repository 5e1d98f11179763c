"""The real server as a child process, over real HTTP, with the MCP SDK's own client."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from support.servers import DEADLINE_SECONDS, SCRIPTS, http_get, wait_until
from support.tokens import issuing, with_token

from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import Servers

PARIS = {"subject": "Paris", "predicate": "capital_of", "object": "France"}


@pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])
async def test_an_outside_client_lists_and_calls_the_tools(servers: Servers, mode: str) -> None:
    server = servers.start()
    async with Client(server.mcp_url, mode=mode) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"store_fact", "store_knowledge", "find_facts", "ask_question"} <= tools
        stored = await client.call_tool("store_fact", PARIS)
        found = await client.call_tool("find_facts", {"subject": "Paris"})
    assert not stored.is_error
    assert found.structured_content is not None
    assert found.structured_content["facts"][0]["object"] == "France"


async def test_the_operators_port_answers_while_the_server_serves(servers: Servers) -> None:
    server = servers.start()
    for probe in ("livez", "readyz", "startupz"):
        assert http_get(f"{server.ops_url}/{probe}").body == "ok"
    assert json.loads(http_get(f"{server.ops_url}/healthz").body)["checks"]["engine"][0]["status"] == "pass"
    async with Client(server.mcp_url) as client:
        await client.call_tool("find_facts", {"subject": "x"})
    metrics = http_get(f"{server.ops_url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    counted = 'llmkg_operation_duration_seconds_count{llmkg_operation_name="find_facts"} 1.0'
    assert counted in metrics.body
    openmetrics = http_get(f"{server.ops_url}/metrics", {"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith("# EOF\n")
    status = json.loads(http_get(f"{server.ops_url}/status").body)
    assert status["error_recovery"]["find_facts"]["succeeded"] == 1


async def test_a_sigterm_under_load_loses_no_acknowledged_write(servers: Servers, tmp_path: Path) -> None:
    server = servers.start()
    acknowledged: list[str] = []
    refused: list[str] = []
    busy = asyncio.Event()

    async def write_on(client: Client, writer: int) -> None:
        for number in range(10_000):
            fact = {"subject": f"s{writer}-{number}", "predicate": "p", "object": "o"}
            result = await client.call_tool("store_fact", fact)
            if result.is_error:
                refused.append(json.loads(result.content[0].text)["code"])  # type: ignore[union-attr]
                return
            acknowledged.append(fact["subject"])
            if len(acknowledged) >= 100:
                busy.set()

    async def writer(number: int) -> None:
        async with Client(server.mcp_url) as client:
            await write_on(client, number)

    writers = [asyncio.create_task(writer(number)) for number in range(8)]
    await busy.wait()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.wait(writers, timeout=DEADLINE_SECONDS)  # those that met a closed listener raise
    assert await asyncio.to_thread(server.process.wait, DEADLINE_SECONDS) == 0
    for task in writers:
        assert task.done()
        task.exception()

    assert set(refused) <= {"draining"}
    report = server.report()
    assert report["clean"]
    assert report["operations"]["cancelled"] == 0
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    stored = [await engine.find_facts(subject) for subject in acknowledged]
    await engine.aclose()
    assert all(stored)


async def test_a_second_signal_cuts_the_lame_duck_short(servers: Servers) -> None:
    server = servers.start(env={"LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "600"})
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(
        wait_until, lambda: http_get(f"{server.ops_url}/readyz").status == 503, "a failing readiness"
    )
    assert http_get(f"{server.ops_url}/readyz").body == "lifecycle: lame_duck"
    async with Client(server.mcp_url) as client:
        assert not (await client.call_tool("store_fact", PARIS)).is_error  # still served
    assert await asyncio.to_thread(server.terminate) == 1  # not a clean end, and says so
    assert server.report()["phases"][0]["seconds"] < 600


async def test_tokens_guard_mcp_and_name_the_user_that_limits_count(servers: Servers) -> None:
    server = servers.start(
        env={
            "LLMKG_AUTH_TOKENS": "ann=token-of-ann,bob=token-of-bob",
            "LLMKG_RATE_LIMITING__PER_USER": "2 per hour",
        }
    )
    assert httpx2.post(server.mcp_url, json={}).status_code == 401
    assert httpx2.post(server.mcp_url, json={}, headers={"authorization": "Bearer no"}).status_code == 401
    async with with_token(server.mcp_url, "token-of-ann") as ann:
        results = [await ann.call_tool("find_facts", {"subject": "x"}) for _ in range(3)]
    async with with_token(server.mcp_url, "token-of-bob") as bob:
        assert not (await bob.call_tool("find_facts", {"subject": "x"})).is_error
    assert [result.is_error for result in results] == [False, False, True]
    refusal = results[2].structured_content
    assert refusal is not None
    assert (refusal["code"], refusal["scope"]) == ("rate_limited", "user")
    assert 0 < refusal["retry_after_ms"] <= 1_800_000
    assert "ann" not in http_get(f"{server.ops_url}/metrics").body


async def test_a_json_web_token_names_the_user_by_its_subject(servers: Servers) -> None:
    with issuing() as issuer:
        server = servers.start(env={**issuer.environment, "LLMKG_RATE_LIMITING__PER_USER": "1 per hour"})
        wrong = {"authorization": f"Bearer {issuer.token('ann', 'others')}"}
        assert httpx2.post(server.mcp_url, json={}, headers=wrong).status_code == 401
        outcomes = []
        for subject in ("ann", "ann", "bob"):
            async with with_token(server.mcp_url, issuer.token(subject)) as client:
                outcomes.append((await client.call_tool("find_facts", {"subject": "x"})).is_error)
    assert outcomes == [False, True, False]


async def test_the_configured_size_of_requests_is_the_one_that_counts_over_http(servers: Servers) -> None:
    server = servers.start()  # 10 MB by default; the MCP SDK's own limit is 4 MiB
    async with Client(server.mcp_url) as client:
        stored = await client.call_tool("store_knowledge", {"text": "word " * 1_200_000})
        assert not stored.is_error
        refused = await client.call_tool("store_knowledge", {"text": "x" * 10_000_100})
    assert refused.structured_content is not None
    assert refused.structured_content["scope"] == "request_size"
    assert httpx2.post(server.mcp_url, content=b"x" * 10_100_000).status_code == 413


def test_a_page_whose_name_was_made_to_mean_this_machine_gets_nowhere(servers: Servers) -> None:
    server = servers.start()
    for url in (server.mcp_url, f"{server.ops_url}/metrics"):
        assert httpx2.get(url, headers={"host": "evil.example"}).status_code == 421
        port = httpx2.URL(url).port
        for name in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert httpx2.get(url, headers={"host": name}).status_code != 421
    assert httpx2.get(server.mcp_url, headers={"origin": "http://evil.example"}).status_code == 403


def test_a_server_for_others_may_be_called_by_any_name_also_through_a_proxy(servers: Servers) -> None:
    hosts = ("--host", "0.0.0.0", "--ops-host", "0.0.0.0")
    server = servers.start(*hosts, env={"LLMKG_AUTH_TOKENS": "ann=token-of-ann"})
    port = httpx2.URL(server.mcp_url).port
    by_proxy = httpx2.post(
        f"http://127.0.0.1:{port}/mcp",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        headers={"host": "kb.example", "authorization": "Bearer token-of-ann", "accept": "application/json"},
    )
    assert by_proxy.status_code == 200
    assert httpx2.get(f"{server.ops_url}/metrics", headers={"host": "kb.example"}).status_code == 200


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ({"LLMKG_SERVER__AUDIENCE": "llmkg", "LLMKG_AUTH_TOKENS": "ann=a"}, "beside auth_tokens"),
        ({}, "server.audience = None"),
    ],
)
def test_a_server_that_does_not_know_who_may_call_does_not_start(
    servers: Servers, auth: dict[str, str], said: str
) -> None:
    server = servers.start(env={"LLMKG_SERVER__JWKS_URI": "https://id.example/jwks", **auth}, wait=False)
    assert server.process.wait(DEADLINE_SECONDS) == 2
    assert said in server.log.read_text()


def test_serving_others_without_authentication_is_refused(servers: Servers) -> None:
    server = servers.start("--host", "0.0.0.0", wait=False)
    assert server.process.wait(DEADLINE_SECONDS) == 2
    assert "LLMKG_AUTH_TOKENS" in server.log.read_text()


def test_serving_others_without_authentication_can_be_insisted_on(servers: Servers) -> None:
    server = servers.start("--host", "0.0.0.0", "--insecure", wait=False)
    server.wait_ready()
    assert server.terminate() == 0


@pytest.mark.parametrize("option", ["--port", "--ops-port"])
def test_an_address_in_use_is_named_and_nothing_starts(servers: Servers, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = servers.start(option, str(port), wait=False)
        assert server.process.wait(DEADLINE_SECONDS) == 2
    assert (
        server.log.read_text()
        == f"llmkg-otel: [Errno 98] cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


def test_a_wrong_configuration_is_told_in_one_line_each(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("retry: {max_retries: -1}\nrate_limting: {}\n")
    command = [str(SCRIPTS / "llmkg-otel"), "serve", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
    assert done.returncode == 2
    assert "retry.max_retries = -1: should be greater than or equal to 0" in done.stderr
    assert "rate_limting: unknown option; did you mean rate_limiting?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("trusted", "let_in"), [("127.0.0.0/8", [True, False, True]), ("", [True, False, False])]
)
async def test_clients_behind_a_proxy_have_limits_of_their_own_only_if_the_proxy_is_trusted(
    servers: Servers, trusted: str, let_in: list[bool]
) -> None:
    limits = {"LLMKG_RATE_LIMITING__PER_USER": "1/hour"} | {"LLMKG_SERVER__TRUSTED_PROXIES": trusted}
    server = servers.start(env=limits)
    answers = []
    for address in ("198.51.100.1", "198.51.100.1", "198.51.100.2"):
        async with (
            httpx2.AsyncClient(headers={"x-forwarded-for": address}) as http,
            Client(streamable_http_client(server.mcp_url, http_client=http)) as client,
        ):
            answers.append(not (await client.call_tool("find_facts", {"subject": "x"})).is_error)
    assert answers == let_in
