"""Prometheus' own test cases, each of which promtool 3.5.3 has confirmed, and public alert expressions."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.matching_series import series_for
from support.prometheus import Promtool, agree, answer, labels_of, same, store_of, values_of, vector_of

from llmkg_otel.alerting.promql import Expression
from llmkg_otel.errors import ConfigurationError

SHARED = Path(__file__).parents[3] / "shared" / "alerts"
CASES = SHARED / "upstream-cases.jsonl"
EXPRESSIONS = SHARED / "expressions.jsonl"
SUPPORTED_CASES = 297
SUPPORTED_EXPRESSIONS = 1040
SECONDS = {"s": 1, "m": 60, "h": 3600}


def lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        pytest.skip(f"{path} is not here: it is kept outside the repository")
    return [json.loads(line) for line in path.read_text().splitlines()]


def seconds(interval: str) -> int:
    return int(interval[:-1]) * SECONDS[interval[-1]]


def test_every_upstream_case_gives_prometheus_answer_or_is_refused_when_loaded() -> None:
    cases = lines(CASES)
    passed, refused, wrong = 0, [], []
    for case in cases:
        try:
            expression = Expression(case["expr"])
        except ConfigurationError as error:
            refused.append(str(error))
            continue
        # A series that one file loads twice is overwritten: the last definition counts.
        loads = {
            name: (text, seconds(load["interval"])) for load in case["loads"] for name, text in load["series"]
        }
        store = store_of([], 1.0)
        points: dict[float, list[tuple[str, Any]]] = {}
        for name, (text, step) in loads.items():
            for index, value in enumerate(values_of(text)):
                points.setdefault(index * step, []).append((name, value))
        for at in sorted(points):
            for name, value in points[at]:
                named = dict(labels_of(name))
                sample = [(named.pop("__name__", ""), named, value)] if isinstance(value, float) else []
                if value is not None:
                    store.append(float(at), sample, source=name)
        got = vector_of(expression.evaluate(store, case["at_ms"] / 1000))
        expected = vector_of((labels_of(labels), value) for labels, value in case["result"])
        if same(got, expected, 1e-6):  # the upstream runner's own tolerance
            passed += 1
        else:
            wrong.append((case["file"], case["line"], case["expr"], expected, got))
    assert not wrong
    assert passed + len(refused) == len(cases)
    assert passed == SUPPORTED_CASES, refused


def test_public_alert_expressions_load_or_are_refused_as_not_supported() -> None:
    expressions = [line["expr"] for line in lines(EXPRESSIONS)]
    refused = []
    for text in expressions:
        try:
            assert Expression(text).lookback_seconds >= 0
        except ConfigurationError as error:
            refused.append(str(error))
    assert all(reason.startswith("not supported: ") for reason in refused)
    assert len(expressions) - len(refused) == SUPPORTED_EXPRESSIONS, refused


def test_public_alert_expressions_have_the_same_vectors_as_in_promtool(promtool3: Promtool) -> None:
    random_ = random.Random(1)
    expressions = [line["expr"] for line in lines(EXPRESSIONS)]
    cases = []
    for group in (expressions[at : at + 10] for at in range(0, len(expressions), 10)):
        merged = {name: values for text in group for name, values in series_for(text, random_)}
        cases.append((list(merged.items()), [(text, at) for text in group for at in (600, 3001, 5940)]))
    theirs = promtool3.vectors_of_each(cases, 60)
    different, vectors = [], 0
    for (series, questions), expected in zip(cases, theirs, strict=True):
        store = store_of(series, 60)
        for (text, at), vector in zip(questions, expected, strict=True):
            vectors += bool(vector) and not isinstance(vector, str)
            if not agree(vector, got := answer(text, store, at)):
                different.append((text, at, vector, got))
    assert different == []
    assert vectors > len(expressions)
