"""What the MCP tools need of a knowledge engine: eight async methods and four frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from llmkg_otel.errors import LlmkgOtelError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

__all__ = [
    "CapacityExceededError",
    "EngineStats",
    "Fact",
    "Hit",
    "KnowledgeEngine",
    "Passage",
    "SearchMode",
    "SupportsAnswer",
    "SupportsBackup",
    "SupportsNativeQuery",
]

SearchMode = Literal["text", "vector", "hybrid"]


class CapacityExceededError(LlmkgOtelError):
    """The engine holds as much as it may; nothing of the refused write was stored."""

    reason = "capacity_exceeded"


@dataclass(frozen=True, slots=True)
class Fact:
    """One triple. `confidence` is in [0, 1]; `id` is None until an engine stored it."""

    subject: str
    predicate: str
    object: str
    confidence: float = 1.0
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """One chunk of text. `source` says where it came from; `id` is None until stored."""

    text: str
    title: str = ""
    source: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result: a fact or a passage, with a score where higher is better.

    `mode` is the search that produced it, which differs from the one asked for when the engine had
    to fall back (hybrid without an embedder gives "text").
    """

    score: float
    mode: SearchMode
    fact: Fact | None = None
    passage: Passage | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts of what is stored, and the bytes it takes on disk."""

    facts: int
    passages: int
    nodes: int
    max_nodes: int
    size_bytes: int


class KnowledgeEngine(Protocol):
    """A store of facts and passages that can be searched.

    Every method may be called from many tasks at once on the loop that opened the engine. A write
    that returned is durable. Cancelling a call frees its resources; a cancelled write may or may not
    have happened, and may be repeated because writes are upserts.
    """

    @property
    def name(self) -> str:
        """A short fixed name, used as `db.system.name` in telemetry."""
        ...

    @property
    def capabilities(self) -> Collection[str]:
        """Which of text, vector, hybrid, sparql, cypher, answer, backup, interrupt it can do."""
        ...

    async def store_facts(self, facts: Sequence[Fact]) -> list[str]:
        """Store all facts or none; return their ids in order.

        An upsert on (subject, predicate, object): repeating it after an unknown outcome is safe.
        Raises InvalidInputError for a malformed fact and CapacityExceededError when full.
        """
        ...

    async def store_passage(self, passage: Passage) -> str:
        """Store one passage; return its id. The same text under the same title keeps its id."""
        ...

    async def find_facts(
        self,
        subject: str | None = None,
        predicate: str | None = None,
        object: str | None = None,  # noqa: A002 - the third part of a triple has this name
        *,
        limit: int = 100,
        min_confidence: float = 0.0,
    ) -> list[Fact]:
        """Return facts that match every part given, most confident first, at most `limit`."""
        ...

    async def search(self, query: str, *, limit: int = 10, mode: SearchMode = "text") -> list[Hit]:
        """Return the best matches for free text, best first. Any text is a valid query."""
        ...

    async def neighbours(self, entity: str, *, max_hops: int = 1, limit: int = 100) -> list[Fact]:
        """Return facts within `max_hops` edges of an entity, in either direction, nearest first."""
        ...

    async def stats(self) -> EngineStats:
        """Return counts of what is stored."""
        ...

    async def ping(self) -> None:
        """Do a real read and an empty write; raise when either fails."""
        ...

    async def aclose(self) -> None:
        """Finish writes in progress, checkpoint, close. Closing twice does nothing."""
        ...


@runtime_checkable
class SupportsAnswer(Protocol):
    """An engine that can put an answer into words; without it the tools give evidence only."""

    async def answer(self, question: str) -> str:
        """Return an answer in prose."""
        ...


@runtime_checkable
class SupportsBackup(Protocol):
    """An engine that can copy itself while it serves."""

    async def backup(self, dest: Path) -> None:
        """Write a consistent copy to `dest`, which must not exist yet."""
        ...


@runtime_checkable
class SupportsNativeQuery(Protocol):
    """An engine with a query language of its own (SPARQL, Cypher, SQL)."""

    async def native_query(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Run a read-only query; return at most `limit` rows."""
        ...
