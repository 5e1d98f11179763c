"""Whoever asks about health hears the same: probes, report, gRPC, metrics, /metrics and events."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.instrumentation.logging.handler import LoggingHandler

from llmkg_otel import ProductionConfig, ProductionSystem
from llmkg_otel.health.status import HealthStatus
from llmkg_otel.server.ops import ops_app
from llmkg_otel.testing import CapturedTelemetry, attributes_key, captured_telemetry

NAMES = ("engine", "cache", "index")
CONFIG = ProductionConfig(
    alerting={"default_rules": False},
    health={"failure_threshold": 2, "check_interval_seconds": 1000},
    shutdown={"lame_duck_seconds": 0},
)
FOUND = [HealthStatus.HEALTHY, HealthStatus.WARNING, HealthStatus.CRITICAL]
rounds = st.lists(st.tuples(*[st.sampled_from(FOUND)] * len(NAMES)), min_size=1, max_size=8)


def states(telemetry: CapturedTelemetry, metric: str, of: str) -> dict[str, str]:
    """Return the state that is 1, of each component or probe."""
    points = telemetry.metric(metric)
    return {str(dict(key)[of]): str(dict(key)["state"]) for key, value in points.items() if value == 1}


def replayed(telemetry: CapturedTelemetry) -> dict[str, str]:
    """Return what somebody who has only the events believes of each component."""
    believed: dict[str, str] = {}
    for entry in telemetry.logs("llmkg.health.state_changed"):
        attributes = dict(entry.log_record.attributes or {})
        name = str(attributes["component"])
        assert believed.get(name, "unknown") == attributes["previous_state"]
        believed[name] = str(attributes["state"])
    return believed


async def live_through(findings: list[tuple[HealthStatus, ...]], telemetry: CapturedTelemetry) -> None:
    found = dict.fromkeys(NAMES, HealthStatus.HEALTHY)
    system = ProductionSystem(
        None, CONFIG, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
    )
    for name in NAMES:
        system.register_health_check(name, partial(found.__getitem__, name), essential=name == "engine")
    transport = httpx2.ASGITransport(ops_app(system))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await agree(client, system, telemetry)
        await system.start()
        for statuses in findings:
            found.update(zip(NAMES, statuses, strict=True))
            await system.health.run_once()
            await agree(client, system, telemetry)
        await system.shutdown()


async def agree(client: httpx2.AsyncClient, system: ProductionSystem, telemetry: CapturedTelemetry) -> None:
    components = system.health.components()
    statuses = {each.name: each.status.value for each in components}
    assert states(telemetry, "llmkg.health.status", "component") == statuses
    trends = {each.name: each.trend.value for each in components}
    assert states(telemetry, "llmkg.health.trend", "component") == trends
    checked = {name: status for name, status in statuses.items() if status != "unknown"}
    assert replayed(telemetry) == checked

    report: Any = (await client.get("/healthz")).json()
    told = {name: entry["status"] for name, [entry] in report["checks"].items()}
    assert told == {name: "warn" if status == "unknown" else status for name, status in statuses.items()}
    assert {name: entry["trend"] for name, [entry] in report["checks"].items()} == trends

    probes = {"liveness": "/livez", "readiness": "/readyz", "startup": "/startupz"}
    answers = {probe: (await client.get(path)).status_code for probe, path in probes.items()}
    metric = states(telemetry, "llmkg.probe.status", "probe")
    assert {probe: "ok" if code == 200 else "failing" for probe, code in answers.items()} == metric
    text = (await client.get("/metrics")).text
    for name, status in statuses.items():
        assert f'llmkg_health_status{{component="{name}",state="{status}"}} 1.0' in text


@settings(max_examples=15, deadline=None)
@given(rounds)
def test_health_telemetry_says_what_the_probes_say(findings: list[tuple[HealthStatus, ...]]) -> None:
    logger = logging.getLogger("llmkg_otel")
    level = logger.level
    with captured_telemetry() as telemetry:
        handler = LoggingHandler(logger_provider=telemetry.logger_provider)
        logger.addHandler(handler)
        try:
            asyncio.run(live_through(findings, telemetry))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def test_one_check_gives_one_duration_with_the_error_of_a_failure() -> None:
    async def refused() -> None:
        raise ConnectionError

    async def check(telemetry: CapturedTelemetry) -> None:
        system = ProductionSystem(
            None, CONFIG, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
        )
        system.register_health_check("cache", refused, essential=False)
        await system.health.run_once()
        await system.shutdown()

    with captured_telemetry() as telemetry:
        asyncio.run(check(telemetry))
        durations = telemetry.metric("llmkg.health.check.duration")
    key = attributes_key({"component": "cache", "error.type": "ConnectionError"})
    counts = {key: measured[0] for key, measured in durations.items() if isinstance(measured, tuple)}
    assert counts[key] == 1
