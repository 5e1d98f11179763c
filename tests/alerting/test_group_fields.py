"""limit, query_offset and labels of a group do what they do in promtool 3.5."""

import re
from pathlib import Path

import pytest
from support.prometheus import Promtool, Recorder, differences, labels_of, values_of, vector_of

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.export import rule_file_text
from llmkg_otel.alerting.promql import Expression
from llmkg_otel.alerting.rules import load_rules, parse_rules
from llmkg_otel.alerting.samples import SampleStore

INTERVAL, STEPS = 60, 20
SERIES = [
    ('m{i="0"}', "1x3 5x9 1x9"),
    ('m{i="1"}', "1x5 5x3 1 5x3 1x9"),
    ('m{i="2"}', "1x6 5x3 1x12"),
]
OFFSET = """
groups:
- name: late
  query_offset: 2m
  labels: {team: a, instance: "{{ $labels.i }}", severity: warning}
  rules:
  - {record: late, expr: sum(m), labels: {team: b}}
  - {record: made, expr: late * 2}
  - alert: Late
    expr: m > 3
    for: 2m
    labels: {severity: page}
    annotations: {summary: "{{ $value }}"}
- name: now
  query_offset: 0s
  rules:
  - {record: now, expr: sum(m)}
  - {alert: OnLate, expr: late > 6, keep_firing_for: 2m}
"""
QUERIES = ('{__name__=~"late|made|now"}', "ALERTS", "ALERTS_FOR_STATE", "timestamp(late)", "late offset 2m")


def store_and_evaluator(promtool: Promtool, recorder: Recorder) -> tuple[SampleStore, AlertEvaluator]:
    store = SampleStore(1e6, 1000)
    groups = load_rules(promtool.directory / "rules.yaml").groups
    return store, AlertEvaluator(groups, store, recorder, interval_seconds=INTERVAL)


def feed(store: SampleStore, step: int) -> None:
    for name, values in SERIES:
        value = values_of(values)[step]
        assert isinstance(value, float)
        labels = dict(labels_of(name))
        store.append(float(step * INTERVAL), [(labels.pop("__name__"), labels, value)], source=name)


def test_a_group_with_an_offset_and_labels_is_as_in_promtool(promtool3: Promtool, recorder: Recorder) -> None:
    asked = range(STEPS - 2)  # what is recorded at the last steps is dated before them
    questions = [(query, step * INTERVAL) for step in asked for query in QUERIES]
    theirs = promtool3.vectors(SERIES, INTERVAL, questions, OFFSET)
    store, evaluator = store_and_evaluator(promtool3, recorder)

    for step in range(STEPS):
        feed(store, step)
        evaluator.evaluate(float(step * INTERVAL))
        assert not evaluator.errors()
    ours = [vector_of(Expression(query).evaluate(store, at)) for query, at in questions]
    assert differences(questions, theirs, ours) == []
    assert sum(map(bool, theirs)) > len(theirs) / 2


@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 3])
def test_a_rule_that_yields_more_than_its_groups_limit_fails_where_it_does_in_promtool(
    promtool3: Promtool, recorder: Recorder, limit: int
) -> None:
    rules = f"""groups:
- name: bounded
  limit: {limit}
  rules:
  - {{record: copied, expr: "m > 3"}}
  - {{alert: Many, expr: "m > 3", for: 1m, keep_firing_for: 1m}}
"""
    never_wrong = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in SERIES],
        "promql_expr_test": [{"expr": "vector(1)", "eval_time": f"{STEPS - 1}m"}],
    }
    reported = re.findall(r"rule: (.+), time: (\d+)m0s, err: (.+)", promtool3.run([never_wrong], 60, rules))
    store, evaluator = store_and_evaluator(promtool3, recorder)
    for step in range(STEPS):
        feed(store, step)
        evaluator.evaluate(float(step * INTERVAL))
        if failures := [(each.rule, str(step), str(each.error)) for each in evaluator.errors()]:
            break  # as promtool does
    assert failures == reported
    assert len(failures) == (2 if limit in (1, 2) else 0)


def test_alerts_over_the_limit_are_gone_and_begin_anew(tmp_path: Path, recorder: Recorder) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("groups: [{name: g, limit: 1, rules: [{alert: A, expr: m > 3}]}]")
    store = SampleStore(3600, 100)
    evaluator = AlertEvaluator(load_rules(file).groups, store, recorder)
    for at, bad in ((0, 1), (60, 2), (120, 1)):
        store.append(at, [("m", {"i": str(i)}, 5.0 if i < bad else 1.0) for i in range(3)])
        evaluator.evaluate(at)
        assert [str(each.error) for each in evaluator.errors()] == (
            ["exceeded limit of 1 with 2 alerts"] if bad > 1 else []
        )
        assert len(evaluator.active()) == (0 if bad > 1 else 1)
        assert evaluator.states() == {("A", "none"): "unknown" if bad > 1 else "firing"}
    assert recorder.names() == [("A", True), ("A", False), ("A", True)]


def test_an_exported_group_keeps_its_fields() -> None:
    [late, now] = parse_rules(OFFSET.replace("query_offset: 0s", "limit: 7"), "rules").groups
    [late_again, now_again] = parse_rules(rule_file_text([late, now]), "rules").groups
    assert (late_again.query_offset_seconds, now_again.limit) == (120.0, 7)
    assert [rule.labels for rule in late_again.rules] == [rule.labels for rule in late.rules]
