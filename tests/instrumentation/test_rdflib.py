"""rdflib's lazy results: the span covers the iteration, and ends however that ends."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from rdflib import Dataset, Graph, Namespace
from rdflib.plugins.stores.memory import Memory
from support.stores import instrumented

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkg_otel.testing import CapturedTelemetry

EX = Namespace("http://example.org/")
SELECT = "SELECT ?s { ?s ?p ?o }"


@pytest.fixture(params=[False, True], ids=["observed", "protected"])
def telemetry(request: pytest.FixtureRequest) -> Iterator[CapturedTelemetry]:
    with instrumented(protect=request.param) as captured:
        yield captured


def filled(count: int, graph: Graph | None = None) -> Graph:
    graph = Graph() if graph is None else graph
    graph.addN((EX[f"s{n}"], EX.p, EX.o, graph) for n in range(count))
    return graph


def told(telemetry: CapturedTelemetry) -> list[tuple[str, object]]:
    attributes = [(span.name, span.attributes or {}) for span in telemetry.spans()]
    return [(name, a.get("error.type") or a.get("db.response.returned_rows")) for name, a in attributes]


def test_parsing_adds_triples_that_are_not_told_of_one_by_one(telemetry: CapturedTelemetry) -> None:
    graph = Graph().parse(data="<a:a> <b:b> <c:c>, <d:d>, <e:e> .", format="turtle")
    assert len(graph) == 3
    assert told(telemetry) == [("parse", None)]


def test_a_query_ends_when_its_rows_have_been_read(telemetry: CapturedTelemetry) -> None:
    result = filled(3).query(SELECT)
    assert told(telemetry) == []
    assert len(list(result)) == 3
    assert told(telemetry) == [("query", 3)]
    assert len(list(result)) == len(result) == 3
    assert len(told(telemetry)) == 1


def test_a_query_that_is_read_in_part_or_not_at_all_ends_when_it_is_dropped(
    telemetry: CapturedTelemetry,
) -> None:
    result: Any = filled(5).query(f"{SELECT} LIMIT 4")
    rows = iter(result)
    next(rows)
    del rows, result
    gc.collect()
    filled(5).query(SELECT)
    gc.collect()
    assert told(telemetry) == [("query", 1), ("query", 0)]


def test_answers_that_are_there_at_once_end_at_once(telemetry: CapturedTelemetry) -> None:
    graph = filled(2)
    assert graph.query("ASK { ?s ?p ?o }").askAnswer is True
    built = graph.query("CONSTRUCT { ?s ?p ?o } WHERE { ?s ?p ?o }").graph
    assert built is not None
    assert len(built) == 2
    assert told(telemetry) == [("query", None), ("query", None)]


def test_triples_are_counted_and_a_rest_that_nobody_reads_is_let_go(telemetry: CapturedTelemetry) -> None:
    graph = filled(3)
    assert len(list(graph.triples((None, None, None)))) == 3
    rows = graph.triples((None, None, None))
    next(rows)
    rows.close()
    assert told(telemetry) == [("triples", 3), ("triples", 1)]


@pytest.mark.filterwarnings("ignore:Dataset.default_context:DeprecationWarning")  # rdflib's own
def test_a_dataset_which_has_methods_of_its_own_is_told_of(telemetry: CapturedTelemetry) -> None:
    data: Any = Dataset()
    data.add((EX.s, EX.p, EX.o))
    data.parse(data="<a:a> <b:b> <c:c> .", format="nt")
    data.remove((EX.s, None, None))
    assert told(telemetry) == [("add", None), ("parse", None), ("remove", None)]


class Unreliable(Memory):
    """A store whose connection breaks so many times before it gives the first triple."""

    breaks = 0

    def triples(self, *args: Any, **kwargs: Any) -> Any:
        if self.breaks > 0:
            self.breaks -= 1
            raise ConnectionError("gone")
        return super().triples(*args, **kwargs)


def test_a_store_that_breaks_before_the_first_triple_is_asked_again_when_protected() -> None:
    store = Unreliable()
    graph = filled(2, Graph(store=store))
    with instrumented(protect=True) as telemetry:
        store.breaks = 2
        assert len(list(graph.triples((None, None, None)))) == 2
        assert [span.name for span in telemetry.spans("llmkg.attempt")] == ["llmkg.attempt"] * 2
        store.breaks = 1
        with pytest.raises(ConnectionError):
            list(graph.query(SELECT))
        assert told(telemetry)[-1] == ("query", "ConnectionError")


def test_a_query_that_cannot_be_parsed_is_the_callers_mistake() -> None:
    with instrumented(protect=True, circuit_breaker={"failure_threshold": 1}) as telemetry:
        for _ in range(3):
            with pytest.raises(Exception, match="Expected"):
                filled(1).query("SELECT nonsense")
        assert [kind for _, kind in told(telemetry)] == ["ParseException"] * 3
