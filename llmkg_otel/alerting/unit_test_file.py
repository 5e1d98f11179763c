"""promtool's unit-test files: read and checked, with the line in every message.

Source: Prometheus 3.5 `cmd/promtool/unittest.go`, the types with yaml tags.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql import Sample
from llmkg_otel.alerting.rule_yaml import Field, Fields, read_yaml
from llmkg_otel.alerting.series_text import MAX_POINTS, Point, parse_labels, parse_values
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from llmkg_otel.alerting.promql import Labels

__all__ = ["AlertCase", "ExpectedAlert", "ExpressionCase", "UnitTest", "UnitTestFile", "load_unit_tests"]


@dataclass(frozen=True, slots=True)
class ExpectedAlert:
    """A firing alert's labels, `alertname` among them, and annotations: all of them, empty ones too."""

    labels: Labels
    annotations: Labels


@dataclass(frozen=True, slots=True)
class AlertCase:
    """Which alerts of one name fire at a time, in seconds."""

    at: float
    alert: str
    expected: tuple[ExpectedAlert, ...]


@dataclass(frozen=True, slots=True)
class ExpressionCase:
    """What an expression yields at a time, in seconds. `problem` says what is wrong with the expectation."""

    at: float
    text: str
    expected: tuple[Sample, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class UnitTest:
    """Series, a point of each every `interval` seconds from 0, and what must be true on them."""

    name: str
    interval: float
    series: dict[Labels, list[Point]]
    alerts: tuple[AlertCase, ...]
    expressions: tuple[ExpressionCase, ...]

    @property
    def last(self) -> float:
        """The last time that anything is asked about, in seconds."""
        times = [*(case.at for case in self.alerts), *(case.at for case in self.expressions)]
        return max(times, default=0.0)


@dataclass(frozen=True, slots=True)
class UnitTestFile:
    """A file of tests; `unmatched` are the patterns of `rule_files` that match no file.

    All groups are evaluated every `interval` seconds, in `order` as far as that says. `fuzzy` lets values
    be one unit in the last place apart.
    """

    rule_files: tuple[Path, ...]
    unmatched: tuple[str, ...]
    interval: float
    order: dict[str, int]
    fuzzy: bool
    tests: tuple[UnitTest, ...]


def load_unit_tests(path: Path) -> UnitTestFile:
    """Read a file; raise ConfigurationError with file and line for what promtool, too, refuses.

    `external_labels` and `external_url` are read and change nothing: they only exist in templates, and a
    rule whose template reads them is refused when it is loaded.
    """
    try:
        root = read_yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    known = {"rule_files", "evaluation_interval", "group_eval_order", "tests", "fuzzy_compare"}
    fields = Fields() if root is None else root.mapping("a file of unit tests", known)
    interval = fields.duration("evaluation_interval") or 60.0
    order = [item.text("a group's name") for item in fields.sequence("group_eval_order")]
    if repeated := next((name for name in order if order.count(name) > 1), None):
        fields["group_eval_order"].fail(f"group name repeated in evaluation order: {repeated}")
    patterns = [item.text("a rule file") for item in fields.sequence("rule_files")]
    found = {pattern: sorted(_matching(path.parent, pattern)) for pattern in patterns}
    return UnitTestFile(
        tuple(Path(file) for files in found.values() for file in files),
        tuple(pattern for pattern, files in found.items() if not files),
        interval,
        {name: position for position, name in enumerate(order)},
        fuzzy="fuzzy_compare" in fields and _truth(fields["fuzzy_compare"]),
        tests=tuple(_test(item, interval) for item in fields.sequence("tests")),
    )


def _matching(directory: Path, pattern: str) -> list[str]:
    return glob.glob(str(directory / pattern), include_hidden=True)  # noqa: PTH207 - it may be absolute


def _truth(item: Field) -> bool:
    text = item.text("fuzzy_compare").lower()
    if text not in ("true", "false", "yes", "no", "on", "off", "y", "n"):
        item.fail(f"fuzzy_compare: {text!r} is neither true nor false")
    return text in ("true", "yes", "on", "y")


def _test(item: Field, interval: float) -> UnitTest:
    fields = item.mapping(
        "a test",
        {
            *("name", "interval", "input_series", "alert_rule_test", "promql_expr_test"),
            *("external_labels", "external_url"),
        },
    )
    _pairs(fields, "external_labels")
    fields.text("external_url")
    test = UnitTest(
        fields.text("name"),
        fields.duration("interval") or interval,
        _series(fields),
        tuple(_alert_case(case) for case in fields.sequence("alert_rule_test")),
        tuple(_expression_case(case) for case in fields.sequence("promql_expr_test")),
    )
    if test.last / interval > MAX_POINTS:
        item.fail(f"a test of more than {MAX_POINTS:,} evaluations: the last eval_time / evaluation_interval")
    return test


def _series(fields: Fields) -> dict[Labels, list[Point]]:
    found: dict[Labels, list[Point]] = {}
    for item in fields.sequence("input_series"):
        given = item.mapping("an input series", {"series", "values"})
        if not (series := given.text("series").strip()):
            item.fail("an input series needs a series")
        labels = item.checked(partial(parse_labels, series))
        found[labels] = item.checked(partial(parse_values, given.text("values")))
        if sum(map(len, found.values())) > MAX_POINTS:
            item.fail(f"the series of a test have more than {MAX_POINTS:,} points")
    return found


def _pairs(fields: Fields, key: str) -> dict[str, str]:
    return {name: item.text(name) for name, item in fields.texts(key).items()}


def _alert_case(item: Field) -> AlertCase:
    fields = item.mapping("an alert_rule_test", {"eval_time", "alertname", "exp_alerts"})
    name = fields.text("alertname")
    if not name:
        item.fail("an item under alert_rule_test misses required attribute alertname")
    expected = []
    for alert in fields.sequence("exp_alerts"):
        given = alert.mapping("an expected alert", {"exp_labels", "exp_annotations"})
        labels = _pairs(given, "exp_labels") | {"alertname": name}
        annotations = _pairs(given, "exp_annotations")
        expected.append(ExpectedAlert(tuple(sorted(labels.items())), tuple(sorted(annotations.items()))))
    return AlertCase(fields.duration("eval_time"), name, tuple(expected))


def _expression_case(item: Field) -> ExpressionCase:
    fields = item.mapping("a promql_expr_test", {"expr", "eval_time", "exp_samples"})
    expected: list[Sample] = []
    problem = None
    for sample in fields.sequence("exp_samples"):
        given = sample.mapping("an expected sample", {"labels", "value", "histogram"})
        if given.text("histogram"):
            problem = problem or "native histograms are not supported"
        labels = given.text("labels")
        value = _number(given["value"]) if "value" in given else 0.0
        try:
            expected.append(Sample(parse_labels(labels), value))
        except ConfigurationError as error:
            problem = problem or f"labels {labels!r}: {error}"
    return ExpressionCase(fields.duration("eval_time"), fields.text("expr"), tuple(expected), problem)


def _number(item: Field) -> float:
    text = item.text("value").replace("_", "").lower()
    if text.lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    try:
        return float(int(text, 0)) if re.match(r"[-+]?0[xbo]", text) else float(text)
    except ValueError:
        item.fail(f"value: {text!r} is no number")
