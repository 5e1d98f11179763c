"""The engine is broken for real: alerts fire in process and in a real Prometheus, are told, and resolve.

The rules are those that `rules export` writes, with seconds for their minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.monitoring import prometheus

from llmkg_otel import ProductionConfig, ProductionSystem
from llmkg_otel.alerting.promql import Matcher
from llmkg_otel.cli import main
from llmkg_otel.config import NotifyConfig
from llmkg_otel.server.ops import OpsServer
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from support.monitoring import Alertmanager, Daemon
    from support.receiver import Receiver

INTERVAL, SCRAPE_INTERVAL = 2.0, 0.5
DRILLS = 3
"""A machine that is busy otherwise delays either; one drill in which neither was late is enough."""
BOTH = ("us", "prometheus")
ALERTS = ("LlmkgHighErrorRate", "LlmkgCircuitBreakerOpen", "LlmkgHealthFail")
SECONDS_FOR_MINUTES = ((r"\[\d+m\]", "[10s]"), (r"for: \d+m", "for: 2500ms"), (r">= 20\b", ">= 10"))


class Engine:
    """Answers, until it is broken."""

    broken = False

    async def ping(self) -> None:
        await self.ask()

    async def ask(self) -> str:
        if self.broken:
            raise ConnectionError("the engine is gone")
        return "an answer"


@pytest.fixture
def rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["rules", "export"]) == 0
    text = capsys.readouterr().out
    for minutes, seconds in SECONDS_FOR_MINUTES:
        assert re.search(minutes, text)
        text = re.sub(minutes, seconds, text)
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    return file


@pytest.fixture
def manager(manager: Alertmanager) -> Alertmanager:
    manager.start()
    return manager


@contextlib.asynccontextmanager
async def serving(engine: Engine, rules: Path, manager: Alertmanager) -> AsyncIterator[tuple[Any, str]]:
    """Serve a system under load until the end of the block: the system, and its operators' port."""
    config = ProductionConfig(
        monitoring={"alert_check_interval_seconds": INTERVAL},
        alerting={
            "default_rules": False,
            "rule_files": [rules],
            "notify": {"manager": NotifyConfig(url=manager.url, repeat_interval_seconds=2)},
        },
        retry={"max_retries": 0},
        health={"check_interval_seconds": 0.5, "failure_threshold": 1},
        operations={
            "unbroken": {"circuit_breaker": {"enabled": False}},
            "broken": {"circuit_breaker": {"recovery_timeout": 1, "success_threshold": 1}},
        },
        shutdown={"lame_duck_seconds": 0},
        server={"ops_port": 0},
    )
    with captured_telemetry() as telemetry:
        system = ProductionSystem(
            engine,
            config,
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        async with system:
            with OpsServer(system) as ops:
                load = asyncio.create_task(calls(system, engine))
                yield system, ops.url
                load.cancel()


async def calls(system: ProductionSystem, engine: Engine) -> None:
    while True:
        for operation in ("unbroken", "broken"):
            with contextlib.suppress(Exception):
                await system.execute_protected_operation(operation, engine.ask)
        await asyncio.sleep(0.05)


def scraping(directory: Path, ops_url: str, rules: Path, manager: Alertmanager) -> Daemon:
    scrape = f"{SCRAPE_INTERVAL * 1000:g}ms"
    targets = {"targets": [ops_url.removeprefix("http://")]}
    return prometheus(
        directory,
        {
            "global": {
                "scrape_interval": scrape,
                "scrape_timeout": scrape,
                "evaluation_interval": f"{INTERVAL:g}s",
                "external_labels": {"evaluator": "prometheus"},
            },
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "llmkg", "static_configs": [targets]}],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [manager.url.removeprefix("http://")]}]}]
            },
        },
    )


async def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := await asyncio.to_thread(condition):
            return value
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


def fired_here(system: Any, since: float) -> dict[str, float]:
    """Return when each alert began to fire, by the series that the evaluator writes."""
    matchers = [Matcher("alertstate", "=", "firing")]
    found = system.alerts._evaluator._store.range("ALERTS", matchers, since, time.time() + 1)
    return {dict(series.labels)["alertname"]: series.times[0] / 1000 for series in found}


def fired_there(server: Daemon, since: float) -> dict[str, float]:
    """Return the same of Prometheus."""
    answer = server.get("/api/v1/query", query='ALERTS{alertstate="firing"}[10m]')
    return {
        series["metric"]["alertname"]: min(float(at) for at, _ in series["values"] if float(at) > since)
        for series in answer["data"]["result"]
        if float(series["values"][-1][0]) > since
    }


def firing_here(system: Any) -> set[str]:
    return {alert["alert"] for alert in system.alerts.describe()["active"] if alert["state"] == "firing"}


def firing_there(server: Daemon) -> set[str]:
    alerts = server.get("/api/v1/alerts")["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


async def drill(engine: Engine, system: Any, server: Daemon, manager: Alertmanager) -> dict[str, float]:
    """Break the engine and mend it; return how many seconds apart each alert fired in the two."""
    since = time.time()
    engine.broken = True
    await until(lambda: set(ALERTS) <= firing_here(system), "firing in process")
    await until(lambda: set(ALERTS) <= firing_there(server), "firing in Prometheus")
    here, there = fired_here(system, since), await asyncio.to_thread(fired_there, server, since)
    await until(lambda: told_by(manager) >= {(name, by) for name in ALERTS for by in BOTH}, "telling")
    engine.broken = False
    await until(lambda: not firing_here(system), "resolved in process")
    await until(lambda: not firing_there(server), "resolved in Prometheus")
    await until(lambda: not manager.alerts(), "resolved in Alertmanager")
    return {alert: round(abs(here[alert] - there[alert]), 3) for alert in ALERTS}


@pytest.mark.timeout(240)
async def test_a_broken_engine_fires_the_same_alerts_here_and_in_prometheus_at_one_time_and_both_resolve(
    tmp_path: Path, rules: Path, manager: Alertmanager, receiver: Receiver
) -> None:
    engine = Engine()
    async with serving(engine, rules, manager) as (system, ops_url):
        server = scraping(tmp_path / "prometheus", ops_url, rules, manager)
        try:
            await asyncio.to_thread(server.start)
            await until(lambda: server.get("/api/v1/query", query="up == 1")["data"]["result"], "a scrape")
            apart = []
            for _ in range(DRILLS):
                await until(lambda: not firing_there(server) | firing_here(system), "quiet")
                apart.append(await drill(engine, system, server, manager))
                # What Prometheus reads is as old as a scrape at most.
                if max(apart[-1].values()) <= INTERVAL + SCRAPE_INTERVAL:
                    break
            else:
                pytest.fail(f"seconds apart: {apart}")
            await until(lambda: set(ALERTS) <= resolved(receiver), "the receiver hears of it")
        finally:
            server.kill()


def told_by(manager: Alertmanager) -> set[tuple[str, str]]:
    return {(each["labels"]["alertname"], each["labels"].get("evaluator", "us")) for each in manager.alerts()}


def resolved(receiver: Receiver) -> set[str]:
    told = [alert for _, _, body in receiver.got for alert in body["alerts"]]
    return {alert["labels"]["alertname"] for alert in told if alert["status"] == "resolved"}
