"""A clock that is set back, and one that was ahead for a while, blind no alert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.prometheus import Recorder

from llmkg_otel.alerting.alert_state import ActiveAlert
from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.loop import AlertLoop
from llmkg_otel.alerting.restoration import held
from llmkg_otel.alerting.rules import AlertRule, parse_rules
from llmkg_otel.alerting.samples import SampleStore

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 30.0
RULES = """groups:
- name: g
  rules:
  - {alert: Gauge, expr: failed > 0}
  - {alert: Rate, expr: "rate(errors_total[5m]) > 0.1"}
  - {alert: Waits, expr: waiting > 0, for: 10m}
- {name: own, interval: 1m, rules: [{alert: Own, expr: failed > 0}]}
"""


class Clocked:
    """A loop that is run by hand, with the clock and the values in the test's hands."""

    def __init__(self) -> None:
        self.now = 1e9
        self.values = {"failed": 0.0, "errors_total": 0.0, "waiting": 0.0}
        store = SampleStore(3600, 1000)
        groups = parse_rules(RULES, "rules").groups
        self.evaluator = AlertEvaluator(groups, store, Recorder(), interval_seconds=STEP)
        self.loop = AlertLoop(
            self.evaluator,
            store,
            lambda: [(name, {}, value) for name, value in self.values.items()],
            STEP,
            clock=lambda: self.now,
        )

    def run(self, rounds: int, change: Callable[[dict[str, float]], None] = lambda _values: None) -> set[str]:
        """Evaluate so often; return which alerts fire then."""
        for _ in range(rounds):
            change(self.values)
            self.loop.run_once()
            self.now += STEP
        return {alert.alert for alert in self.evaluator.active() if alert.state == "firing"}


def errors(values: dict[str, float]) -> None:
    values["errors_total"] += 10


@pytest.mark.parametrize("ahead", [0.0, 86400.0])
def test_a_failure_after_the_clock_was_set_back_fires_at_once(
    ahead: float, caplog: pytest.LogCaptureFixture
) -> None:
    clocked = Clocked()
    clocked.run(10)
    clocked.now += ahead
    clocked.run(3)
    clocked.now -= ahead or 3600
    clocked.values["failed"] = 1
    assert clocked.run(2) == {"Gauge", "Own"}
    assert [record.message for record in caplog.records] == [
        f"The clock was set back by about {ahead or 3600:.0f} s: samples and alerts move with it"
    ]


def test_a_rate_sees_the_same_samples_on_both_sides_of_a_clock_that_is_set_back() -> None:
    clocked = Clocked()
    clocked.run(60, errors)
    clocked.now -= 900
    assert clocked.run(1, errors) == {"Rate"}
    assert clocked.run(12) == set()


def test_a_small_rate_over_the_hour_that_is_repeated_is_no_burst() -> None:
    clocked = Clocked()
    for _ in range(60):
        clocked.run(1, lambda values: values.update(errors_total=values["errors_total"] + 1))
    clocked.now -= 900
    assert clocked.run(1) == set()


def test_an_alert_goes_on_waiting_for_as_long_as_it_has_left() -> None:
    clocked = Clocked()
    clocked.values["waiting"] = 1
    clocked.run(11)
    clocked.now -= 3600
    assert clocked.run(9) == set()
    assert clocked.run(1) == {"Waits"}
    assert all(alert.active_since <= clocked.now for alert in clocked.evaluator.active())


def test_an_alert_that_was_saved_by_a_clock_ahead_lies_in_the_past_when_it_is_restored() -> None:
    [rule] = [rule for rule in parse_rules(RULES, "rules").groups[0].rules if rule.name == "Gauge"]
    assert isinstance(rule, AlertRule)
    saved = ActiveAlert("Gauge", (("alertname", "Gauge"),), (), "firing", 9000.0, 9060.0, 1.0, 9100.0)
    firing, _ = held(rule, [(saved, 5300.0)], 5000.0)
    [alert] = firing.values()
    assert (alert.active_since, alert.fired_at, alert.seen_at) == (4900.0, 4960.0, 5000.0)
    assert alert.held_until == 5300.0
