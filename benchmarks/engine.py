"""Measure the embedded engine with 100,000 facts: `python benchmarks/engine.py` (about 20 s)."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkg_otel.engine._search import search
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

LOADED = 100_000
CLIENTS = 64
PREDICATES = ("works_at", "knows", "lives_in", "likes", "partOf")


class Row(NamedTuple):
    """One measurement; `target` is a floor for rates and a ceiling for times."""

    what: str
    measured: float
    target: float | None
    unit: str
    note: str = ""


class Data:
    """Facts between people and places, of two words each.

    Of 100,000 facts a person's words are in about 50 each, a place's in 500, a predicate in 20,000.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def person(self) -> str:
        return f"first{self._random.randrange(2000)} last{self._random.randrange(2000)}"

    def place(self) -> str:
        return f"town{self._random.randrange(200)} street{self._random.randrange(200)}"

    def fact(self) -> Fact:
        confidence = self._random.randrange(50, 101) / 100
        return Fact(self.person(), self._random.choice(PREDICATES), self.place(), confidence)


def floor(path: Path, commits: int = 2000) -> float:
    """Return durable one-row commits a second of SQLite alone: what the disk allows one client."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        start = time.perf_counter()
        for i in range(commits):
            connection.execute("INSERT INTO t (b) VALUES (?)", (str(i),))
        return commits / (time.perf_counter() - start)


async def p50(call: Callable[[], Awaitable[Any]], times: int) -> float:
    """Return the median time of one awaited call, in ms."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


async def stores(engine: EmbeddedKnowledgeEngine, data: Data, clients: int, each: int) -> float:
    async def client() -> None:
        for _ in range(each):
            await engine.store_facts([data.fact()])

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return clients * each / (time.perf_counter() - start)


async def batches(engine: EmbeddedKnowledgeEngine, data: Data) -> float:
    prepared = [[data.fact() for _ in range(1000)] for _ in range(LOADED // 1000)]
    start = time.perf_counter()
    for batch in prepared:
        await engine.store_facts(batch)
    return LOADED / (time.perf_counter() - start)


def in_thread(connection: sqlite3.Connection, people: Iterator[str], times: int = 1000) -> float:
    """Return the median time of one search on a reader's own thread, in ms."""
    taken = []
    for _ in range(times):
        person = next(people)
        start = time.perf_counter()
        search(connection, person, 10, "text", None)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


async def nothing(engine: EmbeddedKnowledgeEngine) -> None:
    """Cross to a reader thread and back."""
    await engine._read(lambda _: None)


async def measure(directory: Path) -> list[Row]:
    data = Data(seed=1)
    async with EmbeddedKnowledgeEngine(directory / "kg.db") as engine:
        batch = await batches(engine, data)
        # Before and after what it is compared with: other tenants of the disk come and go.
        before = floor(directory / "before.db")
        one = await stores(engine, data, 1, 3000)
        bare = (before + floor(directory / "after.db")) / 2
        many = await stores(engine, data, CLIENTS, 300)
        start = time.perf_counter()
        await engine.backup(directory / "copy.db")
        backup = (time.perf_counter() - start) * 1000
        known = [fact.subject for fact in await engine.find_facts(limit=20_000)]
        random.Random(2).shuffle(known)
        people = itertools.cycle(known)
        return [
            Row("bare SQLite, one-row commits", bare, None, "/s", "the disk's floor"),
            Row("store, one client", one, 1200, "/s", f"{one / bare:.2f} of bare"),
            Row(f"store, {CLIENTS} clients", many, 4000, "/s", f"{many / bare:.2f} of bare"),
            Row("facts in batches of 1,000", batch, 10_000, "/s", "from empty to 100,000"),
            Row("thread and back, no work", await p50(lambda: nothing(engine), 3000), None, "ms", "p50"),
            Row(
                "find by subject", await p50(lambda: engine.find_facts(next(people)), 3000), 0.1, "ms", "p50"
            ),
            Row(
                "two hops",
                await p50(lambda: engine.neighbours(next(people), max_hops=2), 1000),
                1,
                "ms",
                "p50",
            ),
            Row(
                "search, a person, in the thread",
                await engine._read(lambda connection: in_thread(connection, people)),
                0.3,
                "ms",
                "p50; the same without the way there and back",
            ),
            Row(
                "search, a person",
                await p50(lambda: engine.search(next(people)), 2000),
                0.3,
                "ms",
                "p50; words in 50 facts each",
            ),
            Row(
                "search, a place",
                await p50(lambda: engine.search(data.place()), 500),
                None,
                "ms",
                "p50; words in 500 facts each",
            ),
            Row(
                "search, a person at work",
                await p50(lambda: engine.search(f"where works {next(people)}"), 1000),
                None,
                "ms",
                "p50; and a word in 20,000 facts",
            ),
            Row(
                "search, common words only",
                await p50(lambda: engine.search("works at"), 100),
                None,
                "ms",
                "p50",
            ),
            Row("ping", await p50(engine.ping, 500), None, "ms", "p50"),
            Row("stats", await p50(engine.stats, 1000), None, "ms", "p50"),
            Row("backup", backup, None, "ms", f"{(directory / 'copy.db').stat().st_size >> 20} MB"),
        ]


def lines(rows: list[Row]) -> Iterator[str]:
    yield f"{'':30}{'measured':>10}{'target':>10}{'':4}{'':6}"
    for what, measured, target, unit, note in rows:
        met = "" if target is None else "met" if (measured >= target) == (unit == "/s") else "missed"
        digits = 0 if unit == "/s" else 3
        goal = "" if target is None else f"{target:,g}"
        yield f"{what:30}{measured:>10,.{digits}f}{goal:>10} {unit:3} {met:7}{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="where to put the files; a temporary directory by default")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().dir) as directory:
        print("\n".join(lines(asyncio.run(measure(Path(directory))))))


if __name__ == "__main__":
    main()
