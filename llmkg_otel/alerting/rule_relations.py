"""What rules have to do with each other, and with the samples that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from llmkg_otel.alerting.promql import Traits
    from llmkg_otel.alerting.rules import RecordingRule, RuleGroup

__all__ = ["fill_times", "interval_warnings", "rule_warnings"]


def rule_warnings(groups: Sequence[RuleGroup], retention_seconds: float | None) -> Iterator[str]:
    """Give a sentence, with file and line, for what Prometheus takes and is not what its writer thinks.

    Rules that look back further than `retention_seconds` (None: not checked), rules of a group with one
    name and the same labels, and recorded metrics that are made of themselves.
    """
    for group in groups:
        yield from _too_short(group, retention_seconds)
        yield from _twice(group)
    yield from _cycles(groups)


def interval_warnings(groups: Sequence[RuleGroup], interval_seconds: float | None) -> Iterator[str]:
    """Give a sentence for each group that cannot be evaluated at its own interval (None: not checked)."""
    for group in groups:
        own = group.interval_seconds
        if (
            interval_seconds is not None
            and own is not None
            and round(own * 1000) % round(interval_seconds * 1000)
        ):
            yield (
                f"{group.file}: group {group.name} has an interval of {own:g} s, but rules are evaluated "
                f"every {interval_seconds:g} s: it is at the first of these at which it is due"
            )


def _too_short(group: RuleGroup, retention_seconds: float | None) -> Iterator[str]:
    for rule in group.rules:
        lookback = rule.expression.lookback_seconds + group.query_offset_seconds
        if retention_seconds is not None and lookback > retention_seconds:
            yield (
                f"{group.file}:{rule.line}: rule {rule.name} looks back {lookback:g} s, but samples are kept "
                f"for {retention_seconds:g} s: it sees less than it asks for"
            )


def _twice(group: RuleGroup) -> Iterator[str]:
    lines: dict[object, int] = {}
    for rule in group.rules:
        labels = sorted((name, getattr(value, "text", value)) for name, value in rule.labels)
        key = type(rule).__name__, rule.name, tuple(labels)
        if key in lines:
            yield (
                f"{group.file}:{rule.line}: rule {rule.name} has the name and the labels of the one on line "
                f"{lines[key]}: where both yield the same series, only the first one's is kept"
            )
        lines.setdefault(key, rule.line)


def _cycles(groups: Sequence[RuleGroup]) -> Iterator[str]:
    """Prometheus evaluates them too, with what was recorded at the evaluation before."""
    reads = _recorded_reads(groups)
    told: set[str] = set()
    for group in groups:
        for rule in group.rules:
            if rule.name not in reads or rule.name in told:
                continue
            around = sorted(
                name for name in _reachable(reads, rule.name) if rule.name in _reachable(reads, name)
            )
            if around:
                told.update(around)
                yield (
                    f"{group.file}:{rule.line}: recorded metrics are made of themselves: "
                    f"{', '.join(around)}; each evaluation sees values of the one before"
                )


def _recorded_reads(groups: Sequence[RuleGroup]) -> dict[str, set[str]]:
    """Return which recorded metrics each recorded metric is made of."""
    reads: dict[str, set[str]] = {rule.name: set() for _, rule in _recording(groups)}
    for _, rule in _recording(groups):
        reads[rule.name] |= (rule.expression.reads or frozenset()) & reads.keys()
    return reads


def _recording(groups: Sequence[RuleGroup]) -> list[tuple[RuleGroup, RecordingRule]]:
    from llmkg_otel.alerting.rules import RecordingRule  # noqa: PLC0415 - it warns of what this finds

    return [(group, rule) for group in groups for rule in group.rules if isinstance(rule, RecordingRule)]


def _reachable(reads: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(reads[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += reads[name]
    return found


def fill_times(
    groups: Sequence[RuleGroup], at_most: float, interval_seconds: float
) -> Callable[[RuleGroup, Traits], float]:
    """Return a function: how many seconds after a start an expression of a group has all samples it needs.

    That is an interval at least, since at the first collection not everything has been measured; and what
    it reads recorded has to be filled first, and recorded once more. `at_most` is how long samples are kept.
    """
    filled: dict[str, float] = {}

    def seconds(group: RuleGroup, traits: Traits) -> float:
        names = filled.keys() if traits.reads is None else traits.reads
        own = traits.fill / 1000 + group.query_offset_seconds
        whole = own + max((filled.get(name, 0.0) for name in names), default=0.0)
        return min(at_most, max(interval_seconds, whole))

    recording = _recording(groups)
    before: dict[str, float] = {}
    for _ in range(len(recording) + 1):
        before = dict(filled)
        for group, rule in recording:
            once_more = group.interval_seconds or interval_seconds
            whole = seconds(group, rule.expression.traits) + once_more
            filled[rule.name] = max(filled.get(rule.name, 0.0), min(at_most, whole))
    made_of_themselves = {name for name, value in filled.items() if value != before.get(name)}
    filled |= dict.fromkeys(made_of_themselves, at_most)
    return seconds
