"""Addresses and headers of channels are secrets: planted ones are in no log, status, error or metric."""

from __future__ import annotations

import logging
import socket
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from support.receiver import Receiver, receiving
from support.servers import wait_until

from llmkg_otel.alerting.notify import make_channels
from llmkg_otel.alerting.notify.message import Notice
from llmkg_otel.cli import main
from llmkg_otel.config import AlertingConfig, NotifyConfig, ProductionConfig
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

SECRET = "s3cr3t-planted"
NOTICE = Notice((("alertname", "A"),), (("summary", "s"),), 0.0, None)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # imghdr, in Apprise


def address(kind: str, base: str) -> str:
    scheme = "json://" if kind == "apprise" else "http://"
    return base.replace("http://", scheme) + f"/{SECRET}?token={SECRET}"


@pytest.mark.parametrize("kind", ["alertmanager", "webhook", "apprise"])
@pytest.mark.parametrize("failure", ["none", "refused", "500", "404", "silent"])
async def test_a_planted_secret_is_told_to_nobody(
    kind: Any,
    failure: str,
    receiver: Receiver,
    tmp_path: Path,
    make_system: Callable[..., ProductionSystem],
    telemetry: CapturedTelemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    base = receiver.url
    if failure == "silent":
        base = f"http://127.0.0.1:{silent.getsockname()[1]}"
    if failure == "refused":
        base = "http://127.0.0.1:1"
    receiver.statuses = [int(failure)] * 9 if failure.isdigit() else []
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: g, rules: [{alert: A, expr: vector(1)}]}]")
    url = address(kind, base) + ("&cto=0.2&rto=0.2" if kind == "apprise" else "")
    place = NotifyConfig(
        kind=kind,
        url=url,
        authorization=f"Bearer {SECRET}",
        group_wait_seconds=0,
        timeout_seconds=0.2,
        max_retries=0,
    )
    alerting = AlertingConfig(default_rules=False, rule_files=(rules,), notify={"pager": place})
    with caplog.at_level(logging.DEBUG):
        system = make_system(alerting=alerting, monitoring={"log_level": "debug"})
        async with system:
            wait_until(lambda: telemetry.metric("llmkg.alert.notifications"), "a message")
            told = [str(await system.get_system_status()), system.get_prometheus_metrics()]
            told.append(str((await system.get_health_report()).to_health_json()))
    silent.close()
    told += [repr(system.config), system.config.model_dump_json(), repr(system.alerts._channels)]
    signals: list[Any] = [*telemetry.spans(), *telemetry.logs(), *telemetry.metrics().values()]
    told += [each.to_json() for each in signals]
    told += [record.getMessage() + str(record.exc_info) + str(vars(record)) for record in caplog.records]
    assert caplog.records
    assert any("llmkg_alert_notifications_total" in each for each in told)
    assert not [each for each in told if SECRET in each]
    outcome = telemetry.metric("llmkg.alert.notifications")
    assert any("error.type" in str(key) for key in outcome) == (failure != "none")


def test_the_command_line_shows_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGER", SECRET)
    file = tmp_path / "c.yaml"
    file.write_text(
        "alerting: {notify: {x: {url: 'http://h/${PAGER}', authorization: 'Bearer ${PAGER}', kind: webhook}}}"
    )
    for command in (["config", "show"], ["rules", "export"], ["rules", "check", str(file)]):
        main([*command, "--config", str(file)])
    captured = capsys.readouterr()
    assert "alerting.notify" in captured.out
    assert SECRET not in captured.out + captured.err


@pytest.mark.parametrize(
    "options",
    [
        {"url": f"http://user:{SECRET}@host/"},
        {"url": f"ftp://{SECRET}"},
        {"url": f"http:{SECRET}"},
        {"url": SECRET},
        {"url": f"http://h/{SECRET}-\u00e9"},
        {"url": f"http://h/{SECRET} b"},
        {"url": f"http://[::1/{SECRET}"},
        {"url": f"http://h:99999/{SECRET}"},
        {"url": f"http://h:port/{SECRET}"},
        {"authorization": f"Bearer {SECRET}\nX: y"},
        {"authorization": f"Bearer {SECRET}\u2026"},
    ],
)
def test_what_no_request_can_carry_is_refused_when_it_is_loaded_and_not_quoted(
    options: dict[str, str],
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ProductionConfig(alerting={"notify": {"x": {"kind": "webhook", **options}}})
    shown = "".join(traceback.format_exception(caught.value))
    assert f"alerting.notify.x.{next(iter(options))} = (hidden)" in shown
    assert SECRET not in shown


def test_a_secret_that_ends_with_a_newline_is_sent_without_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", SECRET + "\n")
    config = NotifyConfig(
        kind="webhook", url=receiver.url, authorization="GenieKey ${PAGER}", group_wait_seconds=0
    )
    [channel] = make_channels({"x": config}, lambda _name, _error: None)
    channel.tell([NOTICE])
    channel.send_due()
    assert receiver.got[0][1]["Authorization"] == f"GenieKey {SECRET}"


def test_an_error_that_nobody_foresaw_is_counted_by_its_type_and_not_quoted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[str | None] = []

    def fails(*_arguments: object, **_options: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("urllib.request.Request", fails)
    [channel] = make_channels({"x": NotifyConfig()}, lambda _, error: ends.append(error))
    channel.tell([NOTICE])
    channel.send_due()
    assert ends == ["ValueError"]
    assert SECRET not in caplog.text


def test_a_redirect_is_not_followed_for_the_header_would_go_with_it(receiver: Receiver) -> None:
    ends: list[str | None] = []
    with receiving() as other:
        receiver.statuses, receiver.location = [302], f"{other.url}/elsewhere"
        config = NotifyConfig(
            kind="webhook", url=receiver.url, authorization=f"Bearer {SECRET}", max_retries=3
        )
        [channel] = make_channels({"x": config}, lambda _, error: ends.append(error))
        channel.tell([NOTICE])
        channel.stop()
        channel.send_due()
        assert (ends, len(receiver.got), other.got) == (["302"], 1, [])


def test_no_instrumentation_of_http_clients_describes_our_requests(
    receiver: Receiver,
    make_system: Callable[..., ProductionSystem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        "llmkg_otel.alerting.notify.alertmanager.post",
        lambda *_arguments: seen.append(is_http_instrumentation_enabled()),
    )
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: g, rules: [{alert: A, expr: vector(1)}]}]")
    alerting = AlertingConfig(
        default_rules=False, rule_files=(rules,), notify={"pager": NotifyConfig(url=receiver.url)}
    )
    system = make_system(alerting=alerting)
    system.alerts.start()
    wait_until(lambda: seen, "a message")
    system.alerts.stop()
    assert not any(seen)
    assert is_http_instrumentation_enabled()
