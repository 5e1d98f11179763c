"""The default knowledge engine: one file on the standard library's SQLite, nothing to install."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from llmkg_otel.engine import _rows
from llmkg_otel.engine._checks import (
    checked_facts,
    checked_mode,
    checked_number,
    checked_option,
    checked_passage,
    checked_query,
    checked_text,
)
from llmkg_otel.engine._files import copy_into, size_on_disk, touch
from llmkg_otel.engine._lanes import EngineBusyError, Lane, read, write
from llmkg_otel.engine._schema import SCHEMA_VERSION, fact_text, prepare
from llmkg_otel.engine._search import search
from llmkg_otel.engine.embedding import Embedder, Vectors
from llmkg_otel.engine.protocol import EngineStats, Fact, Hit, Passage, SearchMode
from llmkg_otel.errors import ConfigurationError, LlmkgOtelError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = ["EmbeddedKnowledgeEngine", "EngineBusyError", "EngineClosedError"]

T = TypeVar("T")

READERS = 4
"""Threads that read: more than the cores help little, but a slow search must leave one for a look-up."""

MAX_LIMIT = 100_000


class EngineClosedError(LlmkgOtelError):
    """The engine was closed; the call did not reach it."""

    reason = "engine_closed"
    blames_engine = True


class EmbeddedKnowledgeEngine:
    """Keep facts and passages in one SQLite file: durable, searchable, in this process.

    Made anywhere, also outside a loop; the file is created or checked at once, threads start at the
    first call. Use it from one event loop, from any number of tasks; close it with `aclose` or
    `async with`. A process that does not still ends, and keeps every write that returned.

    Arguments: `path`, a file in an existing directory; `embedding_dim`, the length of the vectors
    that `embedder` returns, 1 to 65,536; `max_nodes`, how many distinct subjects and objects may be
    stored, 1 or more; `embedder`, an object with `embed(texts)`, or None for text search alone.

    Raises ConfigurationError for an argument that cannot work: a directory that is missing, a file
    that cannot be written, is not SQLite, or was made by another program or a newer release.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        embedding_dim: int = 768,
        max_nodes: int = 1_000_000,
        *,
        embedder: Embedder | None = None,
    ) -> None:
        if not os.fspath(path) or os.fspath(path) == ":memory:":
            raise ConfigurationError(f"path is {os.fspath(path)!r}: must name a file")
        self._path = Path(path).absolute()
        self._max_nodes = checked_option("max_nodes", max_nodes, 2**62)
        dimensions = checked_option("embedding_dim", embedding_dim, 65_536)
        self._vectors = Vectors(embedder, dimensions) if embedder else None
        prepare(self._path, dimensions if embedder else None)
        self._writer = Lane("llmkg-writer", self._path, write, 1)
        self._readers = Lane("llmkg-reader", self._path, read, READERS)
        self._closed = False

    @property
    def name(self) -> str:
        """The value of `db.system.name` in telemetry."""
        return "sqlite"

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    @property
    def schema_version(self) -> int:
        """The version of the file's tables, which a checkpoint's manifest tells."""
        return SCHEMA_VERSION

    @property
    def capabilities(self) -> frozenset[str]:
        """What this engine can do; vector and hybrid only with an embedder."""
        return frozenset({"text", "backup", "interrupt"} | ({"vector", "hybrid"} if self._vectors else set()))

    async def store_facts(self, facts: Sequence[Fact]) -> list[str]:
        """Store all facts or none; return their ids in order, after the commit is on disk.

        An upsert: a triple that exists keeps its id and takes the new confidence; of two in one
        call the last counts. Calls under way at the same time share one fsync.
        Raises InvalidInputError for a malformed fact, CapacityExceededError when `max_nodes` leaves
        no room (facts among known nodes are still accepted), EngineBusyError when another process
        holds the file: nothing was stored in any of these.
        """
        prepared = partial(self._prepare, facts)
        # Checking takes 3 to 5 us a fact, and embedding a model's time: neither belongs on the loop.
        slow = self._vectors is not None or len(facts) > _rows.CHUNK
        rows, ids, vectors = await self._read(lambda _: prepared()) if slow else prepared()
        if rows:
            await self._write(partial(self._store_facts, rows, vectors), len(rows))
        return ids

    def _prepare(self, facts: Sequence[Fact]) -> tuple[list[Fact], list[str], list[bytes]]:
        rows = checked_facts(facts)
        ids = [_rows.fact_id(row.subject, row.predicate, row.object) for row in rows]
        return rows, ids, self._embed([fact_text(row.subject, row.predicate, row.object) for row in rows])

    def _embed(self, texts: list[str]) -> list[bytes]:
        if self._vectors is None or not texts:
            return []
        return [vector.astype("<f4").tobytes() for vector in self._vectors.embed(texts)]

    def _store_facts(self, rows: list[Fact], vectors: list[bytes], connection: sqlite3.Connection) -> None:
        _rows.store_facts(connection, rows, self._max_nodes)
        if vectors:
            numbers = [_rows.fact_item(connection, row) for row in rows]
            _rows.store_vectors(connection, numbers, vectors)

    async def store_passage(self, passage: Passage) -> str:
        """Store one passage; return its id. The same text under the same title keeps its id.

        Raises InvalidInputError for blank text, EngineBusyError as `store_facts` does.
        """
        checked_passage(passage)
        vectors: list[bytes] = []
        if self._vectors:
            texts = [f"{passage.title} {passage.text}"]
            vectors = await self._read(lambda _: self._embed(texts))

        def store(connection: sqlite3.Connection) -> None:
            _rows.store_passage(connection, passage)
            if vectors:
                _rows.store_vectors(connection, [_rows.passage_item(connection, passage)], vectors)

        await self._write(store)
        return _rows.passage_id(passage.title, passage.text)

    async def find_facts(
        self,
        subject: str | None = None,
        predicate: str | None = None,
        object: str | None = None,  # noqa: A002 - the third part of a triple has this name
        *,
        limit: int = 100,
        min_confidence: float = 0.0,
    ) -> list[Fact]:
        """Return facts that match every part given exactly, most confident first, then oldest first.

        `limit` is 1 to 100,000; `min_confidence` is 0 to 1. Raises InvalidInputError for others.
        """
        given = {"subject": subject, "predicate": predicate, "object": object}
        parts = {part: checked_text(part, value) for part, value in given.items() if value is not None}
        checked_number("limit", limit, 1, MAX_LIMIT)
        checked_number("min_confidence", min_confidence, 0, 1, float)
        return await self._read(lambda connection: _rows.find_facts(connection, parts, limit, min_confidence))

    async def search(self, query: str, *, limit: int = 10, mode: SearchMode = "text") -> list[Hit]:
        """Return the facts and passages that match free text best, best first.

        Any text is a valid query; one without words finds nothing. "text" scores by BM25, "vector"
        by cosine, "hybrid" by the reciprocal ranks of both; without an embedder all three are
        "text", which each Hit's mode says. `limit` is 1 to 100,000. Raises InvalidInputError for
        another limit or mode, ConfigurationError when the embedder does not return `embedding_dim`.
        """
        checked_query(query)
        checked_number("limit", limit, 1, MAX_LIMIT)
        checked_mode(mode)
        return await self._read(lambda connection: search(connection, query, limit, mode, self._vectors))

    async def neighbours(self, entity: str, *, max_hops: int = 1, limit: int = 100) -> list[Fact]:
        """Return facts within `max_hops` edges of an entity in either direction.

        Nearest first, then most confident first. `max_hops` is 1 to 5, `limit` 1 to 100,000; the
        cost is bounded by them, not by how many edges a node has. Raises InvalidInputError.
        """
        checked_text("entity", entity)
        checked_number("max_hops", max_hops, 1, 5)
        checked_number("limit", limit, 1, MAX_LIMIT)
        return await self._read(lambda connection: _rows.neighbours(connection, entity, max_hops, limit))

    async def stats(self) -> EngineStats:
        """Return the counts, and the bytes of the file and its log; the cost does not grow with them."""

        def measure(connection: sqlite3.Connection) -> EngineStats:
            facts, passages, nodes = _rows.newest(connection)
            return EngineStats(facts, passages, nodes, self._max_nodes, size_on_disk(self._path))

        return await self._read(measure)

    async def ping(self) -> None:
        """Read the counts and write one page that changes nothing, down to the disk.

        Raises what SQLite raises when either fails (a full disk, a lost mount), EngineBusyError when
        another process holds the file.
        """
        await self._read(_rows.newest)
        await self._write(touch)

    async def backup(self, dest: str | os.PathLike[str]) -> None:
        """Write a consistent, compact copy to `dest`, durable when this returns; writes go on meanwhile.

        Takes 0.1 to 0.3 s for 100,000 facts and one reader thread. When it fails or is cancelled no
        file is left. Raises InvalidInputError when `dest` exists or its directory does not.
        """
        await self._read(lambda connection: copy_into(connection, Path(dest).absolute()))

    async def aclose(self) -> None:
        """Finish the calls under way, merge the log into the file, close. Closing twice does nothing.

        A call made after this raises EngineClosedError.
        """
        self._closed = True
        await self._readers.aclose()
        await self._writer.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        return await self._readers.submit(work)

    async def _write(self, work: Callable[[sqlite3.Connection], T], rows: int = 1) -> T:
        self._check_open()
        return await self._writer.submit(work, rows)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed: make a new one for this file")
