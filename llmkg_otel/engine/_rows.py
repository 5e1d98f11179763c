"""The statements: what each operation does with a connection."""

# ruff: noqa: S608 - statements are put together from the constants here; values are always bound
from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkg_otel.engine.protocol import CapacityExceededError, Fact, Passage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

__all__ = [
    "CHUNK",
    "Newest",
    "fact_id",
    "fact_item",
    "find_facts",
    "index_text",
    "items",
    "neighbours",
    "newest",
    "passage_id",
    "passage_item",
    "store_facts",
    "store_passage",
    "store_vectors",
]

CHUNK = 100
"""Rows in one statement. Each step of a statement gives up the interpreter lock and must win it back
(up to 5 ms under a busy thread), so a row of its own for each would make a batch crawl under load."""


class Newest(NamedTuple):
    """The largest ids, which are also the counts."""

    facts: int
    passages: int
    nodes: int


def fact_id(subject: str, predicate: str, obj: str) -> str:
    """Return the id of a triple, the same in every file; no part can hold the separator."""
    return "fact-" + _digest(subject, predicate, obj)


def passage_id(title: str, text: str) -> str:
    """Return the id of a passage, the same in every file."""
    return "passage-" + _digest(title, text)


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def newest(connection: sqlite3.Connection) -> Newest:
    """Return the counts, in time that does not grow with them."""
    row = connection.execute(
        "SELECT (SELECT coalesce(max(id), 0) FROM fact), (SELECT coalesce(max(id), 0) FROM passage),"
        " (SELECT coalesce(max(id), 0) FROM node)"
    ).fetchone()
    return Newest(*row)


def store_facts(connection: sqlite3.Connection, facts: Sequence[Fact], max_nodes: int) -> None:
    """Upsert facts; raise CapacityExceededError when that takes more nodes than there may be."""
    before = newest(connection).nodes
    for chunk in _chunks(facts):
        names = [(name,) for fact in chunk for name in (fact.subject, fact.object)]
        _insert(connection, "INSERT INTO node (name) {rows} ON CONFLICT DO NOTHING", names)
    after = newest(connection).nodes
    if before < after > max_nodes:
        raise CapacityExceededError(
            f"max_nodes is {max_nodes} and {before} are used: these facts need {after - before} more"
        )
    for chunk in _chunks(facts):
        _insert(
            connection,
            "INSERT INTO fact (subject, predicate, object, confidence)"
            " SELECT s.id, v.column2, o.id, v.column4 FROM ({rows}) v"
            " CROSS JOIN node s ON s.name = v.column1 CROSS JOIN node o ON o.name = v.column3 WHERE true"
            " ON CONFLICT (subject, predicate, object) DO UPDATE SET confidence = excluded.confidence",
            [(fact.subject, fact.predicate, fact.object, fact.confidence) for fact in chunk],
        )


def _chunks(facts: Sequence[Fact]) -> Iterable[Sequence[Fact]]:
    return (facts[start : start + CHUNK] for start in range(0, len(facts), CHUNK))


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    row = f"({', '.join('?' * len(rows[0]))})"
    values = "VALUES " + ", ".join([row] * len(rows))
    connection.execute(statement.format(rows=values), [value for each in rows for value in each])


def store_passage(connection: sqlite3.Connection, passage: Passage) -> None:
    """Upsert a passage: the same text under the same title only changes its source."""
    connection.execute(
        "INSERT INTO passage (key, title, text, source) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET source = excluded.source",
        (passage_id(passage.title, passage.text), passage.title, passage.text, passage.source),
    )


def index_text(connection: sqlite3.Connection, before: Newest) -> None:
    """Add everything stored since `before` to the text index; an upsert never changes a row's text."""
    now = newest(connection)
    if now.facts > before.facts:
        connection.execute(
            "INSERT INTO text_index (rowid, text)"
            " SELECT 2 * id, fact_text(subject, predicate, object) FROM triple WHERE id > ?",
            (before.facts,),
        )
    if now.passages > before.passages:
        connection.execute(
            "INSERT INTO text_index (rowid, text)"
            " SELECT 2 * id + 1, title || ' ' || text FROM passage WHERE id > ?",
            (before.passages,),
        )


def fact_item(connection: sqlite3.Connection, fact: Fact) -> int:
    """Return the item number of a stored fact."""
    row = connection.execute(
        "SELECT 2 * id FROM fact WHERE subject = (SELECT id FROM node WHERE name = ?) AND predicate = ?"
        " AND object = (SELECT id FROM node WHERE name = ?)",
        (fact.subject, fact.predicate, fact.object),
    ).fetchone()
    return int(row[0])


def passage_item(connection: sqlite3.Connection, passage: Passage) -> int:
    """Return the item number of a stored passage."""
    key = passage_id(passage.title, passage.text)
    return int(connection.execute("SELECT 2 * id + 1 FROM passage WHERE key = ?", (key,)).fetchone()[0])


def store_vectors(connection: sqlite3.Connection, numbers: Iterable[int], vectors: Iterable[bytes]) -> None:
    """Keep the vector of each item that has none yet."""
    connection.executemany(
        "INSERT INTO vector (item, value) VALUES (?, ?) ON CONFLICT DO NOTHING",
        zip(numbers, vectors, strict=True),
    )


_PART = {
    "subject": "subject_id = (SELECT id FROM node WHERE name = ?)",
    "predicate": "predicate = ?",
    "object": "object_id = (SELECT id FROM node WHERE name = ?)",
}


def find_facts(
    connection: sqlite3.Connection, parts: dict[str, str], limit: int, min_confidence: float
) -> list[Fact]:
    """Return facts whose parts are the given ones, most confident first, then oldest first."""
    where = " AND ".join([*(_PART[part] for part in parts), "confidence >= ?"])
    rows = connection.execute(
        f"SELECT * FROM triple WHERE {where} ORDER BY confidence DESC, id LIMIT ?",
        (*parts.values(), min_confidence, limit),
    )
    return [_fact(row) for row in rows]


def _fact(row: tuple[Any, ...]) -> Fact:
    _, subject, predicate, obj, confidence, *_ = row
    return Fact(subject, predicate, obj, confidence, fact_id(subject, predicate, obj))


_EDGES = """
SELECT e.id FROM json_each(:frontier) n CROSS JOIN fact e WHERE e.id IN (
    SELECT id FROM fact WHERE {end} = n.value AND id NOT IN (SELECT value FROM json_each(:found))
    ORDER BY confidence DESC, id LIMIT :room
)
"""

_HOP = f"""
SELECT * FROM triple WHERE id IN ({_EDGES.format(end="subject")} UNION ALL {_EDGES.format(end="object")})
ORDER BY confidence DESC, id LIMIT :room
"""


def neighbours(connection: sqlite3.Connection, entity: str, max_hops: int, limit: int) -> list[Fact]:
    """Return facts around an entity, nearest first, then most confident first.

    One statement a hop, which takes from each node of the frontier at most as many facts as there
    is room for: a hub costs what is asked of it, whatever its degree.
    """
    start = connection.execute("SELECT id FROM node WHERE name = ?", (entity,)).fetchone()
    facts: dict[int, Fact] = {}
    seen: set[int] = set()
    frontier: set[int] = set(start or ())
    for _ in range(max_hops):
        room = limit - len(facts)
        if not frontier or not room:
            break
        parameters = {
            "frontier": json.dumps(sorted(frontier)),
            "found": json.dumps(list(facts)),
            "room": room,
        }
        rows = connection.execute(_HOP, parameters).fetchall()
        facts |= {row[0]: _fact(row) for row in rows}
        seen |= frontier
        frontier = {end for row in rows for end in row[5:]} - seen
    return list(facts.values())


def items(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, Fact | Passage]:
    """Return the facts and passages behind item numbers."""
    found: dict[int, Fact | Passage] = {}
    facts = json.dumps([number // 2 for number in numbers if number % 2 == 0])
    for row in connection.execute(
        "SELECT * FROM triple WHERE id IN (SELECT value FROM json_each(?))", (facts,)
    ):
        found[2 * row[0]] = _fact(row)
    passages = json.dumps([number // 2 for number in numbers if number % 2])
    for number, *parts in connection.execute(
        "SELECT id, text, title, source, key FROM passage WHERE id IN (SELECT value FROM json_each(?))",
        (passages,),
    ):
        found[2 * number + 1] = Passage(*parts)
    return found
