"""Alerts are told as their groups ask, to real servers, and nothing waits for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import wait_until

from llmkg_otel.alerting.notify import Channel, make_channels
from llmkg_otel.alerting.notify.grouping import Grouping
from llmkg_otel.alerting.notify.message import DeliveryError, Message, Notice
from llmkg_otel.config import AlertingConfig, NotifyConfig, ProductionConfig
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.receiver import Receiver

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

NOW = 1_700_000_000.0
SECRET = "s3cr3t-planted"


def notice(name: str, **labels: str) -> Notice:
    return Notice(tuple(sorted({"alertname": name, **labels}.items())), (("summary", "s"),), NOW, None)


def take(grouping: Grouping, now: float, *, arrives: bool = False) -> list[Any]:
    taken = []
    while (key := grouping.next_group(now)) is not None:
        if (notices := grouping.take(key, now)) is not None:
            taken.append((key, notices))
            if arrives:
                grouping.delivered(key, notices, now)
    return taken


def names(taken: Any) -> list[list[tuple[str, str]]]:
    return [
        [
            (dict(each.labels)["alertname"], "firing" if each.ends_at is None else "resolved")
            for each in notices
        ]
        for _, notices in taken
    ]


def test_a_group_waits_repeats_and_tells_what_is_new_or_resolved() -> None:
    config = NotifyConfig(
        group_by=("op",), group_wait_seconds=10, group_interval_seconds=60, repeat_interval_seconds=600
    )
    grouping = Grouping(config)
    one, two = notice("A", op="x"), notice("B", op="x")

    def told(at: float) -> list[list[tuple[str, str]]]:
        return names(take(grouping, at, arrives=True))

    grouping.update([one, notice("C", op="y")], 0)
    assert (grouping.next_due(), told(9)) == (10, [])
    assert told(10) == [[("A", "firing")], [("C", "firing")]]
    grouping.update([one, two], 20)
    assert told(69) == []
    assert told(70) == [[("A", "firing"), ("B", "firing")], [("C", "resolved")]]
    assert told(140) == []
    assert told(670) == [[("A", "firing"), ("B", "firing")]]
    grouping.update([], 700)
    assert told(740) == [[("A", "resolved"), ("B", "resolved")]]
    assert told(900) == []
    assert grouping.next_due() is None


def test_an_alert_that_came_and_went_before_it_was_told_is_never_told() -> None:
    grouping = Grouping(NotifyConfig(group_wait_seconds=10))
    grouping.update([notice("A")], 0)
    grouping.update([], 5)
    assert take(grouping, 10) == []


def test_without_send_resolved_only_firing_alerts_are_told() -> None:
    grouping = Grouping(NotifyConfig(send_resolved=False))
    grouping.update([notice("A")], 0)
    take(grouping, 0, arrives=True)
    grouping.update([], 1)
    assert take(grouping, 100) == []


def test_a_channel_holds_so_many_alerts_and_counts_the_rest() -> None:
    grouping = Grouping(NotifyConfig(max_alerts=2))
    assert grouping.update([notice(name) for name in "ABCDE"], 0) == 3


@pytest.mark.parametrize("late", [False, True])
def test_a_storm_leaves_room_for_a_critical_alert_and_for_each_alertname(late: bool) -> None:
    grouping = Grouping(NotifyConfig(max_alerts=10))
    storm = [notice("Storm", i=str(i), severity="info") for i in range(50)]
    others = [notice("Other", severity="info"), notice("Down", severity="critical")]
    if late:
        grouping.update(storm, 0)
        take(grouping, 0, arrives=True)
    assert grouping.update([*storm, *others], 1) == 42
    [(_, notices)] = take(grouping, 1)
    told = [dict(each.labels)["alertname"] for each in notices]
    assert sorted(told) == ["Down", "Other", *["Storm"] * 8]


def test_what_is_not_evaluated_any_more_is_not_repeated() -> None:
    grouping = Grouping(NotifyConfig(repeat_interval_seconds=60), stale_after=90)
    grouping.update([notice("A")], 0)
    take(grouping, 0, arrives=True)
    assert names(take(grouping, 80, arrives=True)) == [[("A", "firing")]]
    assert take(grouping, 150) == []
    grouping.update([notice("A")], 151)
    assert names(take(grouping, 151)) == [[("A", "firing")]]


class Place:
    """A target on a clock that a test moves: what it got, and what it answers by alertname."""

    def __init__(self, **options: Any) -> None:
        self.at, self.ahead = 0.0, NOW
        self.answers: dict[str, DeliveryError] = {}
        self.tried: list[tuple[float, str]] = []
        self.got: list[tuple[float, str, Notice]] = []
        self.told: list[str | None] = []
        self.channel = Channel(
            "pager",
            NotifyConfig(**options),
            self,
            lambda _, error: self.told.append(error),
            clock=lambda: self.at + self.ahead,
            pace=lambda: self.at,
        )

    def send(self, message: Message, now: float) -> None:
        for each in message.notices:
            name = dict(each.labels)["alertname"]
            self.tried.append((self.at, name))
            if name in self.answers:
                raise self.answers[name]
        for each in message.notices:
            self.got.append((now, dict(each.labels)["alertname"], each))

    def until(self, at: float) -> None:
        while self.at < at:
            self.at += 0.25
            self.channel.send_due()


HOOK: dict[str, Any] = {"kind": "webhook", "group_wait_seconds": 0, "group_interval_seconds": 1}


def test_a_clock_that_is_set_back_delays_no_alert_and_no_time_lies_ahead() -> None:
    place = Place()
    place.ahead += 86_400
    place.channel.tell([replace(notice("A"), starts_at=NOW + 86_400)])
    place.until(1)
    place.ahead -= 86_400
    place.channel.tell([replace(notice("A"), starts_at=NOW + 86_400), notice("B")])
    place.until(3)
    told, names_told = place.got[-1][0], [name for _, name, _ in place.got]
    assert names_told == ["A", "A", "B"]
    assert all(each.starts_at <= at for at, _, each in place.got)
    assert told < NOW + 3


def test_a_group_that_fails_holds_up_no_other() -> None:
    place = Place(**HOOK)
    place.answers["Poison"] = DeliveryError("500", retryable=True)
    place.channel.tell([notice("Poison")])
    place.until(1)
    place.channel.tell([notice("Poison"), notice("Down")])
    place.until(1.5)
    assert [name for _, name, _ in place.got] == ["Down"]


def test_after_an_outage_nothing_is_told_that_is_over() -> None:
    place = Place(**HOOK)
    place.answers = {name: DeliveryError("OSError", retryable=True) for name in "ABC"}
    place.channel.tell([notice(name) for name in "ABC"])
    place.until(2)
    place.answers = {}
    place.channel.tell([notice("New")])
    place.until(120)
    assert [name for _, name, _ in place.got] == ["New"]


def test_a_refusal_that_stays_is_tried_ever_less_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    place.answers["A"] = DeliveryError("404", retryable=False)
    place.channel.tell([notice("A")])
    place.until(600)
    assert len(place.tried) == len(place.told) <= 6 + 600 // 60
    assert [record.getMessage() for record in caplog.records] == ["Alerts are not delivered to pager: 404"]
    assert place.channel.problems() == ["alerts are not delivered to pager: 404"]
    place.answers = {}
    place.until(700)
    assert (place.channel.problems(), place.got[0][1]) == ([], "A")


def test_a_stop_tries_once_each_group_that_waits() -> None:
    place = Place(**HOOK | {"group_wait_seconds": 30})
    place.answers["A"] = DeliveryError("503", retryable=True)
    place.channel.tell([notice("A"), notice("B")])
    place.channel.stop()
    place.channel.send_due()
    assert sorted(name for _, name in place.tried) == ["A", "B"]
    assert sorted(map(str, place.told)) == ["503", "None"]


def test_a_group_of_all_labels_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="group_by"):
        NotifyConfig(group_by=("...",))


def channel(told: list[Any], **options: Any) -> Any:
    def note(name: str, error: str | None) -> None:
        told.append((name, error))

    [made] = make_channels({"pager": NotifyConfig(**options)}, note)
    return made


def test_a_webhook_gets_alertmanagers_json_with_the_header_of_the_environment(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", SECRET)
    told: list[Any] = []
    made = channel(
        told, kind="webhook", url=receiver.url, authorization="Bearer ${PAGER}", group_wait_seconds=0
    )
    made.tell([notice("A", op="x"), notice("A", op="y")])
    made.send_due()
    [(_, headers, body)] = receiver.got
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert (body["version"], body["status"], body["receiver"]) == ("4", "firing", "pager")
    assert (body["groupLabels"], body["commonLabels"]) == ({"alertname": "A"}, {"alertname": "A"})
    assert [alert["labels"]["op"] for alert in body["alerts"]] == ["x", "y"]
    assert body["alerts"][0]["startsAt"] == "2023-11-14T22:13:20.000Z"
    assert told == [("pager", None)]


@pytest.mark.parametrize(
    ("statuses", "retries", "error", "requests"),
    [
        ([503, 429], 2, None, 3),
        ([500, 500], 1, "500", 2),
        ([400], 5, "400", 1),
    ],
)
def test_a_failure_that_may_pass_is_tried_again_and_one_that_stays_is_not(
    statuses: list[int],
    retries: int,
    error: str | None,
    requests: int,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmkg_otel.alerting.notify.channel.backoff_seconds", lambda *_arguments: 0.0)
    receiver.statuses = statuses
    told: list[Any] = []
    made = channel(told, url=receiver.url, max_retries=retries)
    made.tell([notice("A")])
    made.send_due()
    assert (told, len(receiver.got)) == ([("pager", error)], requests)


def test_a_server_that_never_answers_is_given_up_after_the_timeout() -> None:
    import socket

    told: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        made = channel(told, url=url, timeout_seconds=0.05, max_retries=0)
        made.tell([notice("A")])
        made.send_due()
    assert told == [("pager", "TimeoutError")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # imghdr, in Apprise
def test_apprise_carries_title_and_text(receiver: Receiver) -> None:
    told: list[Any] = []
    url = receiver.url.replace("http://", "json://")
    made = channel(told, kind="apprise", url=url, group_wait_seconds=0)
    made.tell([notice("A")])
    made.send_due()
    [(_, _, body)] = receiver.got
    assert body["title"] == "[FIRING:1] A"
    assert "summary: s" in body["message"]
    assert told == [("pager", None)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # imghdr, in Apprise
@pytest.mark.parametrize("kind", ["alertmanager", "webhook", "apprise"])
def test_an_address_that_is_none_is_refused_and_not_quoted(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="url") as caught:
        channel([], kind=kind, url=f"nothing://{SECRET}")
    assert SECRET not in str(caught.value)


def test_a_variable_that_is_missing_is_told_by_its_name() -> None:
    with pytest.raises(
        ConfigurationError, match=r"url = \(hidden\): the environment has no variable NO_SUCH"
    ):
        ProductionConfig(alerting={"notify": {"x": {"url": f"http://{SECRET}/${{NO_SUCH}}"}}})


async def test_a_system_tells_with_the_trace_of_a_failed_call_and_counts(
    receiver: Receiver,
    tmp_path: Path,
    make_system: Callable[..., ProductionSystem],
    telemetry: CapturedTelemetry,
) -> None:
    rules = tmp_path / "rules.yaml"
    expression = 'llmkg_operation_duration_seconds_count{error_type="OSError"} > 0'
    rules.write_text(f"groups: [{{name: g, rules: [{{alert: Broken, expr: '{expression}'}}]}}]")
    alerting = AlertingConfig(
        default_rules=False,
        rule_files=(rules,),
        notify={"pager": NotifyConfig(url=f"{receiver.url}/{SECRET}")},
        trace_link="https://traces.example/{trace_id}",
    )
    system = make_system(alerting=alerting, retry={"max_retries": 0})

    def fails() -> None:
        raise OSError

    async with system:
        with pytest.raises(OSError):
            await system.execute_protected_operation("op", fails)
        system.alerts._loop.run_once()
        wait_until(lambda: telemetry.metric("llmkg.alert.notifications"), "a message")
        shown = str(await system.get_system_status()) + system.get_prometheus_metrics()
    [(path, _, [alert]), *_] = receiver.got
    [span] = telemetry.spans("op")
    assert span.context is not None
    trace_id = format(span.context.trace_id, "032x")
    assert path == f"/{SECRET}/api/v2/alerts"
    assert alert["annotations"]["trace_id"] == trace_id
    assert alert["annotations"]["trace_url"] == f"https://traces.example/{trace_id}"
    assert SECRET not in shown
    assert SECRET not in repr(system.config)
