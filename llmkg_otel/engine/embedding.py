"""Exact vector search over what the engine stored, for anyone who brings an embedder."""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any, Protocol

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

__all__ = ["Embedder", "Vectors"]


class Embedder(Protocol):
    """Turns texts into vectors; called from one thread at a time, never on the event loop."""

    def embed(self, texts: Sequence[str]) -> Any:
        """Return an array of shape (number of texts, dimensions)."""
        ...


class Vectors:
    """Unit vectors of all items in memory (4 bytes x dimensions each), read from the file as it grows.

    A scan of everything is exact, and at the sizes an embedded engine is for also quick: 100,000
    vectors of 256 dimensions are one product of 100 MB. Safe to use from many threads.
    """

    def __init__(self, embedder: Embedder, dimensions: int) -> None:
        try:
            self._np = importlib.import_module("numpy")
        except ImportError as error:
            raise ConfigurationError("embedder needs numpy, which is not installed") from error
        self._embedder = embedder
        self._dimensions = dimensions
        self._lock = threading.Lock()
        self._newest = 0
        self._count = 0
        self._items = self._np.empty(0, dtype="int64")
        self._matrix = self._np.empty((0, dimensions), dtype="float32")

    def embed(self, texts: Sequence[str]) -> Any:
        """Return one unit vector a text, of shape (number of texts, dimensions)."""
        with self._lock:
            vectors = self._np.asarray(self._embedder.embed(list(texts)), dtype="float32")
        if vectors.shape != (len(texts), self._dimensions):
            raise ConfigurationError(
                f"embedding_dim is {self._dimensions}: the embedder returned an array of shape"
                f" {vectors.shape} for {len(texts)} texts"
            )
        lengths = self._np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / self._np.where(lengths > 0, lengths, 1)

    def nearest(self, connection: sqlite3.Connection, text: str, limit: int) -> list[tuple[int, float]]:
        """Return the items most similar to a text, with their cosine in [-1, 1], best first."""
        query = self.embed([text])[0]
        with self._lock:
            self._refresh(connection)
            items, matrix = self._items[: self._count], self._matrix[: self._count]
        scores = matrix @ query
        best = self._np.argsort(-scores, kind="stable")[:limit]
        return [(int(items[i]), float(scores[i])) for i in best]

    def _refresh(self, connection: sqlite3.Connection) -> None:
        """Append what was stored since the last look; rows are never changed or deleted."""
        cursor = connection.execute(
            "SELECT id, item, value FROM vector WHERE id > ? ORDER BY id", (self._newest,)
        )
        while rows := cursor.fetchmany(1000):
            ids, items, values = zip(*rows, strict=True)
            self._reserve(len(rows))
            end = self._count + len(rows)
            self._items[self._count : end] = items
            block = self._np.frombuffer(b"".join(values), dtype="<f4")
            self._matrix[self._count : end] = block.reshape(len(rows), self._dimensions)
            self._count, self._newest = end, ids[-1]

    def _reserve(self, rows: int) -> None:
        """Grow by doubling into new arrays, so that a scan under way keeps the old ones."""
        if self._count + rows <= len(self._items):
            return
        size = max(2 * len(self._items), self._count + rows)
        items, matrix = self._items[: self._count], self._matrix[: self._count]
        self._items = self._np.empty(size, dtype="int64")
        self._matrix = self._np.empty((size, self._dimensions), dtype="float32")
        self._items[: self._count], self._matrix[: self._count] = items, matrix
