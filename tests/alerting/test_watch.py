"""The options that decide whether rules are evaluated, and on how much of the past."""

from __future__ import annotations

import asyncio
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest
from support.servers import wait_until

from llmkg_otel.alerting.watch import AlertWatch
from llmkg_otel.config import AlertingConfig, NotifyConfig, ProductionConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opentelemetry import metrics

    from llmkg_otel.alerting.notify import Channel
    from llmkg_otel.alerting.notify.message import Notice
    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

ROUNDS, SECONDS_A_ROUND = 5, 60
POINTS_SEEN = "count_over_time(m[1h]) >= 4"


def rule(directory: Path, expression: str) -> Path:
    file = directory / "rules.yaml"
    file.write_text(f'groups: [{{name: g, rules: [{{alert: A, expr: "{expression}"}}]}}]')
    return file


@pytest.mark.parametrize("enabled", [True, False])
async def test_alerting_that_is_switched_off_evaluates_no_rule_and_shows_none(
    enabled: bool,
    tmp_path: Path,
    make_system: Callable[..., ProductionSystem],
    telemetry: CapturedTelemetry,
) -> None:
    system = make_system(
        alerting={"default_rules": False, "rule_files": [rule(tmp_path, "vector(1)")]},
        monitoring={"enable_alerting": enabled},
    )
    async with system:
        evaluating = any(thread.name == "llmkg-alerts" for thread in threading.enumerate())
        status = await system.get_system_status()
        shown = telemetry.metric("llmkg.alert.status")
    assert (evaluating, status["alerts"]["rules"], len(shown)) == ((True, 1, 4) if enabled else (False, 0, 0))


@pytest.mark.parametrize(
    ("monitoring", "fires"),
    [
        ({}, True),
        ({"max_metric_points": 4}, True),
        ({"max_metric_points": 3}, False),
        ({"metric_retention_seconds": 4 * SECONDS_A_ROUND}, True),
        ({"metric_retention_seconds": 3 * SECONDS_A_ROUND}, False),
    ],
)
def test_rules_look_back_on_as_many_points_and_seconds_as_are_kept(
    monitoring: dict[str, Any], fires: bool, tmp_path: Path
) -> None:
    config = ProductionConfig(
        monitoring=monitoring,
        alerting={"default_rules": False, "rule_files": [rule(tmp_path, POINTS_SEEN)]},
    )
    observer: Any = type("Deaf", (), {"on_event": lambda *_arguments: None})()
    watch = AlertWatch(config, lambda: [("m", {}, 1.0)], observer, lambda _seconds: None)
    instants = count(step=SECONDS_A_ROUND)
    watch._loop._clock = lambda: float(next(instants))
    for _ in range(ROUNDS):
        watch._loop.run_once()
    assert list(watch.states().values()) == ["firing" if fires else "inactive"]


async def test_a_callback_that_hangs_is_in_the_health_and_the_status_says_so_instead_of_hanging_too(
    tmp_path: Path,
    make_system: Callable[..., ProductionSystem],
    telemetry: CapturedTelemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmkg_otel.telemetry.collected.WAIT_SECONDS", 0.01)
    release, entered = threading.Event(), threading.Event()

    def hang(_options: object) -> list[metrics.Observation]:
        entered.set()
        release.wait(60)
        return []

    system = make_system(
        alerting={"default_rules": False, "rule_files": [rule(tmp_path, "vector(1)")]},
        monitoring={"alert_check_interval_seconds": 30},
        health={"check_interval_seconds": 0.1},
    )
    now = [0.0]
    system.alerts._loop._monotonic = lambda: now[0]
    try:
        telemetry.meter_provider.get_meter("user").create_observable_gauge("mine", [hang])
        await system.start()
        await asyncio.to_thread(wait_until, entered.is_set, "a collection")
        with pytest.raises(TimeoutError, match="callback"):
            await system.get_system_status()
        assert system.alerts.errors() == []
        now[0] = 100.0
        assert system.alerts.errors() == [
            "no evaluation has ended for 100 s: a callback of an instrument may hang"
        ]
        await asyncio.to_thread(
            wait_until,
            lambda: any(
                each.name == "alert_rules" and "no evaluation has ended" in each.message
                for each in system.health.components()
            ),
            "the health check",
        )
    finally:
        release.set()
        await system.shutdown()


@pytest.mark.parametrize(
    ("external_url", "link"),
    [
        (None, ""),
        ("https://prometheus.example/", "https://prometheus.example/graph?g0.expr=m+%3E+0&g0.tab=1"),
    ],
)
def test_a_notice_links_to_its_expression_in_the_prometheus_that_is_configured(
    external_url: str | None, link: str, tmp_path: Path
) -> None:
    alerting = AlertingConfig(
        default_rules=False, rule_files=(rule(tmp_path, "m > 0"),), external_url=external_url
    )
    observer: Any = type("Deaf", (), {"on_event": lambda *_arguments: None})()
    watch = AlertWatch(
        ProductionConfig(alerting=alerting), lambda: [("m", {}, 1.0)], observer, lambda _seconds: None
    )
    told: list[Notice] = []
    watch._channels = [
        cast("Channel", type("Recording", (), {"tell": lambda _, notices: told.extend(notices)})())
    ]
    watch._loop.run_once()
    assert [notice.generator_url for notice in told] == [link]


def test_a_channel_that_tells_nobody_is_an_error_of_alerting(tmp_path: Path) -> None:
    alerting = AlertingConfig(
        default_rules=False,
        rule_files=(rule(tmp_path, "vector(1)"),),
        notify={"pager": NotifyConfig(url="http://127.0.0.1:1", max_retries=0)},
    )
    observer: Any = type("Deaf", (), {"on_event": lambda *_arguments: None})()
    watch = AlertWatch(ProductionConfig(alerting=alerting), list, observer, lambda _seconds: None)
    watch._loop.run_once()
    watch._channels[0].send_due()
    assert watch.errors() == ["alerts are not delivered to pager: ConnectionRefusedError"]
