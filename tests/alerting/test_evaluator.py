import math
from pathlib import Path
from typing import Any

import pytest
from support.prometheus import Promtool, Recorder, differences, labels_of, values_of, vector_of

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.promql import EvaluationError, Expression
from llmkg_otel.alerting.rules import RuleGroup, load_rules
from llmkg_otel.alerting.samples import SampleStore

RULES = """
groups:
- name: recorded
  interval: 59s
  rules:
  - record: job:bad:max
    expr: max by (job) (bad)
    labels: {from: rule}
  - record: counted
    expr: counted + 1 or vector(0)
  - record: even
    expr: odd + 1 or vector(0)
  - record: peak
    expr: max_over_time(bad[5m:])
- name: alerts
  interval: 59s
  rules:
  - record: odd
    expr: even + 1
  - alert: Now
    expr: bad > 0
    labels: {severity: page, worst: "{{ $value }}"}
  - alert: Waits
    expr: job:bad:max > 1
    for: 2m
    labels: {severity: "{{ $labels.job }}", empty: ""}
    annotations: {summary: "{{ $labels }} is {{ $value | humanize }}"}
  - alert: Keeps
    expr: bad > 1
    for: 59s
    keep_firing_for: 3m
  - alert: OnOthers
    expr: count by (alertstate) (ALERTS{alertname="Keeps"}) > 0
  - alert: Number
    expr: vector(1) - 1 or vector(2) > 1
"""
BAD = [
    ('bad{job="a",i="0"}', "0 1 2 3 0 0 2 2 2 2 0 0 0 0 0 2 _ stale 2 2 2 2x5"),
    ('bad{job="a",i="1"}', "0x4 1 2x3 _x8 5x10"),
    ('bad{job="b",i="0"}', "NaN 2 NaN 2 2 2 2 Inf -Inf stale 3x14"),
]
INTERVAL = 59


def groups(tmp_path: Path, text: str) -> tuple[RuleGroup, ...]:
    file = tmp_path / "evaluated.yaml"
    file.write_text(text)
    return load_rules(file).groups


def bare(body: str) -> str:
    return "groups:\n- name: g\n  rules:\n" + "".join(f"  {line}\n" for line in body.splitlines())


def feed(store: SampleStore, at: float, **values: float) -> None:
    store.append(at, [(name, {"job": "a"}, value) for name, value in values.items()])


def test_alerts_are_pending_and_firing_at_the_same_instants_as_in_promtool(
    promtool: Promtool, recorder: Recorder, tmp_path: Path
) -> None:
    steps = 25
    recorded = (
        '{__name__=~"bad|job.*|counted|even|odd|peak"}'  # counted reads itself, even and odd each other
    )
    queries = ("ALERTS", "ALERTS_FOR_STATE", "job:bad:max", recorded)
    questions = [(query, step * INTERVAL) for step in range(steps) for query in queries]
    theirs = promtool.vectors(BAD, INTERVAL, questions, RULES)

    store = SampleStore(1e6, 1000)
    evaluator = AlertEvaluator(groups(tmp_path, RULES), store, recorder, interval_seconds=INTERVAL)
    ours = []
    points = [(name, values_of(values)) for name, values in BAD]
    for step in range(steps):
        at = float(step * INTERVAL)
        for name, values in points:
            if step < len(values) and values[step] is not None:
                named = dict(labels_of(name))
                value = values[step]
                sample = [(named.pop("__name__"), named, value)] if isinstance(value, float) else []
                store.append(at, sample, source=name)
        evaluator.evaluate(at)
        ours += [vector_of(query.evaluate(store, at)) for query in map(Expression, queries)]
    assert not evaluator.errors()
    assert differences(questions, theirs, ours) == []
    assert {name for name, firing in recorder.names() if not firing} == {"Now", "Waits", "Keeps", "OnOthers"}


def test_an_alert_fires_after_its_for_and_is_resolved_once(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    text = bare("""- alert: High
  expr: m > 1
  for: 60s
  labels: {severity: page}
  annotations: {summary: "{{ $labels.job }} is at {{ $value }}", note: "n"}""")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    assert evaluator.states() == {("High", "page"): "inactive"}
    for at, value, state in ((0, 2, "pending"), (59.999, 2, "pending"), (60, 3, "firing"), (90, 4, "firing")):
        feed(store, at, m=value)
        evaluator.evaluate(at)
        assert evaluator.states() == {("High", "page"): state}
    [alert] = evaluator.active()
    assert (alert.active_since, alert.fired_at, alert.value) == (0.0, 60.0, 4.0)
    assert alert.annotations == (("note", "n"), ("summary", "a is at 4"))
    feed(store, 120, m=0)
    evaluator.evaluate(120)
    evaluator.evaluate(150)
    assert evaluator.active() == ()
    assert recorder.names() == [("High", True), ("High", False)]
    fired, resolved = recorder.events
    assert fired.labels == (("alertname", "High"), ("job", "a"), ("severity", "page"))
    assert (fired.severity, fired.summary, fired.value) == ("page", "a is at 3", 3.0)
    assert (resolved.labels, resolved.value) == (fired.labels, 4.0)


def test_a_pending_alert_that_ends_is_not_reported(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    evaluator = AlertEvaluator(groups(tmp_path, bare("- {alert: A, expr: m > 1, for: 1m}")), store, recorder)
    for at, value in ((0, 2), (30, 0), (60, 2), (90, 2), (119, 2)):
        feed(store, at, m=value)
        evaluator.evaluate(at)
    assert evaluator.states() == {("A", "none"): "pending"}
    assert recorder.events == []


def test_keep_firing_for_outlasts_a_gap_and_counts_from_its_start(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    text = bare("- {alert: A, expr: m > 1, keep_firing_for: 1m}")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    for at, value, count in (
        (0, 2, 1),
        (10, 0, 1),
        (69, 0, 1),
        (69.5, 2, 1),
        (80, 0, 1),
        (139, 0, 1),
        (140, 0, 0),
    ):
        feed(store, at, m=value)
        evaluator.evaluate(at)
        assert len(evaluator.active()) == count, at
    assert recorder.names() == [("A", True), ("A", False)]


def test_a_rule_that_fails_is_unknown_and_the_others_go_on(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    text = bare("""- {alert: Broken, expr: m + on () group_left () n}
- {record: r, expr: m * 2}
- {alert: Works, expr: r > 1, labels: {severity: page}}""")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    feed(store, 0, m=1, n=0)
    evaluator.evaluate(0)
    assert evaluator.states() == {("Broken", "none"): "firing", ("Works", "page"): "firing"}
    store.append(30, [("m", {"job": "a"}, 1), ("n", {"i": "0"}, 1), ("n", {"i": "1"}, 1)])
    evaluator.evaluate(30)
    assert evaluator.states() == {("Broken", "none"): "unknown", ("Works", "page"): "firing"}
    [failure] = evaluator.errors()
    assert (failure.group, failure.rule, failure.line) == ("g", "Broken", 4)
    assert "many-to-many" in str(failure.error)
    assert len(evaluator.active()) == 2  # its alert stays as it was
    feed(store, 60, m=1, n=0)
    evaluator.evaluate(60)
    assert evaluator.errors() == ()
    assert recorder.names() == [("Broken", True), ("Works", True)]


def test_a_rule_that_makes_its_own_label_longer_every_time_fails_before_it_fills_the_memory(
    tmp_path: Path, recorder: Recorder
) -> None:
    store = SampleStore(3600, 100)
    twice = "label_replace(r, 'x', '$1$1', 'x', '(.*)') or label_replace(vector(1), 'x', 'y', '', '')"
    text = bare(f"""- {{record: r, expr: "{twice}"}}
- alert: A
  expr: ALERTS or vector(1)
  labels: {{x: "{{{{ $labels.x }}}}{{{{ $labels.x }}}}y", alertstate: ""}}""")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    failures = set()
    for at in range(30):
        evaluator.evaluate(at)
        failures |= {(failure.rule, type(failure.error)) for failure in evaluator.errors()}
    assert failures == {("r", EvaluationError), ("A", EvaluationError)}
    assert max(len(str(sample)) for sample in store.instant(None, (), at)) < 200_000


def test_rules_share_what_they_have_in_common_but_not_what_they_write(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SampleStore(3600, 100)
    text = bare("""- {record: before, expr: sum(r) or vector(0)}
- {record: r, expr: sum(m)}
- {record: after, expr: sum(r) or vector(0)}
- {record: any, expr: 'sum({__name__=~"r|nothing"})'}
- {alert: A, expr: sum(m) > 5}
- {alert: B, expr: sum(m) / 2 > 5}""")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    reads = []
    instant = store.instant

    def counted(name: str | None, *rest: Any) -> list[Any]:
        reads.append(name)
        return instant(name, *rest)

    monkeypatch.setattr(store, "instant", counted)
    for at, value in ((0.0, 7.0), (30.0, 8.0)):
        reads.clear()
        feed(store, at, m=value)
        evaluator.evaluate(at)
        assert reads == ["r", "m", "r", None]
        found = {name: sample.value for name in ("after", "any") for sample in instant(name, (), at)}
        assert found == {"after": value, "any": value}
    assert [sample.value for sample in instant("before", (), 30.0)] == [7.0]


def test_two_samples_that_become_one_alert_or_series_are_an_error(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    text = bare("- {alert: A, expr: m, labels: {i: same}}\n- {record: r, expr: m, labels: {i: same}}")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    store.append(0, [("m", {"i": "0"}, 1), ("m", {"i": "1"}, 1)])
    evaluator.evaluate(0)
    assert ["same labelset" in str(failure.error) for failure in evaluator.errors()] == [True, True]
    assert store.instant("r", (), 0) == []


def test_an_unexpected_exception_in_a_rule_is_kept_too(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SampleStore(3600, 100)
    text = bare("- {alert: A, expr: m}\n- {alert: B, expr: n}")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)

    def instant(name: str | None, *_: object) -> list[Any]:
        if name == "m":
            raise ZeroDivisionError
        return [((), math.pi)]

    monkeypatch.setattr(store, "instant", instant)
    evaluator.evaluate(0)
    assert evaluator.states() == {("A", "none"): "unknown", ("B", "none"): "firing"}


def test_a_recorded_series_that_is_no_longer_given_becomes_stale(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    evaluator = AlertEvaluator(groups(tmp_path, bare("- {record: r, expr: m > 1}")), store, recorder)
    for at, value, seen in ((0, 2, 1), (30, 0, 0), (60, 5, 1)):
        feed(store, at, m=value)
        evaluator.evaluate(at)
        assert len(store.instant("r", (), at)) == seen


def test_rules_of_one_name_and_severity_share_the_worst_state(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    text = bare("""- {alert: A, expr: m > 1, for: 1h}
- {alert: A, expr: m > 0}
- {alert: A, expr: m > 9, labels: {severity: page}}
- {alert: B, expr: m > 1, for: 1h, labels: {severity: '{{ $labels.job }}'}}""")
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    feed(store, 0, m=2)
    evaluator.evaluate(0)
    assert evaluator.states() == {
        ("A", "none"): "firing",
        ("A", "page"): "inactive",
        ("B", "_OTHER"): "pending",
    }


def test_a_group_with_an_interval_is_evaluated_when_it_is_due(tmp_path: Path, recorder: Recorder) -> None:
    store = SampleStore(3600, 100)
    text = """groups:
- {name: slow, interval: 60s, rules: [{record: slow, expr: time()}]}
- {name: each, rules: [{record: each, expr: time()}]}
"""
    evaluator = AlertEvaluator(groups(tmp_path, text), store, recorder)
    for at in (0.0, 30.0, 59.99, 90.0, 120.01, 500.0, 530.0, 545.0):
        evaluator.evaluate(at)
    [slow] = store.range("slow", (), -1, 1000)
    [each] = store.range("each", (), -1, 1000)
    assert list(slow.values) == [0.0, 59.99, 120.01, 500.0]
    assert len(each.values) == 8


def test_the_clock_is_asked_when_no_time_is_given(tmp_path: Path, recorder: Recorder) -> None:
    evaluator = AlertEvaluator(
        groups(tmp_path, bare("- {alert: A, expr: vector(1)}")), SampleStore(60, 5), recorder, lambda: 42.0
    )
    evaluator.evaluate()
    assert evaluator.active()[0].active_since == 42.0
