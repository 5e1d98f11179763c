"""Series in promtool's notation, stores filled with them, and promtool itself as the oracle."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmkg_otel.alerting.promql import EvaluationError, Expression
from llmkg_otel.alerting.samples import SampleStore
from llmkg_otel.alerting.series_text import Gap, parse_labels, parse_values
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.events import AlertChanged, Event
from support import promtool3

Labels = tuple[tuple[str, str], ...]
Vector = dict[Labels, float]
SeriesText = Sequence[tuple[str, str]]
Difference = tuple[str, float, Vector | str, Vector | str]
"""An expression, a time, their answer and ours."""

_GOT = re.compile(r'((?:[a-zA-Z_:][\w:]*)?\{(?:[^}"]|"(?:[^"\\]|\\.)*")*\}) ([-+]?[\w.+-]+)')

_ONE_FAILURE = re.compile(r"^ {4}(?:name|alertname|expr|rule): ", re.MULTILINE)
_CAUSE = re.compile(r" err: .*")  # each has its own words


def labels_of(text: str | None) -> Labels:
    """Read `name{a="b"}`."""
    return parse_labels(text or "")


def values_of(text: str) -> list[object]:
    """Read `0+10x5 _ stale NaN`: floats, None for a gap, Gap.STALE for a marker."""
    return [None if point is Gap.OMITTED else point for point in parse_values(text)]


def fill(store: SampleStore, series: SeriesText, interval: float, start: float = 0.0) -> float:
    """Append series in promtool's notation, one point every `interval`; return the time of the last."""
    points: dict[float, dict[Labels, object]] = defaultdict(dict)
    for name, values in series:
        for index, value in enumerate(values_of(values)):
            if value is not None:
                points[start + index * interval][labels_of(name)] = value
    for at in sorted(points):
        for key, value in points[at].items():
            named = dict(key)
            sample = [(named.pop("__name__", ""), named, value)] if isinstance(value, float) else []
            store.append(at, sample, source=str(key))
    return max(points, default=start)


def store_of(series: SeriesText, interval: float) -> SampleStore:
    """Return a store that holds these series from time 0 and forgets nothing."""
    store = SampleStore(retention_seconds=1e9, max_points=10**6)
    fill(store, series, interval)
    return store


def vector_of(samples: Iterable[tuple[Labels, float]]) -> Vector:
    """Return a vector for comparison; the same label set twice is a defect of whatever made it."""
    listed = list(samples)
    vector = dict(listed)
    assert len(vector) == len(listed)
    return vector


def answer(text: str, store: SampleStore, at: float, step: float = 60.0) -> Vector | str:
    """Return what an expression gives here: its vector, or the error that Prometheus, too, should report."""
    try:
        return vector_of(Expression(text).evaluate(store, at, step_seconds=step))
    except (EvaluationError, ConfigurationError) as error:
        return str(error)


def agree(left: Vector | str, right: Vector | str) -> bool:
    """Say whether two answers are the same vector, or both an error."""
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str)
    return same(left, right)


def differences(
    questions: Sequence[tuple[str, float]], theirs: Sequence[Vector | str], ours: Sequence[Vector | str]
) -> list[Difference]:
    """Return the questions that have not the same answer from both."""
    answers = zip(questions, theirs, ours, strict=True)
    return [(*asked, right, wrong) for asked, right, wrong in answers if not agree(right, wrong)]


def same(left: Vector, right: Vector, tolerance: float = 1e-9) -> bool:
    """Say whether two vectors have the same labels and, nearly, values; NaN equals NaN here."""
    return left.keys() == right.keys() and all(
        (math.isnan(value) and math.isnan(right[key]))
        or value == right[key]
        or math.isclose(value, right[key], rel_tol=tolerance, abs_tol=1e-12)
        for key, value in left.items()
    )


def failures(output: str) -> list[str]:
    """Return the reports of what failed, a blank line or the next report ending each."""
    text = re.sub(r"\n\s*\n", "\n", output)
    starts = [found.start() for found in _ONE_FAILURE.finditer(text)]
    if not starts:
        return []
    pieces = [text[start:end].rstrip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return [_CAUSE.sub("", piece) for piece in pieces]


@dataclass
class Recorder:
    """An observer that keeps what it is told."""

    events: list[AlertChanged] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        assert isinstance(event, AlertChanged)
        self.events.append(event)

    def names(self) -> list[tuple[str, bool]]:
        return [(event.alert, event.firing) for event in self.events]


def print_differences(compare: Callable[[Promtool, int], tuple[Sequence[Sequence[object]], int]]) -> None:
    """Compare with promtool 3.5 for as many seeds as the command line asks for: FIRST_SEED SEEDS."""
    oracle = Promtool(promtool3.find() or "", Path(tempfile.mkdtemp()))
    first, seeds = map(int, sys.argv[1:])
    for seed in range(first, first + seeds):
        for difference in compare(oracle, seed)[0]:
            print(seed, *difference, sep="\n  ")  # noqa: T201
    print(f"{seeds} seeds compared")  # noqa: T201


@dataclass(frozen=True)
class Promtool:
    """`promtool test rules` with expectations that never hold, so that it prints what it got."""

    path: str
    directory: Path

    @property
    def is_version_2(self) -> bool:
        done = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True)
        return "version 2." in done.stdout + done.stderr

    def run(self, tests: Sequence[Mapping[str, object]], interval: int, rules: str | None = None) -> str:
        if rules is not None:
            (self.directory / "rules.yaml").write_text(rules)
        files = ["rules.yaml"] if rules is not None else []
        body = {
            "rule_files": files,
            "evaluation_interval": f"{interval}s",
            "group_eval_order": re.findall(r"name: ([\w-]+)", rules or ""),  # else at random
            "tests": list(tests),
        }
        (self.directory / "test.yaml").write_text(json.dumps(body, ensure_ascii=False))  # JSON is YAML
        command = [self.path, "test", "rules", "test.yaml"]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def vectors(
        self,
        series: SeriesText,
        interval: int,
        questions: Sequence[tuple[str, int]],
        rules: str | None = None,
    ) -> list[Vector | str]:
        """Return each (expression, time)'s vector, or the error that promtool reports for it.

        `rules` is a rule file that is evaluated at every interval.
        """
        [answers] = self.vectors_of_each([(series, questions)], interval, rules)
        return answers

    def vectors_of_each(
        self,
        cases: Sequence[tuple[SeriesText, Sequence[tuple[str, int]]]],
        interval: int,
        rules: str | None = None,
    ) -> list[list[Vector | str]]:
        """Return the same for many sets of series at once, each with its own questions."""
        output = self.run([_test(series, interval, asked) for series, asked in cases], interval, rules)
        answers = iter(re.split(r"^    expr: ", output, flags=re.MULTILINE)[1:])
        found = []
        for _, questions in cases:
            texts = [next(answers, "") for _ in range(len(questions) + 1)]
            assert texts[-1], output
            found.append([_answer(text) for text in texts[:-1]])
        return found


def _test(series: SeriesText, interval: int, questions: Sequence[tuple[str, int]]) -> Mapping[str, object]:
    never = [{"labels": '{never="1"}', "value": 1}]
    last = max(at for _, at in questions) + 3600  # samples load only up to the last evaluation
    asked = [*questions, ("vector(0)", last)]
    return {
        "interval": f"{interval}s",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {"expr": expr, "eval_time": f"{at}s", "exp_samples": never} for expr, at in asked
        ],
    }


def _answer(text: str) -> Vector | str:
    _, found, got = text.partition("\n        got:")
    if not found:
        return text.partition("err: ")[2].strip() or text
    if got.strip().startswith("nil"):
        return {}
    pairs = [(labels_of(labels), float(value)) for labels, value in _GOT.findall(got)]
    return vector_of(pairs)
