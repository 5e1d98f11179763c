from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.alerting.rules import (
    AlertRule,
    RecordingRule,
    RuleFile,
    load_default_rules,
    load_rules,
    parse_rules,
)
from llmkg_otel.errors import ConfigurationError

GOOD = """
groups:
  - name: one
    interval: 1m30s
    rules:
      - record: job:up:sum
        expr: sum by (job) (up)
        labels: {team: 5}
      - alert: Down
        expr: |
          up == 0
        for: 0m
        keep_firing_for: 1h
        labels:
          severity: page
        annotations: {summary: "{{ $labels.job }}"}
  - name: two
"""


def load(tmp_path: Path, text: str, retention: float | None = None) -> RuleFile:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    return load_rules(file, retention_seconds=retention)


def test_a_standard_rule_file_is_loaded_with_its_lines(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    one, two = loaded.groups
    assert (one.name, one.interval_seconds, two.rules) == ("one", 90.0, ())
    record, alert = one.rules
    assert isinstance(record, RecordingRule)
    assert (record.name, record.labels, record.line) == ("job:up:sum", (("team", "5"),), 6)
    assert isinstance(alert, AlertRule)
    assert (alert.name, alert.expression.text, alert.line) == ("Down", "up == 0\n", 9)
    assert (alert.for_seconds, alert.keep_firing_seconds, alert.severity) == (0.0, 3600.0, "page")


def test_an_empty_file_has_no_groups(tmp_path: Path) -> None:
    assert load(tmp_path, "").groups == ()
    assert load(tmp_path, "groups:\n").groups == ()


def rule(body: str) -> str:
    return "groups:\n- name: g\n  rules:\n" + "".join(f"  {line}\n" for line in body.splitlines())


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("- a\n", 1, "a rule file must be a mapping"),
        ("just text", 1, "a rule file must be a mapping"),
        ("groups: 5", 1, "groups must be a list"),
        ("groups: [\n", 2, "not valid YAML"),
        ("groups: &a\n- *b\n", 2, "not valid YAML"),
        ("a: 1\ngroups: []", 1, "a rule file has no field 'a'"),
        ("groups:\n- rules: []", 2, "a group needs a name"),
        ("groups:\n- name: a\n- name: a", 3, "repeated in the same file"),
        ("groups:\n- name: a\n  name: b", 3, "given twice"),
        ("groups:\n- name: a\n  limits: 3", 3, "a group has no field 'limits'; it has interval, lab"),
        ("groups:\n- name: a\n  limit: some", 3, "limit must be a whole number"),
        ("groups:\n- name: a\n  limit: '3'", 3, "limit must be a whole number"),
        ("groups:\n- name: a\n  query_offset: -1m", 3, "'-1m' is no duration"),
        ("groups:\n- name: a\n  labels: {a-b: c}", 3, "group a: 'a-b' is no valid name"),
        ("groups:\n- name: a\n  labels: {__name__: c}", 3, "group a: '__name__' is no valid name"),
        ("groups:\n- name: a\n  interval: soon", 3, "'soon' is no duration"),
        ("groups:\n- name: a\n  interval: 1m1h", 3, "is no duration"),
        (rule("- {alert: A, record: b, expr: up}"), 4, "only one of 'record' and 'alert'"),
        (rule("- expr: up"), 4, "one of 'record' or 'alert' must be set"),
        (rule("- alert: A"), 4, "rule A: field 'expr' must be set"),
        (rule("- alert: A\n  expr: nope(up)"), 5, "rule A: not valid PromQL: unknown function"),
        (rule("- alert: A\n  for: 5m\n  expr: info(up)"), 6, "A: not supported: experimental function info"),
        (rule('- alert: A\n  expr: up{a=~"("}'), 5, "rule A: not valid PromQL: illegal regex"),
        (rule("- alert: A\n  expr: " + "(" * 300 + "up" + ")" * 300), 5, "rule A: the expression is nested"),
        (rule("- alert: A\n  expr: up\n  for: -5m"), 6, "'-5m' is no duration"),
        (rule("- alert: A\n  expr: up\n  fro: 5m"), 6, "a rule has no field 'fro'"),
        (rule("- alert: A\n  expr: up\n  labels: [a]"), 6, "labels must be a mapping"),
        (rule("- alert: A\n  expr: up\n  labels: {a-b: c}"), 6, "'a-b' is no valid name"),
        (rule("- alert: A\n  expr: up\n  labels: {a: [c]}"), 6, "a must be a text"),
        (rule("- alert: A\n  expr: up\n  annotations: {a: '{{ if 1 }}'}"), 4, "rule A: not supported"),
        (rule("- record: a b\n  expr: up"), 4, "'a b' is no metric name"),
        (rule("- record: a\n  expr: up\n  for: 5m"), 4, "rule a: field 'for' has no place"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_file_line_and_reason(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'rules.yaml'}:{line}: ")
    assert reason in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "binary.yaml", "."):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            load_rules(tmp_path / name)


def test_a_rule_that_looks_back_further_than_the_retention_is_a_warning(tmp_path: Path) -> None:
    text = rule("- alert: A\n  expr: rate(up[2h]) > 1\n- alert: B\n  expr: up offset 1m == 0")
    assert load(tmp_path, text).warnings == ()
    assert load(tmp_path, text, 7200).warnings == ()
    [warning] = load(tmp_path, text, 3600).warnings
    assert warning.startswith(f"{tmp_path / 'rules.yaml'}:4: rule A looks back 7200 s")
    assert load_default_rules(retention_seconds=3600).warnings == ()


def test_the_severity_of_a_rule_is_from_a_closed_set(tmp_path: Path) -> None:
    text = rule(
        "- {alert: A, expr: up}\n"
        "- {alert: B, expr: up, labels: {severity: warning}}\n"
        "- {alert: C, expr: up, labels: {severity: '{{ $labels.x }}'}}"
    )
    rules = load(tmp_path, text).groups[0].rules
    assert [rule.severity for rule in rules if isinstance(rule, AlertRule)] == ["none", "warning", "_OTHER"]


def test_a_groups_labels_are_its_rules_labels_unless_they_have_their_own(tmp_path: Path) -> None:
    text = """groups:
- name: g
  limit: 3
  query_offset: 1m30s
  labels: {team: a, severity: page}
  rules:
  - {record: r, expr: up, labels: {team: b}}
  - {alert: A, expr: up, labels: {severity: ""}}
"""
    [group] = load(tmp_path, text).groups
    record, alert = group.rules
    assert (group.limit, group.query_offset_seconds) == (3, 90.0)
    assert record.labels == (("team", "b"), ("severity", "page"))
    assert isinstance(alert, AlertRule)
    assert [(name, template.text) for name, template in alert.labels] == [("team", "a"), ("severity", "")]


@pytest.mark.parametrize(
    ("rules", "warned"),
    [
        ("- {record: a, expr: b + 1}\n- {record: b, expr: c * 2}\n- {record: c, expr: sum(a)}", "a, b, c"),
        ("- {record: a, expr: a + 1 or vector(0)}", "a"),
        ("- {record: a, expr: b}\n- {record: b, expr: up}\n- {alert: up, expr: a}", None),
    ],
)
def test_recorded_metrics_that_are_made_of_themselves_are_a_warning(
    tmp_path: Path, rules: str, warned: str | None
) -> None:
    warnings = load(tmp_path, rule(rules)).warnings
    assert len(warnings) == (0 if warned is None else 1)
    for warning in warnings:
        assert f"rules.yaml:4: recorded metrics are made of themselves: {warned}; each" in warning


def test_two_rules_of_a_group_with_one_name_and_the_same_labels_are_a_warning(tmp_path: Path) -> None:
    twice = "- {alert: A, expr: up, labels: {a: b}}\n- {alert: A, expr: down, labels: {a: b}}"
    [warning] = load(tmp_path, rule(twice)).warnings
    assert "rules.yaml:5: rule A has the name and the labels of the one on line 4" in warning
    assert load(tmp_path, rule(twice.replace("b}}\n", "c}}\n"))).warnings == ()
    assert load(tmp_path, rule("- {record: A, expr: up}\n- {alert: A, expr: up}")).warnings == ()


@given(text=st.text(alphabet="groups: -\n[]{}&*!|>'\"#abnmerul", max_size=200))
def test_any_text_is_loaded_or_refused_as_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(text)
    try:
        load_rules(file)
    except ConfigurationError as error:
        reason = str(error)
    else:
        reason = str(file)
    assert str(file) in reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("null", 0),
        ("292y", 292 * 365 * 86400),
        ("9223372036854ms", 9223372036.854),
        ("1" + "0" * 20 + "ms", None),
    ]
    + [
        (text, None)
        for text in ("293y", "1000y", "106752d", "9223372036855ms", "9" * 400 + "s", "9" * 5000 + "y")
    ]
    + [("0" * 5000 + "5s", 5)],
)
def test_a_duration_is_at_most_what_64_bits_of_nanoseconds_hold_as_in_promtool(
    text: str, seconds: float | None
) -> None:
    rules = f"groups: [{{name: g, rules: [{{alert: A, expr: x, for: {text}}}]}}]"
    if seconds is None:
        with pytest.raises(ConfigurationError, match="rules:1: for: a duration of more than 292 years"):
            parse_rules(rules, "rules")
    else:
        [rule] = parse_rules(rules, "rules").groups[0].rules
        assert isinstance(rule, AlertRule)
        assert rule.for_seconds == seconds


@pytest.mark.parametrize("where", ['labels: {a: "\\ud800"}', 'annotations: {"\\udfff": b}', 'for: "\\udc80"'])
def test_half_a_surrogate_pair_is_refused_since_it_can_be_written_nowhere(where: str) -> None:
    with pytest.raises(ConfigurationError, match=r"rules:1: .*half a surrogate pair"):
        parse_rules(f"groups: [{{name: g, rules: [{{alert: A, expr: x, {where}}}]}}]", "rules")


@pytest.mark.parametrize(("interval", "told"), [("1m", False), ("30s", False), ("45s", True), ("5s", True)])
def test_an_interval_that_cannot_be_kept_is_told_at_load(interval: str, told: bool, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"groups: [{{name: g, interval: {interval}, rules: []}}]")
    warnings = load_rules(file, interval_seconds=30).warnings
    assert load_rules(file).warnings == ()
    told_of = [warning.partition(",")[0] for warning in warnings]
    assert told_of == [f"{file}: group g has an interval of {interval[:-1]} s"] * told
