"""Objectives as rules: which burn rates fire on both sides of each threshold, here and in promtool."""

from __future__ import annotations

import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.prometheus import (
    Promtool,
    Recorder,
    SeriesText,
    differences,
    labels_of,
    values_of,
    vector_of,
)

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.promql import Expression
from llmkg_otel.alerting.rules import AlertRule, RecordingRule, parse_rules
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.alerting.slo import slo_rules, slo_warnings
from llmkg_otel.alerting.watch import AlertWatch
from llmkg_otel.cli import main
from llmkg_otel.config import ProductionConfig, SloConfig
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

OPERATION = 'llmkg_operation_name="search"'
GOOD = f"llmkg_operation_duration_seconds_count{{{OPERATION}}}"
BAD = f'llmkg_operation_duration_seconds_count{{{OPERATION},error_type="TimeoutError"}}'
REFUSED = f'llmkg_operation_duration_seconds_count{{{OPERATION},error_type="rate_limited"}}'
FAST = f'llmkg_operation_duration_seconds_bucket{{{OPERATION},le="1.0"}}'
INTERVAL = 295  # 5 minutes of whole intervals would differ in Prometheus 2 and 3 at their left edge
DAY = 86_400 // INTERVAL
HOUR = 3600 // INTERVAL
SLO = SloConfig(operation="search", objective=0.999)
BOTH = {"LlmkgSloBurnsFast", "LlmkgSloBurnsSlowly"}


def steps(*phases: tuple[int, float]) -> str:
    """Return a counter that grows by so much at each of so many steps, phase after phase."""
    value, text = 0.0, ["0"]
    for count, growth in phases:
        text.append(f"{value + growth:.10g}+{growth:.10g}x{count - 1}")
        value += count * growth
    return " ".join(text)


def burning(*phases: tuple[int, float]) -> list[tuple[str, str]]:
    """Return 1,000 calls a step, of which a share fails: (steps, share) each."""
    return [
        (GOOD, steps(*((count, 1000 * (1 - share)) for count, share in phases))),
        (BAD, steps(*((count, 1000 * share) for count, share in phases))),
    ]


def rules_of(slo: SloConfig) -> str:
    """Return the rules, all to be evaluated each time: promtool knows no group's own interval."""
    return slo_rules({"s": slo}).replace("  interval: 5m\n", "")


def evaluated(slo: SloConfig, series: SeriesText, recorder: Recorder) -> tuple[SampleStore, AlertEvaluator]:
    store = SampleStore(1e9, 10**6)
    groups = parse_rules(rules_of(slo), "slos").groups
    evaluator = AlertEvaluator(groups, store, recorder, interval_seconds=INTERVAL)
    points = [(text, labels_of(text), values_of(values)) for text, values in series]
    for step in range(len(points[0][2])):
        for text, labels, values in points:
            named, value = dict(labels), values[step]
            assert isinstance(value, float)
            store.append(float(step * INTERVAL), [(named.pop("__name__"), named, value)], source=text)
        evaluator.evaluate(float(step * INTERVAL))
        assert evaluator.errors() == ()
    return store, evaluator


def firing(evaluator: AlertEvaluator) -> set[str]:
    return {alert.alert for alert in evaluator.active()}


SIDES = [
    ([(DAY, 0.0)], set()),
    # 14.4 times over an hour: 1.44 % of its calls
    ([(DAY, 0.0), (HOUR, 0.0150)], {"LlmkgSloBurnsFast"}),
    ([(DAY, 0.0), (HOUR, 0.0140)], set()),
    # 6 times over six hours, which is 5 % of the budget
    ([(3 * DAY, 0.0), (6 * HOUR, 0.0062)], {"LlmkgSloBurnsFast"}),
    ([(3 * DAY, 0.0), (6 * HOUR, 0.0058)], set()),
    # 3 times over a day, 10 % of the budget
    ([(2 * DAY, 0.0), (DAY, 0.0031)], {"LlmkgSloBurnsSlowly"}),
    ([(2 * DAY, 0.0), (DAY, 0.0029)], set()),
    # as fast as it may be over three days
    ([(3 * DAY, 0.00103)], {"LlmkgSloBurnsSlowly"}),
    ([(3 * DAY, 0.00097)], set()),
    # a total failure: at once, and of a tenth of the budget in five minutes
    ([(3 * DAY, 0.0), (1, 1.0)], BOTH),
    # it is over: the short windows say so within minutes
    ([(DAY, 0.0), (HOUR, 0.02), (2, 0.0)], set()),
]


@pytest.mark.parametrize(("phases", "alerts"), SIDES)
def test_an_objective_fires_on_one_side_of_each_burn_rate_and_not_on_the_other(
    recorder: Recorder, phases: Sequence[tuple[int, float]], alerts: set[str]
) -> None:
    _, evaluator = evaluated(SLO, burning(*phases), recorder)
    assert firing(evaluator) == alerts


def test_recorded_ratios_and_alerts_are_those_of_promtool(promtool: Promtool, recorder: Recorder) -> None:
    series = burning((DAY, 0.0), (3 * HOUR, 0.01), (HOUR, 0.0), (4 * HOUR, 0.007), (HOUR, 0.0))
    last = len(values_of(series[0][1])) - 1
    asked = ('{__name__=~"slo:.*"}', "ALERTS")
    questions = [(text, step * INTERVAL) for step in range(0, last + 1, 7) for text in asked]
    theirs = promtool.vectors(series, INTERVAL, questions, rules_of(SLO))
    store, _ = evaluated(SLO, series, recorder)
    ours = [vector_of(Expression(text).evaluate(store, at)) for text, at in questions]
    assert differences(questions, theirs, ours) == []
    assert {event.alert for event in recorder.events if event.firing} == BOTH


def test_what_is_left_of_the_budget_is_recorded(recorder: Recorder) -> None:
    store, _ = evaluated(SLO, burning((2 * DAY, 0.0), (2 * DAY, 0.001)), recorder)
    [(labels, left)] = Expression("slo:error_budget:remaining").evaluate(store, 4.0 * DAY * INTERVAL)
    assert dict(labels) == {
        "__name__": "slo:error_budget:remaining",
        "slo": "s",
        "llmkg_operation_name": "search",
    }
    assert left == pytest.approx(0.5, abs=0.01)
    store, _ = evaluated(SLO, burning((DAY, 0.002)), recorder)
    [(_, left)] = Expression("slo:error_budget:remaining").evaluate(store, float(DAY * INTERVAL))
    assert left == pytest.approx(-1.0, abs=0.01)


@pytest.mark.parametrize(
    ("failures", "minimum", "fires"), [(1, 5, False), (4, 5, False), (7, 5, True), (3, 1, True)]
)
def test_a_few_failures_in_a_quiet_night_wake_nobody(
    recorder: Recorder, failures: int, minimum: int, fires: bool
) -> None:
    slo = SloConfig(operation="search", objective=0.999, minimum_failures=minimum)
    night = [
        (GOOD, steps((10 * HOUR, 1.0))),
        (BAD, steps((9 * HOUR, 0.0), (failures, 1.0), (HOUR - failures, 0.0))),
    ]
    evaluated(slo, night, recorder)
    assert {event.alert for event in recorder.events} == (BOTH if fires else set())


def test_what_is_the_callers_own_doing_is_not_counted(recorder: Recorder) -> None:
    series = [(GOOD, steps((DAY, 1.0))), (REFUSED, steps((DAY, 1000.0)))]
    store, evaluator = evaluated(SLO, series, recorder)
    assert firing(evaluator) == set()
    [(_, ratio)] = Expression("slo:error_ratio:rate1h").evaluate(store, float(DAY * INTERVAL))
    assert ratio == 0.0


@pytest.mark.parametrize(
    ("fast", "alerts"), [(0.995, set()), (0.985, {"LlmkgSloBurnsSlowly"}), (0.9, BOTH), (None, BOTH)]
)
def test_a_latency_objective_counts_what_is_slower_than_its_bound(
    recorder: Recorder, fast: float | None, alerts: set[str]
) -> None:
    slo = SloConfig(operation="search", objective=0.99, latency_seconds=1.0)
    series = [(GOOD, steps((3 * DAY, 1000.0))), (BAD, steps((3 * DAY, 1000.0)))]  # what fails is not slow
    if fast is not None:  # else a View has left out the bound
        series.append((FAST, steps((3 * DAY, 1000.0 * fast))))
    _, evaluator = evaluated(slo, series, recorder)
    assert firing(evaluator) == alerts


@pytest.mark.parametrize("le", ["1", "1.0"])
def test_a_bound_is_found_as_the_exporter_and_as_the_collector_write_it(recorder: Recorder, le: str) -> None:
    slo = SloConfig(operation="search", objective=0.99, latency_seconds=1.0)
    series = [(GOOD, steps((DAY, 100.0))), (FAST.replace("1.0", le), steps((DAY, 100.0)))]
    _, evaluator = evaluated(slo, series, recorder)
    assert firing(evaluator) == set()


def test_the_factors_are_scaled_to_the_window_and_are_one_at_least() -> None:
    def factors(days: int) -> list[str]:
        text = slo_rules({"s": SloConfig(operation="search", objective=0.999, window_days=days)})
        return re.findall(r"\(\n +slo:error_ratio:\w+\{slo=\"s\"\} > (\S+) \* 0.001\n", text)

    assert factors(30) == ["14.4", "6", "3", "1"]
    assert factors(28) == ["13.44", "5.6", "2.8", "1"]
    assert factors(90) == ["43.2", "18", "9", "3"]
    assert factors(7) == ["3.36", "1.4", "1", "1"]


def test_an_objective_without_an_operation_is_for_the_one_of_its_name() -> None:
    assert slo_rules({"search": SloConfig(objective=0.999)}) == slo_rules({"search": SLO})


def test_a_latency_may_be_a_timedelta() -> None:
    slo = SloConfig(objective=0.99, latency_seconds=timedelta(milliseconds=250))
    assert slo.latency_seconds == 0.25


def test_promtool_accepts_the_rules_of_any_operation(promtool: Promtool) -> None:
    config = ProductionConfig(
        slos={
            "plain": {"operation": "search", "objective": 0.999},
            "odd": {"operation": 'a "quoted" {{ name }} \\ é\n', "objective": 0.5, "latency_seconds": 0.25},
            "whole": {"operation": "x", "objective": 0.95, "latency_seconds": 60, "window_days": 7},
        }
    )
    file = promtool.directory / "slos.yaml"
    file.write_text(slo_rules(config.slos))
    command = [promtool.path, "check", "rules", "slos.yaml"]
    done = subprocess.run(command, cwd=promtool.directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr
    assert parse_rules(file.read_text(), "slos").warnings == ()


def test_what_is_exported_for_prometheus_has_every_window_of_an_objective(
    promtool: Promtool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = promtool.directory / "llmkg.yaml"
    config.write_text("alerting: {default_rules: false}\nslos: {search: {objective: 0.999}}")
    assert main(["rules", "export", "--config", str(config)]) == 0
    exported = promtool.directory / "exported.yaml"
    exported.write_text(capsys.readouterr().out)
    command = [promtool.path, "check", "rules", "exported.yaml"]
    done = subprocess.run(command, cwd=promtool.directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    asked, given = (
        [(group.interval_seconds, [(rule.name, rule.labels) for rule in group.rules]) for group in groups]
        for groups in (
            parse_rules(text, "slos").groups for text in (slo_rules({"search": SLO}), exported.read_text())
        )
    )
    assert given == asked
    assert "slo:error_ratio:rate3d" in exported.read_text()


def test_an_alert_that_no_failure_can_reach_is_left_out_and_told() -> None:
    slos = {"s": SloConfig(operation="search", objective=0.8)}
    [warning] = slo_warnings(slos, None)
    assert warning == "slos.s: no LlmkgSloBurnsFast: at 0.8 a total failure does not burn so fast"
    assert "LlmkgSloBurnsFast" not in slo_rules(slos)
    assert "LlmkgSloBurnsSlowly" in slo_rules(slos)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"objective": 99.9}, "slos.s.objective = 99.9: should be a share"),
        ({"objective": 1.0}, "slos.s.objective = 1.0: should be a share"),
        ({"latency_seconds": 0.3}, "slos.s.latency_seconds = 0.3: should be a bound of the"),
        ({"latency_seconds": 0.3}, "the nearest: 0.25 or 0.5"),
        ({"latency_seconds": 1e9}, "the nearest: 60"),
        ({"latency_seconds": 1e-9}, "the nearest: 0.0005"),
        ({"window_days": 1}, "slos.s.window_days = 1"),
        ({"operation": ""}, "slos.s.operation = ''"),
        ({"minimum_failures": 0}, "slos.s.minimum_failures = 0"),
        ({"treshold": 1}, "slos.s.treshold: unknown option"),
    ],
)  # fmt: skip
def test_an_objective_that_cannot_be_held_is_refused_with_its_path(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(reason)):
        ProductionConfig(slos={"s": {"operation": "search", "objective": 0.999} | options})


def test_a_name_that_is_no_label_in_a_rule_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"slos: the name .* should have letters"):
        ProductionConfig(slos={'a"b': {"operation": "search", "objective": 0.999}})


def watch(caplog: pytest.LogCaptureFixture, **monitoring: float) -> tuple[set[str], list[str]]:
    """Return the windows that are recorded in process, and what is told about the others."""
    caplog.clear()
    config = ProductionConfig(
        slos={"s": {"operation": "search", "objective": 0.999, "window_days": 7}},
        alerting={"default_rules": False},
        monitoring=monitoring,
    )
    observer: Any = Recorder()
    built = AlertWatch(config, list, observer, lambda _seconds: None)
    rules = [state.rule for state in built._evaluator._states()]
    names = {rule.name for rule in rules if isinstance(rule, RecordingRule)}
    return names, [record.message for record in caplog.records]


def test_in_process_only_windows_are_evaluated_whose_samples_are_kept_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, [told] = watch(caplog)
    assert names == {"slo:error_ratio:rate5m", "slo:error_ratio:rate1h", "slo:failures:increase1h"}
    assert told == (
        "slos.s: evaluated by Prometheus only (`llmkg-otel rules export`), over 6h, 1d, 3d, 7d: here samples "
        "are kept for 3600 s; all alerts need 259200 s of monitoring.metric_retention_seconds and of "
        "max_metric_points x alert_check_interval_seconds"
    )
    names, [told] = watch(caplog, metric_retention_seconds=259_200, max_metric_points=8640)
    assert {"slo:error_ratio:rate3d", "slo:failures:increase3d"} <= names
    assert "slo:error_budget:remaining" not in names
    assert told.endswith("over 7d: here samples are kept for 259200 s")
    names, told_nothing = watch(caplog, metric_retention_seconds=700_000, max_metric_points=30_000)
    assert "slo:error_budget:remaining" in names
    assert told_nothing == []


def test_points_that_are_not_kept_count_as_samples_that_are_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, [told] = watch(caplog, metric_retention_seconds=700_000, max_metric_points=100)
    assert names == set()
    assert "over 1h, 6h, 1d, 3d, 7d: here" in told
    assert "kept for 3000 s" in told


def test_the_rules_of_an_objective_tell_what_to_do() -> None:
    page = Path(__file__).parents[2] / "docs" / "runbook.md"
    headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    groups = parse_rules(slo_rules({"s": SLO}), "slos").groups
    alerts = [rule for group in groups for rule in group.rules if isinstance(rule, AlertRule)]
    assert {alert.name for alert in alerts} == BOTH
    for alert in alerts:
        annotations = {name: template.text for name, template in alert.annotations}
        assert annotations["runbook_url"].partition("#")[2] in anchors
        assert "99.9 % of the calls of search over 30 days" in annotations["description"]
    assert yaml.safe_load(slo_rules({})) == {"groups": []}


def test_the_example_in_the_guide_is_a_configuration(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    [example] = re.findall(r"```yaml\n(slos:\n.*?)```", guide, re.DOTALL)
    file = tmp_path / "llmkg.yaml"
    file.write_text(example)
    slos = ProductionConfig.load(file).slos
    assert {name: (slo.objective, slo.latency_seconds) for name, slo in slos.items()} == {
        "search": (0.999, None),
        "search-fast": (0.99, 0.5),
    }
