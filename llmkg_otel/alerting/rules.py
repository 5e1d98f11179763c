"""Prometheus rule files: loaded, checked and compiled before anything is evaluated.

Source: Prometheus `model/rulefmt` (the format) and its own messages, with the line in the file added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql import Expression
from llmkg_otel.alerting.rule_relations import interval_warnings, rule_warnings
from llmkg_otel.alerting.rule_yaml import Field, Fields, read_yaml
from llmkg_otel.alerting.templates import Template
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AlertRule",
    "RecordingRule",
    "RuleFile",
    "RuleGroup",
    "load_default_rules",
    "load_rules",
    "parse_rules",
]

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class AlertRule:
    """An alert: it fires for each sample that the expression yields for `for_seconds` on end.

    It goes on firing for `keep_firing_seconds` after the last one. `line` is where it stands in its file.
    """

    name: str
    expression: Expression
    for_seconds: float
    keep_firing_seconds: float
    labels: tuple[tuple[str, Template], ...]
    annotations: tuple[tuple[str, Template], ...]
    line: int

    @property
    def severity(self) -> str:
        """The severity label when it is the same for every alert, "none" without one, else "_OTHER"."""
        template = dict(self.labels).get("severity")
        if template is None:
            return "none"
        return template.text if template.static else "_OTHER"


@dataclass(frozen=True, slots=True)
class RecordingRule:
    """A metric that is computed: the expression's samples under the name `name`, `labels` added."""

    name: str
    expression: Expression
    labels: tuple[tuple[str, str], ...]
    line: int


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated in order, every `interval_seconds` (None: at every evaluation).

    A rule that yields more than `limit` series or alerts fails (0 or less: no limit). Rules read, and what
    they record is dated, `query_offset_seconds` before the evaluation. The group's labels are its rules'
    labels already.
    """

    name: str
    file: str
    interval_seconds: float | None
    rules: tuple[AlertRule | RecordingRule, ...]
    limit: int = 0
    query_offset_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RuleFile:
    """What a file holds, and warnings: what Prometheus, too, takes and what is still not as it seems."""

    groups: tuple[RuleGroup, ...]
    warnings: tuple[str, ...]


def load_rules(
    path: Path | str, *, retention_seconds: float | None = None, interval_seconds: float | None = None
) -> RuleFile:
    """Load a Prometheus rule file.

    `retention_seconds` is how far back samples are kept, and `interval_seconds` how often rules are
    evaluated (None: do not check). Raises ConfigurationError that names file, line, rule and the part at
    fault: for a file that cannot be read, is no rule file, or uses PromQL or templates that are not
    evaluated exactly here.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from None
    loaded = parse_rules(text, str(file), retention_seconds=retention_seconds)
    uneven = interval_warnings(loaded.groups, interval_seconds)
    return replace(loaded, warnings=(*loaded.warnings, *uneven))


def load_default_rules(*, retention_seconds: float | None = None) -> RuleFile:
    """Load the rules that ship with this layer, on its own metrics."""
    resource = resources.files("llmkg_otel.alerting") / "default_rules.yaml"
    return parse_rules(resource.read_text("utf-8"), "default_rules.yaml", retention_seconds=retention_seconds)


def parse_rules(text: str, file: str, *, retention_seconds: float | None = None) -> RuleFile:
    """Read the text of a rule file, as `load_rules` does; `file` is what messages call it."""
    root = read_yaml(text, file)
    if root is None:
        return RuleFile((), ())
    fields = root.mapping("a rule file", {"groups"})
    groups: list[RuleGroup] = []
    for item in fields.sequence("groups"):
        group = _group(item, file)
        if any(group.name == other.name for other in groups):
            item.fail(f'group name "{group.name}" is repeated in the same file')
        groups.append(group)
    return RuleFile(tuple(groups), tuple(rule_warnings(groups, retention_seconds)))


_GROUP_FIELDS = {"name", "interval", "rules", "limit", "query_offset", "labels"}


def _group(item: Field, file: str) -> RuleGroup:
    fields = item.mapping("a group", _GROUP_FIELDS)
    name = fields.text("name")
    if not name:
        item.fail("a group needs a name")
    labels = dict(_texts(item.named(f"group {name}"), fields, "labels"))
    return RuleGroup(
        name,
        file,
        fields.duration("interval") or None,
        tuple(_rule(rule, labels) for rule in fields.sequence("rules")),
        fields.integer("limit"),
        fields.duration("query_offset"),
    )


_ALERT_FIELDS = {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}


def _rule(item: Field, group_labels: dict[str, str]) -> AlertRule | RecordingRule:
    fields = item.mapping("a rule", _ALERT_FIELDS | {"record"})
    alert, record = fields.text("alert"), fields.text("record")
    if bool(alert) == bool(record):
        item.fail(
            "only one of 'record' and 'alert' must be set"
            if alert
            else "one of 'record' or 'alert' must be set"
        )
    named = item.named(f"rule {alert or record}")
    if not fields.text("expr").strip():
        named.fail("field 'expr' must be set")
    expr = fields["expr"].named(named.context)
    expression = expr.checked(lambda: Expression(expr.text("expr")))
    labels = group_labels | dict(_texts(named, fields, "labels"))
    if record:
        return _recording(named, fields, record, expression, labels)
    return AlertRule(
        alert,
        expression,
        fields.duration("for"),
        fields.duration("keep_firing_for"),
        _templates(named, labels),
        _templates(named, dict(_texts(named, fields, "annotations"))),
        item.line,
    )


def _recording(
    named: Field, fields: Fields, record: str, expression: Expression, labels: dict[str, str]
) -> RecordingRule:
    for key in ("annotations", "for", "keep_firing_for"):
        if key in fields:
            named.fail(f"field {key!r} has no place in a recording rule")
    if not _METRIC_NAME.fullmatch(record):
        named.fail(f"{record!r} is no metric name")
    return RecordingRule(record, expression, tuple(labels.items()), named.line)


def _texts(named: Field, fields: Fields, key: str) -> list[tuple[str, str]]:
    if key not in fields:
        return []
    items = fields[key].named(named.context).mapping(key, None)
    for name, item in items.items():
        if not _LABEL_NAME.fullmatch(name) or (key == "labels" and name == "__name__"):
            item.fail(f"{name!r} is no valid name in {key}")
    return [(name, item.text(name)) for name, item in items.items()]


def _templates(named: Field, texts: dict[str, str]) -> tuple[tuple[str, Template], ...]:
    def compiled(text: str) -> Callable[[], Template]:
        return lambda: Template(text)

    return tuple((name, named.checked(compiled(text))) for name, text in texts.items())
