"""A program on rdflib, sync: parse, add, remove, query, update, serialize. Knows nothing of llmkg_otel."""

import json
import sys

from rdflib import Dataset, Graph, Literal, Namespace, URIRef

EX = Namespace("http://example.org/")
TURTLE = """
@prefix ex: <http://example.org/> .
ex:Paris ex:capitalOf ex:France ; ex:population 2102650 .
ex:Berlin ex:capitalOf ex:Germany ; ex:population 3755251 .
ex:Vienna ex:capitalOf ex:Austria .
"""


def main() -> dict[str, object]:
    graph = Graph()
    graph.parse(data=TURTLE, format="turtle")
    assert graph.add((EX.Rome, EX.capitalOf, EX.Italy)) is graph
    graph.remove((EX.Vienna, None, None))
    rows = graph.query("SELECT ?c ?l { ?c <http://example.org/capitalOf> ?l } ORDER BY ?c LIMIT 2")
    lazily = graph.query("SELECT ?c { ?c <http://example.org/capitalOf> ?l }")
    ask = graph.query("ASK { <http://example.org/Rome> ?p ?o }").askAnswer
    graph.update(
        "INSERT DATA { <http://example.org/Oslo> <http://example.org/capitalOf> <http://example.org/Norway> }"
    )
    found = sorted(str(s) for s, _, _ in graph.triples((None, EX.capitalOf, None)))
    first = next(iter(graph.triples((EX.Paris, EX.population, None))))
    bad = []
    for query in ("SELECT ?c { nonsense", "SELECT * { ?s ?p }"):
        try:
            graph.query(query)
        except Exception as error:  # noqa: BLE001
            bad.append(type(error).__name__)
    try:
        graph.add(("not", "a", "node"))
    except Exception as error:  # noqa: BLE001
        bad.append(repr(error))
    data = Dataset()
    data.add((EX.a, EX.b, Literal("c"), URIRef("http://example.org/g")))
    return {
        "rows": [[str(value) for value in row] for row in rows],
        "again": len(rows),
        "lazily": sorted(str(row.c) for row in lazily),
        "ask": ask,
        "found": found,
        "first": [str(part) for part in first],
        "bad": bad,
        "turtle": sorted(graph.serialize(format="nt").splitlines()),
        "quads": sorted(str(quad) for quad in data.quads((None, None, None, None))),
        "size": len(graph),
    }


json.dump(main(), sys.stdout, sort_keys=True)
