"""Alerts told to a Alertmanager: kept alive, resolved, caught up with after an outage, never waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from support.servers import wait_until

from llmkg_otel.alerting.notify import make_channels
from llmkg_otel.alerting.notify.message import Notice
from llmkg_otel.config import NotifyConfig

if TYPE_CHECKING:
    from support.monitoring import Alertmanager
    from support.receiver import Receiver

    from llmkg_otel.alerting.notify import Channel


class Pager:
    """A channel to an Alertmanager, and what became of its messages."""

    def __init__(self, manager: Alertmanager, **options: Any) -> None:
        self.ends: list[str | None] = []
        config = NotifyConfig(url=manager.url, **{"group_interval_seconds": 0.1, **options})
        self.channel: Channel
        [self.channel] = make_channels({"pager": config}, lambda _, error: self.ends.append(error))

    def __enter__(self) -> Channel:
        self.channel.start()
        return self.channel

    def __exit__(self, *_exc: object) -> None:
        self.channel.stop()


def notice(name: str, **labels: str) -> Notice:
    told = (("summary", f"{name} is wrong"), ("trace_id", "ab" * 16))
    labelled = tuple(sorted({"alertname": name, **labels}.items()))
    return Notice(labelled, told, time.time() - 60, None, "http://here/graph")


def names(manager: Alertmanager) -> set[str]:
    return {alert["labels"]["alertname"] for alert in manager.alerts()}


def group(told: tuple[str, dict[str, str], Any]) -> str:
    return str(told[2]["groupLabels"])


def heard(receiver: Receiver, status: str) -> set[str]:
    told = [alert for _, _, body in receiver.got for alert in body["alerts"]]
    return {alert["labels"]["alertname"] for alert in told if alert["status"] == status}


def test_an_alert_arrives_with_all_it_says_is_grouped_there_and_is_resolved(
    manager: Alertmanager, receiver: Receiver
) -> None:
    manager.start()
    one, two, other = notice("A", op="x"), notice("A", op="y"), notice("B")
    with Pager(manager) as channel:
        channel.tell([one, two, other])
        wait_until(lambda: names(manager) == {"A", "B"}, "the alerts")
        [alert] = manager.alerts(op="x")
        assert alert["labels"] == dict(one.labels)
        assert alert["annotations"] == dict(one.annotations)
        assert alert["generatorURL"] == "http://here/graph"
        assert alert["startsAt"][:19] == time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(one.starts_at))
        wait_until(lambda: heard(receiver, "firing") == {"A", "B"}, "what Alertmanager tells")
        groups = {
            len(body["alerts"]) for _, _, body in receiver.got if body["groupLabels"] == {"alertname": "A"}
        }
        assert 2 in groups
        channel.tell([two])
        wait_until(lambda: [each["labels"].get("op") for each in manager.alerts()] == ["y"], "a resolution")
        channel.tell([])
        wait_until(lambda: heard(receiver, "resolved") == {"A", "B"}, "the end of all")


def test_an_alert_lives_as_long_as_it_is_repeated_and_ends_by_itself_when_the_process_has_died(
    manager: Alertmanager,
) -> None:
    manager.start()
    with Pager(manager, repeat_interval_seconds=0.25) as channel:
        channel.tell([notice("A")])
        wait_until(manager.alerts, "the alert")
        [first] = manager.alerts()
        wait_until(lambda: now() > first["endsAt"], "the end that was told first")
        assert names(manager) == {"A"}
    # The channel is gone and has resolved nothing.
    wait_until(lambda: not manager.alerts(), "the end by itself")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def test_what_happens_while_alertmanager_is_away_is_told_when_it_is_back(
    manager: Alertmanager,
) -> None:
    pager = Pager(manager, max_retries=1, max_alerts=50)
    with pager as channel:
        began = time.perf_counter()
        channel.tell([notice("A"), notice("B")])
        channel.tell([notice(f"N{number}") for number in range(200)] + [notice("A"), notice("B")])
        assert time.perf_counter() - began < 1  # nobody waits for it
        wait_until(lambda: "ConnectionRefusedError" in pager.ends, "a failure")
        assert "queue_full" in pager.ends
        channel.tell([notice("A"), notice("B")])
        manager.start()
        wait_until(lambda: names(manager) == {"A", "B"}, "what is true by then")
        manager.kill()
        channel.tell([notice("B"), notice("C")])
        wait_until(lambda: pager.ends[-1] == "ConnectionRefusedError", "another failure")
        manager.start()
        wait_until(lambda: names(manager) == {"B", "C"}, "what is true then")
        wait_until(lambda: manager.received("resolved"), "the end of what ended meanwhile")


def test_alerts_that_found_no_room_are_told_once_there_is(manager: Alertmanager) -> None:
    manager.start()
    many = [notice(f"N{number}") for number in range(10)]
    with Pager(manager, max_alerts=4) as channel:
        channel.tell(many)
        wait_until(lambda: len(manager.alerts()) == 4, "as many as there is room for")

        def others_are_told() -> bool:
            channel.tell(many[6:])  # as every evaluation does
            return names(manager) == {"N6", "N7", "N8", "N9"}

        wait_until(others_are_told, "the others, in the room of those that were resolved")


def test_an_alertmanager_that_hangs_holds_up_neither_evaluation_nor_stop_and_is_caught_up_with(
    manager: Alertmanager,
) -> None:
    manager.start()
    pager = Pager(manager, timeout_seconds=0.3, max_retries=0)
    with pager as channel:
        channel.tell([notice("A")])
        wait_until(lambda: names(manager) == {"A"}, "the alert")
        manager.hang()
        began = time.perf_counter()
        for _ in range(100):
            channel.tell([notice("A"), notice("B")])
        assert time.perf_counter() - began < 1
        wait_until(lambda: "TimeoutError" in pager.ends, "a time-out")
        manager.go_on()
        wait_until(lambda: names(manager) == {"A", "B"}, "what was told meanwhile")
        manager.hang()
        channel.tell([])
        began = time.perf_counter()
        channel.stop(0.5)
        assert time.perf_counter() - began < 2
    manager.go_on()
