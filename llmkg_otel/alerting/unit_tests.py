"""Unit tests of rules, run on the evaluator of this process; verdicts and reports are promtool's.

Source: Prometheus 3.5 `cmd/promtool/unittest.go`. What differs: a rule that is refused when loaded fails its
file once, and a query may read 2,000,000 samples where promtool stops at 10,000.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.formats import go_exponent, go_quote
from llmkg_otel.alerting.printed import show_duration, show_labels
from llmkg_otel.alerting.promql import EvaluationError, Expression
from llmkg_otel.alerting.promql.values import METRIC_NAME
from llmkg_otel.alerting.rules import load_rules
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.alerting.series_text import MAX_POINTS, Gap
from llmkg_otel.alerting.unit_test_file import ExpectedAlert
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmkg_otel.alerting.promql import Labels, Sample
    from llmkg_otel.alerting.rules import RuleGroup
    from llmkg_otel.alerting.unit_test_file import AlertCase, ExpressionCase, UnitTest, UnitTestFile
    from llmkg_otel.events import Event

__all__ = ["run_unit_tests"]

_FOREVER = 1e10


def run_unit_tests(file: UnitTestFile) -> list[str]:
    """Run every test of a file and return what failed, a report each, as promtool words it.

    Raises ConfigurationError for a rule file that is refused.
    """
    if not file.tests:
        return []
    loaded = [load_rules(path) for path in file.rule_files]
    # promtool evaluates all groups at each step, whatever their own interval is.
    groups = [replace(group, interval_seconds=None) for rules in loaded for group in rules.groups]
    groups.sort(key=lambda group: file.order.get(group.name, 0))
    return [failure for test in file.tests for failure in _run(test, groups, file)]


class _Unheard:
    """Nobody is told of the alerts of a test."""

    def on_event(self, event: Event) -> None:
        """Do nothing."""


def _run(test: UnitTest, groups: Sequence[RuleGroup], file: UnitTestFile) -> Iterator[str]:
    store = SampleStore(_FOREVER, MAX_POINTS)
    evaluator = AlertEvaluator(groups, store, _Unheard(), interval_seconds=file.interval)
    points = _points(test)
    waiting = sorted(test.alerts, key=lambda case: case.at)
    step = 0
    while (now := _rounded(step * file.interval)) <= test.last:
        while points and points[-1][0] <= now:
            _append(store, *points.pop())
        evaluator.evaluate(now)
        if failures := evaluator.errors():
            yield from (
                f"    rule: {each.rule}, time: {show_duration(now)}, err: {each.error}" for each in failures
            )
            return
        step += 1
        while waiting and waiting[0].at < _rounded(step * file.interval):
            yield from _check_alerts(test, waiting.pop(0), evaluator)
    for case in test.expressions:
        yield from _check_expression(case, store, file)


def _rounded(seconds: float) -> float:
    return round(seconds * 1000) / 1000


def _points(test: UnitTest) -> list[tuple[float, Labels, float | Gap]]:
    """Return the points of all series, the latest first."""
    points = [
        (_rounded(index * test.interval), labels, value)
        for labels, values in test.series.items()
        for index, value in enumerate(values)
        if value is not Gap.OMITTED
    ]
    return sorted(points, key=lambda point: point[0], reverse=True)


def _append(store: SampleStore, at: float, labels: Labels, value: float | Gap) -> None:
    named = dict(labels)
    name = named.pop(METRIC_NAME, "")
    # Each series is a collection of its own: one that is not there for a step is not stale.
    store.append(at, [] if isinstance(value, Gap) else [(name, named, value)], source=show_labels(labels))


def _check_alerts(test: UnitTest, case: AlertCase, evaluator: AlertEvaluator) -> Iterator[str]:
    got = [
        ExpectedAlert(alert.labels, alert.annotations)
        for alert in evaluator.active()
        if alert.alert == case.alert and alert.state == "firing"
    ]
    if _sorted(got) != _sorted(case.expected):
        name = f"    name: {test.name},\n" if test.name else ""
        yield (
            f"{name}    alertname: {case.alert}, time: {show_duration(case.at)}, \n"
            f"        exp:{_alerts(case.expected)}, \n        got:{_alerts(got)}"
        )


def _sorted(alerts: Sequence[ExpectedAlert]) -> list[ExpectedAlert]:
    return sorted(alerts, key=lambda alert: (alert.labels, alert.annotations))


def _alerts(alerts: Sequence[ExpectedAlert]) -> str:
    if not alerts:
        return "[]"
    margin = " " * 12
    shown = [
        f"{margin}{number}:\n{margin}  Labels:{show_labels(alert.labels)}\n"
        f"{margin}  Annotations:{show_labels(alert.annotations)}"
        for number, alert in enumerate(_sorted(alerts))
    ]
    return "[\n" + ",\n".join(shown) + f"\n{margin}]"


def _check_expression(case: ExpressionCase, store: SampleStore, file: UnitTestFile) -> Iterator[str]:
    asked = f"    expr: {go_quote(case.text)}, time: {show_duration(case.at)},"
    try:
        vector = Expression(case.text).evaluate(store, case.at, step_seconds=file.interval)
    except (ConfigurationError, EvaluationError) as error:
        yield f"{asked} err: {error}"
        return
    if case.problem is not None:
        yield f"{asked} err: {case.problem}"
        return
    got, expected = sorted(vector), sorted(case.expected)
    if not _equal(expected, got, fuzzy=file.fuzzy):
        yield f"{asked}\n        exp: {_samples(expected)}\n        got: {_samples(got)}"


def _equal(left: Sequence[Sample], right: Sequence[Sample], *, fuzzy: bool) -> bool:
    """Compare values exactly, or to one unit in the last place; NaN is never equal."""
    return len(left) == len(right) and all(
        one.labels == other.labels
        and (
            one.value == other.value
            or (fuzzy and other.value in (math.nextafter(one.value, end) for end in (-math.inf, math.inf)))
        )
        for one, other in zip(left, right, strict=True)
    )


def _samples(samples: Sequence[Sample]) -> str:
    shown = (f"{show_labels(sample.labels)} {go_exponent(sample.value)}" for sample in samples)
    return ", ".join(shown) or "nil"
