"""Alerts from before a restart: what goes on firing, what goes on waiting, and a file that is no good."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.prometheus import Recorder
from support.servers import Servers, http_get, wait_until

from llmkg_otel.alerting import state_file
from llmkg_otel.alerting.alert_state import ActiveAlert
from llmkg_otel.alerting.restoration import pending_since
from llmkg_otel.alerting.slo import slo_rules
from llmkg_otel.alerting.state_file import MAX_ALERTS, SavedAlert, SavedState, StateFile
from llmkg_otel.alerting.watch import AlertWatch
from llmkg_otel.config import AlertingConfig, ProductionConfig, SloConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmkg_otel.system import ProductionSystem

MINUTE = 60.0
RULES = """
groups:
- name: g
  rules:
  - {alert: Rate, expr: "rate(errors_total[10m]) > 0.1", labels: {severity: page}}
  - {alert: Recorded, expr: "errors:rate5m > 0.1"}
  - {alert: Long, expr: "bad > 0", for: 30m}
  - {alert: Short, expr: "bad > 0", for: 9m}
  - {alert: Kept, expr: "bad > 1", keep_firing_for: 30m}
  - {record: "errors:rate5m", expr: "rate(errors_total[5m])"}
"""


class Process:
    """One life of a process: its own samples and observer, but the same rules and state file."""

    def __init__(self, directory: Path, rules: str = RULES) -> None:
        (directory / "rules.yaml").write_text(rules)
        self.values: dict[str, float] = {}
        self.now = 0.0
        self.observer = Recorder()
        config = ProductionConfig(
            alerting=AlertingConfig(
                default_rules=False,
                rule_files=(directory / "rules.yaml",),
                state_file=directory / "state" / "alerts.json",
            )
        )
        self.watch = AlertWatch(
            config,
            lambda: [(name, {}, value) for name, value in self.values.items()],
            self.observer,
            lambda _seconds: None,
            clock=lambda: self.now,
        )

    def wake(self, now: float) -> Process:
        """Read what was saved, as `start` does, without its thread."""
        self.now = now
        self.watch._recall()
        return self

    def evaluate(self, now: float, **values: float) -> dict[str, str]:
        """Evaluate at a time; return the state of each active alert."""
        self.now, self.values = now, values
        self.watch._loop.run_once()
        self.watch.stop()
        return self.states()

    def states(self) -> dict[str, str]:
        return {alert["alert"]: alert["state"] for alert in self.watch.describe()["active"]}

    def alert(self, name: str) -> dict[str, Any]:
        [alert] = [each for each in self.watch.describe()["active"] if each["alert"] == name]
        return dict(alert)

    def history(self) -> list[tuple[str, str]]:
        return [(each["alert"], each["state"]) for each in reversed(self.watch.describe()["history"])]


def first_life(directory: Path, until: float, rules: str = RULES, *, bad: float = 0.0) -> Process:
    """Have errors until a time, with an evaluation each minute."""
    process = Process(directory, rules)
    at = 0.0
    while at <= until:
        process.evaluate(at, errors_total=at, bad=bad)
        at += MINUTE
    return process


def test_a_firing_alert_is_held_until_its_rule_has_the_samples_it_looks_back_on(tmp_path: Path) -> None:
    first = first_life(tmp_path, 20 * MINUTE)
    assert first.states() == {"Rate": "firing", "Recorded": "firing"}
    back = 21 * MINUTE
    second = Process(tmp_path).wake(back)
    assert second.states() == first.states()  # before any evaluation
    assert second.alert("Rate")["active_since"] == first.alert("Rate")["active_since"]
    assert second.alert("Rate")["held_until"] == back + 10 * MINUTE
    assert second.alert("Recorded")["held_until"] == back + 5 * MINUTE + 30  # and once more recorded
    for minute in range(6):
        assert second.evaluate(back + minute * MINUTE, errors_total=0) == first.states()
    assert second.observer.events == []
    for minute in range(6, 10):
        assert second.evaluate(back + minute * MINUTE, errors_total=0) == {"Rate": "firing"}
    assert second.evaluate(back + 10 * MINUTE, errors_total=0) == {}
    assert second.observer.names() == [("Recorded", False), ("Rate", False)]
    assert second.history()[-2:] == [("Recorded", "resolved"), ("Rate", "resolved")]


def restarted(directory: Path, expression: str, **values: float) -> Process:
    """Return a process whose alert A fired before, after its first evaluation."""
    rules = f'groups: [{{name: g, rules: [{{alert: A, expr: "{expression}"}}]}}]'
    first_life(directory, 20 * MINUTE, rules, bad=1)
    second = Process(directory, rules).wake(21 * MINUTE)
    assert second.evaluate(21 * MINUTE, **values) == {"A": "firing"}
    return second


def held_for(process: Process, **values: float) -> int:
    """Return after how many minutes the alert is resolved."""
    minutes = 0
    while process.states():
        minutes += 1
        process.evaluate((21 + minutes) * MINUTE, **values)
    return minutes


@pytest.mark.parametrize(
    ("expression", "minutes"),
    [
        ("bad > 0", 1),  # at the second evaluation, as by Prometheus
        ("bad offset 7m > 0", 7),
        ("max_over_time(bad[9m]) > 0", 9),
        ("max_over_time(bad[9m] offset 3m) > 0", 12),
        ("max_over_time((bad > 0)[9m:1m])", 9),
        ("max_over_time(bad[9m]) > 0 and max_over_time(bad[4m]) > 0", 4),  # the short window rules it out
        ("max_over_time(bad[4m]) > 0 and max_over_time(bad[9m]) > 0", 4),
        ("max_over_time(bad[9m]) > 0 and on () max_over_time(bad[4m]) > 0", 4),
        ("max_over_time(bad[4m]) > 0 or max_over_time(bad[9m]) > 0", 9),
        ("max_over_time(bad[4m]) > 0 unless max_over_time(bad[9m]) > 5", 9),
        ("(bad > 0 and max_over_time(bad[9m]) > 0) or (max_over_time(bad[6m]) > 0 and bad > 0)", 1),
        ("(max_over_time(bad[8m]) > 0 and bad > 0) or max_over_time(bad[6m]) > 0", 6),
    ],
)
def test_a_held_alert_is_resolved_as_soon_as_what_its_rule_has_rules_it_out(
    tmp_path: Path, expression: str, minutes: int
) -> None:
    assert held_for(restarted(tmp_path, expression, bad=0), bad=0) == minutes


@pytest.mark.parametrize(
    "expression",
    [
        "rate(errors_total[10m]) > 0.1 and on () up > 0",
        "rate(errors_total[10m]) > 0.1 and up > 0",
        "up > 0 and rate(errors_total[10m]) > 0.1",
        "(up > 0 and on () rate(errors_total[10m]) > 0.1) or bad > 5",
    ],
)
def test_a_side_that_is_still_true_resolves_nothing_that_the_other_has_to_prove(
    tmp_path: Path, expression: str
) -> None:
    rules = f'groups: [{{name: g, rules: [{{alert: A, expr: "{expression}"}}]}}]'
    first = Process(tmp_path, rules)
    for minute in range(20):
        first.evaluate(minute * MINUTE, errors_total=60 * minute, up=1)
    assert first.states() == {"A": "firing"}
    second = Process(tmp_path, rules).wake(21 * MINUTE)
    for minute in range(21, 31):
        assert second.evaluate(minute * MINUTE, errors_total=0, up=1) == {"A": "firing"}
    assert second.evaluate(31 * MINUTE, errors_total=0, up=1) == {}


def test_a_side_rules_out_the_alerts_that_it_does_not_have_and_no_others(tmp_path: Path) -> None:
    expression = "max_over_time(bad[9m]) > 0 and max_over_time(bad[4m]) > 0"
    rules = f'groups: [{{name: g, rules: [{{alert: A, expr: "{expression}", labels: {{severity: page}}}}]}}]'
    first = Process(tmp_path, rules)
    first.watch._loop._collect = lambda: [("bad", {"i": i}, 1.0) for i in "xy"]
    first.evaluate(0)
    second = Process(tmp_path, rules).wake(MINUTE)
    second.watch._loop._collect = lambda: [("bad", {"i": "x"}, 1.0), ("bad", {"i": "y"}, 0.0)]
    for minute in range(1, 6):
        second.evaluate(minute * MINUTE)
    [alert] = second.watch.describe()["active"]
    assert alert["labels"]["i"] == "x"


def test_a_page_of_an_objective_ends_after_a_restart_when_the_short_window_is_quiet(tmp_path: Path) -> None:
    rules = slo_rules({"s": SloConfig(operation="s", objective=0.999)}, within_seconds=3600)
    total = {"calls": 0, "failures": 0}

    def points() -> list[tuple[str, dict[str, str], float]]:
        name, told = "llmkg_operation_duration_seconds_count", {"llmkg_operation_name": "s"}
        failed = told | {"error_type": "E"}
        return [(name, told, total["calls"] - total["failures"]), (name, failed, total["failures"])]

    def run(process: Process, minutes: range, bad: int) -> None:
        process.watch._loop._collect = points
        for minute in minutes:
            total.update(calls=total["calls"] + 100, failures=total["failures"] + bad)
            process.evaluate(minute * MINUTE)

    first = Process(tmp_path, rules)
    run(first, range(60), 0)
    run(first, range(60, 90), 50)
    assert first.states() == {"LlmkgSloBurnsFast": "firing"}
    total.update(calls=0, failures=0)
    second = Process(tmp_path, rules).wake(90 * MINUTE)
    run(second, range(90, 95), 0)
    assert second.states() == {"LlmkgSloBurnsFast": "firing"}
    run(second, range(95, 97), 0)
    assert second.states() == {}


def test_nothing_is_held_for_a_rule_that_was_edited_but_for_its_blanks(tmp_path: Path) -> None:
    first_life(tmp_path, 20 * MINUTE)
    changed = RULES.replace("errors_total[10m]) >", "errors_total[9m]) >").replace("rate5m > ", "rate5m  >  ")
    second = Process(tmp_path, changed).wake(21 * MINUTE)
    assert second.evaluate(21 * MINUTE, errors_total=0) == {"Recorded": "firing"}
    assert second.observer.names() == [("Rate", False)]


def test_a_state_without_expressions_of_an_older_release_is_held(tmp_path: Path) -> None:
    first_life(tmp_path, 20 * MINUTE)
    file = tmp_path / "state" / "alerts.json"
    content = json.loads(file.read_text())
    for each in content["alerts"]:
        assert each.pop("expression")
    file.write_text(json.dumps(content))
    second = Process(tmp_path).wake(21 * MINUTE)
    assert second.evaluate(21 * MINUTE, errors_total=0) == {"Rate": "firing", "Recorded": "firing"}


def test_a_held_alert_that_is_active_again_by_itself_goes_on_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    first = first_life(tmp_path, 20 * MINUTE)
    second = Process(tmp_path).wake(25 * MINUTE)
    for minute in range(25, 60):
        second.evaluate(minute * MINUTE, errors_total=10 * minute)
    assert second.states() == {"Rate": "firing", "Recorded": "firing"}
    assert second.alert("Rate")["active_since"] == first.alert("Rate")["active_since"]
    assert "held_until" not in second.alert("Rate")
    assert second.observer.events == []


def test_a_held_alert_is_resolved_by_what_its_rule_says_once_it_has_been_seen(tmp_path: Path) -> None:
    first_life(tmp_path, 20 * MINUTE)
    second = Process(tmp_path).wake(21 * MINUTE)
    for minute in range(21, 24):
        second.evaluate(minute * MINUTE, errors_total=100 * minute)
    assert "held_until" not in second.alert("Rate")
    for minute in range(24, 31):
        second.evaluate(minute * MINUTE, errors_total=2300)
        assert "Rate" in second.states()
    for minute in range(31, 34):
        second.evaluate(minute * MINUTE, errors_total=2300)
    assert second.states() == {}


def test_a_pending_alert_finds_its_past_when_it_is_active_again(tmp_path: Path) -> None:
    first_life(tmp_path, 5 * MINUTE, bad=1)
    second = Process(tmp_path).wake(25 * MINUTE)
    assert "Long" not in second.states()  # nothing is said of it until it is seen
    assert second.evaluate(25 * MINUTE, bad=0) == {"Rate": "firing", "Recorded": "firing"}
    assert second.evaluate(27 * MINUTE, bad=1)["Long"] == "pending"
    assert second.alert("Long")["active_since"] == 22 * MINUTE  # it was down from 5 to 27: 22 minutes
    assert second.evaluate(51 * MINUTE, bad=1)["Long"] == "pending"
    assert second.evaluate(52 * MINUTE, bad=1)["Long"] == "firing"


def test_a_short_for_begins_anew_as_it_does_in_prometheus(tmp_path: Path) -> None:
    first_life(tmp_path, 8 * MINUTE, bad=1)
    second = Process(tmp_path).wake(9 * MINUTE)
    second.evaluate(9 * MINUTE, bad=1)
    assert second.alert("Short")["active_since"] == 9 * MINUTE


@pytest.mark.parametrize(
    ("since", "seen", "now", "expected"),
    [
        (0, 29, 40, 40 + 10 - 30),  # 1 minute was left: the grace period of 10
        (0, 21, 40, 40 + 10 - 30),
        (0, 20, 40, 20),  # 10 were left, and 20 of the outage do not count
        (0, 5, 6, 1),
        (0, 30, 40, 0),  # it was about to fire
    ],
)
def test_time_spent_pending_is_counted_as_in_prometheus(
    since: float, seen: float, now: float, expected: float
) -> None:
    alert = ActiveAlert("A", (), (), "pending", since * MINUTE, None, 1.0, seen * MINUTE)
    assert pending_since(30 * MINUTE, alert, now * MINUTE) == expected * MINUTE


@pytest.mark.parametrize(("away", "restored"), [(60, True), (60.1, False)])
def test_an_alert_that_was_last_seen_more_than_an_hour_ago_is_forgotten_and_its_history_is_not(
    tmp_path: Path, away: float, restored: bool
) -> None:
    first_life(tmp_path, 20 * MINUTE)
    second = Process(tmp_path).wake((20 + away) * MINUTE)
    assert bool(second.states()) is restored
    assert second.history() == [("Rate", "firing"), ("Recorded", "firing")]


def test_restarts_in_a_row_do_not_hold_an_alert_for_ever(tmp_path: Path) -> None:
    first_life(tmp_path, 20 * MINUTE)
    at = 20 * MINUTE
    while Process(tmp_path).wake(at).evaluate(at, errors_total=0):
        at += 5 * MINUTE
    assert 80 * MINUTE < at <= 86 * MINUTE


def test_keep_firing_for_goes_on_counting(tmp_path: Path) -> None:
    first = first_life(tmp_path, 0, bad=2)
    for minute in range(1, 11):
        first.evaluate(minute * MINUTE, bad=0)
    second = Process(tmp_path).wake(11 * MINUTE)
    for minute in range(11, 31):
        assert second.evaluate(minute * MINUTE, bad=0)["Kept"] == "firing"
    assert "Kept" not in second.evaluate(31 * MINUTE, bad=0)


def test_an_alert_that_is_kept_firing_counts_as_seen(tmp_path: Path) -> None:
    rules = "groups: [{name: g, rules: [{alert: A, expr: bad > 1, keep_firing_for: 3h}]}]"
    first = first_life(tmp_path, 0, rules, bad=2)
    for minute in range(1, 121):
        first.evaluate(minute * MINUTE, bad=0)
    assert Process(tmp_path, rules).wake(130 * MINUTE).states() == {"A": "firing"}


def test_an_alert_whose_rule_has_changed_its_name_or_labels_is_left_out(tmp_path: Path) -> None:
    first_life(tmp_path, 20 * MINUTE)
    changed = RULES.replace("severity: page", "severity: ticket").replace("alert: Recorded", "alert: Other")
    assert Process(tmp_path, changed).wake(21 * MINUTE).states() == {}


def test_two_rules_of_one_name_each_get_their_own_alert_back(tmp_path: Path) -> None:
    rules = """groups: [{name: g, rules: [
      {alert: A, expr: bad > 0, labels: {severity: page}},
      {alert: A, expr: bad > 1, labels: {severity: info}}]}]"""
    first_life(tmp_path, 0, rules, bad=2)
    second = Process(tmp_path, rules).wake(60)
    assert second.watch.states() == {("A", "page"): "firing", ("A", "info"): "firing"}
    second.evaluate(60, bad=1)
    page, info = second.watch.describe()["active"]
    assert ("held_until" in page, "held_until" in info) == (False, True)


def test_a_hold_is_no_longer_than_samples_are_kept(tmp_path: Path) -> None:
    rules = 'groups: [{name: g, rules: [{alert: A, expr: "max_over_time(bad[30d]) > 0"}]}]'
    first_life(tmp_path, MINUTE, rules, bad=1)
    second = Process(tmp_path, rules).wake(2 * MINUTE)
    assert second.alert("A")["held_until"] == 2 * MINUTE + 3600


def test_a_number_that_json_does_not_know_survives(tmp_path: Path) -> None:
    rules = 'groups: [{name: g, rules: [{alert: A, expr: "bad / 0"}, {alert: B, expr: "bad - Inf"}]}]'
    first_life(tmp_path, 0, rules, bad=1)
    second = Process(tmp_path, rules).wake(1)
    assert [second.alert(name)["value"] for name in "AB"] == ["+Inf", "-Inf"]


ENTRY: dict[str, object] = {"at": 1.0, "alert": "A", "state": "firing", "value": "NaN", "labels": []}


def saved(version: int = 1, **fields: object) -> str:
    content = {"format": state_file.FORMAT, "version": version, "saved_at": 1.0, "alerts": [], "history": []}
    return json.dumps(content | fields)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is cut off or no JSON"),
        (saved()[:40], "it is cut off or no JSON"),
        ("\x00\x01binary", "it is cut off or no JSON"),
        ("[" * 100_000, "it is cut off or no JSON"),
        ("[1]", 'its "format" is not "llmkg_otel alert state"'),
        ('{"format": "tfstate", "version": 4}', 'its "format" is not'),
        (saved(version=2), "its version is 2, this release reads 1"),
        (saved(more=1), "more: Extra inputs are not permitted"),
        (saved(alerts=[{"group": "g", "alert": {"alert": "A"}}]), "alerts.0.alert.labels: Field required"),
        (saved(history="none"), "history: Input should be a valid tuple"),
    ],
)
def test_a_file_that_is_no_good_is_told_and_moved_aside_and_the_start_goes_on(
    tmp_path: Path, content: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(tmp_path)
    file = tmp_path / "state" / "alerts.json"
    file.parent.mkdir()
    file.write_text(content)
    process.wake(0)
    [problem] = process.watch.errors()
    assert reason in problem
    assert problem in caplog.text
    assert (file.parent / "alerts.json.refused").read_text() == content
    assert process.evaluate(0, bad=2)["Kept"] == "firing"
    assert Process(tmp_path).wake(1).states() == {"Kept": "firing"}
    assert process.watch.errors() == [problem]
    (file.parent / "alerts.json.refused").unlink()
    assert process.watch.errors() == []


@pytest.mark.parametrize(
    ("field", "time"),
    [(field, time) for field in ("active_since", "fired_at", "held_until") for time in (1e300, "NaN", -1)],
)
def test_a_state_with_a_time_that_is_none_is_moved_aside(tmp_path: Path, field: str, time: object) -> None:
    first_life(tmp_path, 20 * MINUTE)
    file = tmp_path / "state" / "alerts.json"
    content = json.loads(file.read_text())
    content["alerts"][0]["alert"][field] = time
    file.write_text(json.dumps(content))
    second = Process(tmp_path).wake(21 * MINUTE)
    [problem] = second.watch.errors()
    assert "is no time in seconds since 1970" in problem
    assert second.watch.as_prometheus()["data"] == {"alerts": [], "history": []}


@pytest.mark.parametrize("fields", [{"saved_at": 1e300}, {"history": [ENTRY | {"at": "Infinity"}]}])
def test_a_state_with_a_history_of_impossible_times_is_moved_aside(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "alerts.json").write_text(saved(**fields))
    process = Process(tmp_path).wake(0)
    assert "is no time in seconds since 1970" in process.watch.errors()[0]
    assert process.history() == []


async def test_health_warns_of_a_state_that_was_refused(
    tmp_path: Path, make_system: Callable[..., ProductionSystem]
) -> None:
    file = tmp_path / "alerts.json"
    file.write_text("{")
    system = make_system(alerting=AlertingConfig(state_file=file))
    async with system:
        [component] = [each for each in system.health.components() if each.name == "alert_rules"]
    assert component.status == "warn"
    assert "is not used and now alerts.json.refused" in component.message


def test_a_state_that_cannot_be_saved_is_told_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    process = Process(tmp_path)
    for minute in range(3):
        assert process.evaluate(minute * MINUTE, bad=2)["Kept"] == "firing"
    [problem] = process.watch.errors()
    assert "cannot be saved" in problem
    assert caplog.text.count("cannot be saved") == 1
    (tmp_path / "state").unlink()
    process.evaluate(3 * MINUTE, bad=2)
    assert process.watch.errors() == []


def test_a_label_that_is_no_unicode_is_told_and_does_not_end_the_saving(tmp_path: Path) -> None:
    process = Process(tmp_path, "groups: [{name: g, rules: [{alert: A, expr: bad > 0}]}]")
    process.watch._loop._collect = lambda: [("bad", {"x": "\udc80"}, 2.0)]
    process.evaluate(0)
    [problem] = process.watch.errors()
    assert "cannot be saved" in problem
    process.watch._loop._collect = lambda: [("bad", {"x": "y"}, 2.0)]
    process.evaluate(3600)
    process.watch._evaluator.history.entries = ()  # where it is still in
    process.evaluate(3660)
    assert process.watch.errors() == []


def state(saved_at: float, alerts: int = 0) -> SavedState:
    alert = ActiveAlert("A", (("alertname", "A"),), (), "firing", 0.0, 0.0, 1.0, 0.0)
    return SavedState(saved_at=saved_at, alerts=(SavedAlert(group="g", alert=alert),) * alerts, history=())


def test_a_disk_that_hangs_holds_up_nobody_and_the_newest_state_is_written_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, disk = StateFile(tmp_path / "alerts.json"), threading.Event()
    monkeypatch.setattr(state_file, "sync", lambda _path: disk.wait(20))
    for number in range(100):
        file.save(state(number))  # returns at once
    assert not file.flush(0.01)
    disk.set()
    assert file.flush(20)
    found = StateFile(tmp_path / "alerts.json").read()
    assert found is not None
    assert found.saved_at == 99


def test_what_was_saved_before_stays_whole_when_a_write_fails_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(tmp_path / "alerts.json")
    file.save(state(1))
    assert file.flush(20)

    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_file, "sync", full)
    file.save(state(2))
    assert file.flush(20)
    assert "No space left" in str(file.problem)
    found = StateFile(tmp_path / "alerts.json").read()
    assert found is not None
    assert found.saved_at == 1


def test_the_file_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    file, other_name = StateFile(tmp_path / "alerts.json"), tmp_path / "before.json"
    file.save(state(1))
    assert file.flush(20)
    other_name.hardlink_to(tmp_path / "alerts.json")
    before = other_name.read_text()
    file.save(state(2))
    assert file.flush(20)
    assert other_name.read_text() == before
    assert (tmp_path / "alerts.json").read_text() != before


def test_of_a_storm_of_alerts_the_firing_ones_are_saved_first(tmp_path: Path) -> None:
    rules = """groups: [{name: g, rules: [
      {alert: Pending, expr: "label_replace(n, 'a', 'b', '', '')", for: 1h}, {alert: Firing, expr: n}]}]"""
    process = Process(tmp_path, rules)
    process.watch._loop._collect = lambda: [("n", {"i": str(i)}, 1.0) for i in range(MAX_ALERTS)]
    process.evaluate(0)
    assert len(process.watch.describe()["active"]) == 2 * MAX_ALERTS
    content = json.loads((tmp_path / "state" / "alerts.json").read_text())
    assert [each["alert"]["state"] for each in content["alerts"]] == ["firing"] * MAX_ALERTS
    assert len(process.watch.describe()["history"]) == 200


def test_a_process_that_is_killed_comes_back_with_its_alert_and_tells_nothing_twice(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    (tmp_path / "rules.yaml").write_text("groups: [{name: g, rules: [{alert: Always, expr: vector(1)}]}]")
    env = {
        "LLMKG_ALERTING__DEFAULT_RULES": "false",
        "LLMKG_ALERTING__RULE_FILES": json.dumps([str(tmp_path / "rules.yaml")]),
        "LLMKG_ALERTING__STATE_FILE": str(tmp_path / "alerts.json"),
        "LLMKG_MONITORING__ALERT_CHECK_INTERVAL_SECONDS": "0.1",
    }
    try:
        first = servers.start(env=env)
        wait_until((tmp_path / "alerts.json").exists, "a saved state")
        before = json.loads(http_get(f"{first.ops_url}/alerts").body)["data"]
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(20)
        second = servers.start(env=env)
        after = json.loads(http_get(f"{second.ops_url}/alerts").body)["data"]
    finally:
        servers.kill_remaining()
    assert [alert["labels"] for alert in before["alerts"]] == [{"alertname": "Always"}]
    assert after == before
    assert "alert Always fires" in first.log.read_text()
    assert "alert Always fires" not in second.log.read_text()
