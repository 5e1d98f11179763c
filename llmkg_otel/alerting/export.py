"""Rule groups written as the rule file that Prometheus loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from llmkg_otel.alerting.printed import show_duration
from llmkg_otel.alerting.rules import AlertRule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmkg_otel.alerting.rules import RecordingRule, RuleGroup

__all__ = ["groups_text", "rule_file_text"]


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that expressions can be read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def rule_file_text(groups: Iterable[RuleGroup]) -> str:
    """Return the YAML of a rule file with these groups."""
    return groups_text([_group(group) for group in groups])


def groups_text(groups: list[dict[str, Any]]) -> str:
    """Return the YAML of a rule file whose groups have these fields."""
    content = {"groups": groups}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _group(group: RuleGroup) -> dict[str, Any]:
    written: dict[str, Any] = {"name": group.name}
    if group.interval_seconds is not None:
        written["interval"] = show_duration(group.interval_seconds)
    if group.limit:
        written["limit"] = group.limit
    if group.query_offset_seconds:
        written["query_offset"] = show_duration(group.query_offset_seconds)
    return written | {"rules": [_rule(rule) for rule in group.rules]}


def _rule(rule: AlertRule | RecordingRule) -> dict[str, Any]:
    kind = "alert" if isinstance(rule, AlertRule) else "record"
    written: dict[str, Any] = {kind: rule.name, "expr": rule.expression.text}
    if not isinstance(rule, AlertRule):
        return written | ({"labels": dict(rule.labels)} if rule.labels else {})
    if rule.for_seconds:
        written["for"] = show_duration(rule.for_seconds)
    if rule.keep_firing_seconds:
        written["keep_firing_for"] = show_duration(rule.keep_firing_seconds)
    for field, templates in (("labels", rule.labels), ("annotations", rule.annotations)):
        if templates:
            written[field] = {name: template.text for name, template in templates}
    return written
