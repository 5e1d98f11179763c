"""Real engines with stub models: their programs give the same results bare, instrumented and protected."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support.engines_venv import QUICK, bare, needs_engines, run

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from llmkg_otel.testing.records import Attributes, Point

pytestmark = [needs_engines, pytest.mark.timeout(200)]

RDFLIB = Counter(parse=1, add=3, remove=1, query=5, update=1, triples=2, serialize=1)
LIGHTRAG = Counter(
    insert_custom_kg=1,
    create_entity=2,
    create_relation=1,
    insert=1,
    get_knowledge_graph=1,
    query_data=1,
    query=4,
    query_llm=1,
)
LIGHTRAG_SYNC = Counter(insert_custom_kg=1, create_entity=1, query_data=1, query=4, query_llm=1)
GRAPHITI = Counter(
    add_episode=2,
    add_episode_bulk=1,
    add_triplet=1,
    retrieve_episodes=2,
    build_communities=1,
    search=4,
    search_=1,
    remove_episode=1,
)
EMBEDDED = Counter(store_facts=1, store_passage=1, find_facts=1, search=1, neighbours=1, stats=1)
PROGRAMS = [
    ("embedded_app.py", "embedded", "sqlite", EMBEDDED),
    ("rdflib_app.py", "rdflib", "rdflib", RDFLIB),
    ("lightrag_app.py async", "lightrag", "lightrag", LIGHTRAG),
    ("lightrag_app.py sync", "lightrag", "lightrag", LIGHTRAG_SYNC),
    ("graphiti_app.py", "graphiti", "graphiti", GRAPHITI),
]


def counts(points: dict[Attributes, Point], key: str) -> Counter[str]:
    """Return how many were recorded for each value of an attribute, whatever became of them."""
    counted: Counter[str] = Counter()
    for attributes, point in points.items():
        counted[str(dict(attributes)[key])] += point.count
    return counted


@pytest.mark.parametrize(("app", "engine", "system", "operations"), PROGRAMS)
@pytest.mark.parametrize("protect", ["false", "true"])
def test_an_engines_program_gives_the_same_and_each_operation_is_told_of_once(
    app: str, engine: str, system: str, operations: Counter[str], protect: str
) -> None:
    with OtlpReceiver() as receiver:
        assert run(app, {**QUICK, **receiver.environment(), "LLMKG_PROTECT": protect}) == bare(app)
        spans = receiver.spans(scope="llmkg_otel", kind="CLIENT")
        durations = receiver.metric("db.client.operation.duration")
        protected = counts(receiver.metric("llmkg.operation.duration"), "llmkg.operation.name")
    assert Counter(span.name for span in spans) == operations
    assert counts(durations, "db.operation.name") == operations
    assert counts(durations, "db.system.name") == {system: operations.total()}
    named = {f"{engine}_{name}": count for name, count in operations.items()}
    assert protected == (named if protect == "true" else {})
    words = ("Paris", "Ada", "capital")
    assert not any(word in str(span.attributes) for span in spans for word in words)


@pytest.mark.parametrize(
    ("app", "key"),
    [("lightrag_app.py async", "answers"), ("lightrag_app.py sync", "answers"), ("graphiti_app.py", "found")],
)
def test_a_model_that_fails_is_asked_again_and_the_program_never_knows(app: str, key: str) -> None:
    assert bare(f"{app} 2")[key] != bare(app)[key]
    with OtlpReceiver() as receiver:
        told = run(f"{app} 2", {**QUICK, **receiver.environment(), "LLMKG_PROTECT": "true"})
        attempts = receiver.spans("llmkg.attempt")
        retried = receiver.metric("llmkg.retry.calls")
    assert told == bare(app)
    assert len(attempts) == 2
    assert sum(point.value for each, point in retried.items() if ("outcome", "recovered") in each) == 1


@pytest.mark.parametrize(
    ("app", "key", "failure"),
    [
        ("lightrag_app.py async", "answers", None),
        ("graphiti_app.py", "found", "ConnectionError: the embedder is not there"),
    ],
)
def test_a_model_that_is_gone_opens_the_circuit(app: str, key: str, failure: Any) -> None:
    policies = {"LLMKG_CIRCUIT_BREAKER__FAILURE_THRESHOLD": "2", "LLMKG_RETRY__MAX_RETRIES": "0"}
    with OtlpReceiver() as receiver:
        told = run(f"{app} 2", {**policies, **receiver.environment(), "LLMKG_PROTECT": "true"})
        durations = receiver.metric("llmkg.operation.duration")
        states = receiver.metric("llmkg.circuit_breaker.status")
    answers = told[key]
    assert answers[:2] == [failure, failure]
    assert all(str(answer).startswith("CircuitOpenError") for answer in answers[2:])
    kinds = [dict(attributes).get("error.type") for attributes in durations]
    assert kinds.count("circuit_open") == 1
    assert 1 in [point.value for each, point in states.items() if ("state", "open") in each]
