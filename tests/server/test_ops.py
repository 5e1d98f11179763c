"""The operators' port as an app: answers, tokens, and what it must not depend on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from llmkg_otel import ProductionConfig, ProductionSystem
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.server.auth import TokenTable, authentication, is_loopback, refuse_open_server
from llmkg_otel.server.ops import ops_app
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKEN = "operator-token-0123456789"


class Engine:
    """A stub whose health is what a test says."""

    error: Exception | None = None

    async def ping(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
async def ops(request: pytest.FixtureRequest) -> AsyncIterator[tuple[httpx2.AsyncClient, ProductionSystem]]:
    server: dict[str, Any] = getattr(request, "param", {})
    config = ProductionConfig(
        server=server, shutdown={"lame_duck_seconds": 0}, health={"failure_threshold": 1}
    )
    with captured_telemetry() as telemetry:
        system = ProductionSystem(
            Engine(),
            config,
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(ops_app(system)), base_url="http://localhost"
        ) as client:
            yield client, system
        await system.shutdown()


Ops = tuple[httpx2.AsyncClient, ProductionSystem]


async def test_probes_follow_the_life_of_the_system(ops: Ops) -> None:
    client, system = ops

    async def answers() -> list[int]:
        return [(await client.get(f"/{probe}")).status_code for probe in ("livez", "readyz", "startupz")]

    assert await answers() == [200, 503, 503]
    await system.start()
    assert await answers() == [200, 200, 200]
    await system.shutdown()
    assert await answers() == [200, 503, 200]
    assert (await client.get("/readyz")).text == "lifecycle: stopped"


async def test_a_dead_engine_fails_readiness_and_health_but_not_liveness(ops: Ops) -> None:
    client, system = ops
    system.engine.error = ConnectionError("no route")
    await system.start()
    assert (await client.get("/livez")).status_code == 200
    readiness = await client.get("/readyz")
    assert (readiness.status_code, readiness.text) == (503, "engine: fail: ConnectionError: no route")
    health = await client.get("/healthz")
    assert health.status_code == 503
    assert health.headers["content-type"] == "application/health+json"
    assert health.json()["checks"]["engine"][0]["status"] == "fail"


async def test_status_is_open_on_loopback(ops: Ops) -> None:
    client, _ = ops
    assert set((await client.get("/status")).json()) == {
        "health",
        "resources",
        "rate_limits",
        "error_recovery",
        "system_metrics",
        "shutdown",
        "performance",
        "alerts",
    }


@pytest.mark.parametrize(
    "ops", [{"ops_host": "0.0.0.0", "operator_token": TOKEN}, {"operator_token": TOKEN}], indirect=True
)
async def test_status_asks_for_the_operator_token_where_there_is_one(ops: Ops) -> None:
    client, _ = ops
    refused = await client.get("/status")
    assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (await client.get("/status", headers={"authorization": "Bearer wrong"})).status_code == 401
    assert (await client.get("/status", headers={"authorization": TOKEN})).status_code == 401
    assert (await client.get("/status", headers={"authorization": f"bearer {TOKEN}"})).status_code == 200
    assert (await client.get("/alerts")).status_code == 401
    assert (await client.get("/alerts", headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
    assert (await client.get("/status", headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
    assert (await client.get("/metrics")).status_code == 200


async def test_alerts_are_given_as_prometheus_gives_them(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    client, system = ops
    system.engine.error = ConnectionError("no route")
    await system.health.run_once()
    for at in (0.0, 60.0):
        monkeypatch.setattr(system.alerts._loop, "_clock", lambda at=at: at)
        system.alerts._loop.run_once()
    answer = (await client.get("/alerts")).json()
    [alert] = [each for each in answer["data"]["alerts"] if each["labels"]["component"] == "engine"]
    assert answer["status"] == "success"
    assert (alert["state"], alert["value"]) == ("firing", "1e+00")
    assert alert["activeAt"] == "1970-01-01T00:00:00.000Z"
    assert alert["labels"] == {"alertname": "LlmkgHealthFail", "component": "engine", "severity": "critical"}
    assert alert["annotations"]["summary"] == "engine is failing"
    changes = [
        (each["state"], each["at"]) for each in answer["data"]["history"] if each["labels"] == alert["labels"]
    ]
    assert changes == [
        ("firing", "1970-01-01T00:01:00.000Z"),
        ("pending", "1970-01-01T00:00:00.000Z"),
    ]
    status = (await client.get("/status")).json()["alerts"]
    assert [(each["alert"], each["state"]) for each in status["active"]] == [
        (each["labels"]["alertname"], each["state"]) for each in answer["data"]["alerts"]
    ]
    assert len(status["history"]) == len(answer["data"]["history"])


@pytest.mark.parametrize("ops", [{"ops_host": "0.0.0.0"}], indirect=True)
async def test_status_is_closed_beyond_loopback_without_an_operator_token(ops: Ops) -> None:
    client, _ = ops
    assert (await client.get("/status")).status_code == 401
    assert (await client.get("/status", headers={"authorization": "Bearer "})).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9464", 200),
        ("127.0.0.1:9464", 200),
        ("[::1]:9464", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("localhost.evil.example:9464", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example@localhost", 421),
        ("localhost/evil.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
async def test_on_loopback_only_its_names_are_answered(ops: Ops, host: str, status: int) -> None:
    client, _ = ops
    answer = await client.get("/metrics", headers={"host": host})
    assert answer.status_code == status
    assert "evil" not in answer.text


async def test_a_probe_too_old_to_name_a_host_is_answered(ops: Ops) -> None:
    client, _ = ops
    request = client.build_request("GET", "/livez")
    del request.headers["host"]
    assert (await client.send(request)).status_code == 200


@pytest.mark.parametrize("ops", [{"ops_host": "0.0.0.0"}], indirect=True)
async def test_beyond_loopback_any_name_is_answered(ops: Ops) -> None:
    client, _ = ops
    assert (await client.get("/metrics", headers={"host": "kb.example"})).status_code == 200


async def test_probes_answer_while_a_call_is_stuck(ops: Ops) -> None:
    client, system = ops
    await system.start()
    stuck = asyncio.create_task(system.execute_protected_operation("stuck", asyncio.Event().wait))
    await asyncio.sleep(0)
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/status")).json()["resources"]["operations_in_flight"] == 1
    stuck.cancel()
    await asyncio.wait({stuck})


@pytest.mark.parametrize(
    ("host", "expected"),
    [(host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")]
    + [(host, False) for host in ("0.0.0.0", "::", "example.org")],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "guard",
    [
        {"auth_tokens": {"a": "b"}},
        {"server": {"host": "0.0.0.0", "jwks_uri": "https://id.example/jwks", "audience": "llmkg"}},
        {"server": {"host": "0.0.0.0", "insecure": True}},
        {"server": {"host": "127.0.0.1"}},
    ],
)
def test_a_guarded_or_local_server_may_be_served(guard: dict[str, Any]) -> None:
    config = ProductionConfig(**({"server": {"host": "0.0.0.0"}} | guard))
    refuse_open_server(config, guarded=authentication(config) is not None)


def test_an_open_server_may_not_be_served() -> None:
    with pytest.raises(ConfigurationError, match=r"server.host = '0.0.0.0'.*LLMKG_AUTH_TOKENS"):
        refuse_open_server(ProductionConfig(server={"host": "0.0.0.0"}), guarded=False)


async def test_a_token_tells_its_owner_and_nothing_else_does() -> None:
    config = ProductionConfig(
        auth_tokens="ann=secret-of-ann,bob=secret-of-bob", server={"operator_token": "secret-of-operator"}
    )
    table = TokenTable(config.auth_tokens, config.server.operator_token)
    ann = await table.verify_token("secret-of-ann")
    operator = await table.verify_token("secret-of-operator")
    assert ann is not None
    assert (ann.subject, ann.scopes) == ("ann", [])
    assert operator is not None
    assert (operator.subject, operator.scopes) == ("operator", ["llmkg:operator"])
    assert await table.verify_token("ann") is None
    assert await table.verify_token("") is None
    assert "secret" not in repr(vars(table))
