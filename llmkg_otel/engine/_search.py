"""Full text search, and the fusion of two rankings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.engine._rows import items
from llmkg_otel.engine._schema import as_words
from llmkg_otel.engine.protocol import Fact, Hit, SearchMode

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from llmkg_otel.engine.embedding import Vectors

__all__ = ["Ranking", "fuse", "search", "search_text"]

Ranking = list[tuple[int, float]]
"""Item numbers and scores, best first; a score is higher for a better match."""

MAX_WORDS = 64
"""Words of a query that are looked at: FTS5 refuses an expression that is too deep."""

COMMON = 1000
"""Rows that hold a word before it counts as common: scoring takes 1 us a row, counting 0.25 us."""


def search_text(connection: sqlite3.Connection, query: str, limit: int) -> Ranking:
    """Rank by BM25 the items that hold a word of the query, without scoring all that common words match.

    With a rare word in the query, items without any rare word are left out; common words only order
    the rest (each rare word stands in the expression twice, which favours it). With common words
    alone, the items that hold all of them (or else any) are ranked, the oldest 1,000 or `limit`.
    A common word still costs 0.05 us for each item that holds it, which BM25 counts (measured).
    """
    counts = {word: _count(connection, word) for word in map(_quoted, _words(query))}
    known = [word for word, count in counts.items() if count]
    rare = " OR ".join(word for word in known if counts[word] <= COMMON)
    if not known:
        return []
    if not rare:
        scored = max(COMMON, limit)
        every = _match(connection, " AND ".join(known), limit, scored)
        return every or _match(connection, " OR ".join(known), limit, scored)
    if all(counts[word] <= COMMON for word in known):
        return _match(connection, rare, limit)
    return _match(connection, f"({rare}) AND ({' OR '.join(known)})", limit)


def _words(query: str) -> list[str]:
    return list(dict.fromkeys(query.split()))[:MAX_WORDS]


def _quoted(word: str) -> str:
    """Return the word as an FTS5 string, in which nothing is an operator, both as it is and parted."""
    forms = dict.fromkeys((word, as_words(word)))
    return "(" + " OR ".join('"' + form.replace('"', '""') + '"' for form in forms) + ")"


def _count(connection: sqlite3.Connection, word: str) -> int:
    """Count the items that hold a word, up to just above `COMMON`."""
    row = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM text_index WHERE text_index MATCH ? LIMIT ?)",
        (word, COMMON + 1),
    ).fetchone()
    return int(row[0])


def _match(connection: sqlite3.Connection, expression: str, limit: int, scored: int = -1) -> Ranking:
    """Return the best of the first `scored` matches; -1 scores all of them."""
    return connection.execute(
        "SELECT * FROM (SELECT rowid, -bm25(text_index) AS score FROM text_index"
        " WHERE text_index MATCH ? LIMIT ?) ORDER BY score DESC, rowid LIMIT ?",
        (expression, scored, limit),
    ).fetchall()


def fuse(rankings: Iterable[Sequence[tuple[int, float]]], limit: int, k: int = 60) -> Ranking:
    """Join rankings by reciprocal rank: each adds 1 / (k + rank) to an item's score.

    Source: Cormack, Clarke, Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
    Rank Learning Methods", SIGIR 2009, which found k = 60.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (item, _) in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + rank)
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]


def search(
    connection: sqlite3.Connection, query: str, limit: int, mode: SearchMode, vectors: Vectors | None
) -> list[Hit]:
    """Return the best facts and passages together; without vectors every mode is "text"."""
    query = query.encode(errors="replace").decode().replace("\0", " ")  # what SQLite can be asked
    done: SearchMode = mode if vectors else "text"
    if vectors is None or mode == "text":
        ranking = search_text(connection, query, limit)
    elif not query.strip():
        ranking = []
    elif mode == "vector":
        ranking = vectors.nearest(connection, query, limit)
    else:
        # Twice the depth: what is 12th in both may belong among the first ten of the two together.
        both = (search_text(connection, query, 2 * limit), vectors.nearest(connection, query, 2 * limit))
        ranking = fuse(both, limit)
    return _hits(connection, ranking, done)


def _hits(connection: sqlite3.Connection, ranking: Ranking, mode: SearchMode) -> list[Hit]:
    found = items(connection, [number for number, _ in ranking])
    hits = []
    for number, score in ranking:
        item = found[number]
        hits.append(Hit(score, mode, fact=item) if isinstance(item, Fact) else Hit(score, mode, passage=item))
    return hits
