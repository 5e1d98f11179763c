"""A write that returned survives the death of its process."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 5

CHILD = """
import asyncio, itertools, sys
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact, Passage

async def client(engine, round_, number):
    for i in itertools.count():
        ids = await engine.store_facts([Fact(f"round {round_} client {number}", "counts", str(i))] * 2)
        if i % 10 == 0:
            await engine.store_passage(Passage(f"round {round_} client {number} text {i}"))
        print(ids[0], flush=True)

async def main():
    engine = EmbeddedKnowledgeEngine(sys.argv[1])
    await asyncio.gather(*(client(engine, sys.argv[2], number) for number in range(32)))

asyncio.run(main())
"""


def acknowledged_before_the_kill(path: Path, round_: int, after: int) -> list[str]:
    """Let a child store, kill it once it acknowledged `after` writes, return all that it acknowledged."""
    command = [sys.executable, "-c", CHILD, str(path), str(round_)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(after)]
        child.kill()
        lines += child.stdout.readlines()
    # The kill may cut the last line short; a whole one ends in a newline.
    return [line.strip() for line in lines if line.endswith("\n")]


async def stored(path: Path) -> set[str | None]:
    async with EmbeddedKnowledgeEngine(path) as engine:
        return {fact.id for fact in await engine.find_facts(predicate="counts", limit=100_000)}


def count(connection: sqlite3.Connection, what: str) -> int:
    return int(connection.execute(f"SELECT {what}").fetchone()[0])


async def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """Killing a process does not lose what the kernel holds; only these two settings guard a power cut."""
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db") as engine:
        settings = ("PRAGMA journal_mode", "PRAGMA synchronous")
        assert await engine._writer.submit(lambda c: [c.execute(p).fetchone()[0] for p in settings]) == [
            "wal",
            2,
        ]


def test_every_acknowledged_write_survives_kill_nine_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "kg.db"
    moments = random.Random(20261)
    acknowledged: list[str] = []
    for round_ in range(ROUNDS):
        acknowledged += acknowledged_before_the_kill(path, round_, moments.randrange(1, 1500))
        ids = asyncio.run(stored(path))
        assert set(acknowledged) <= ids
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            facts, passages = (count(connection, f"count(*) FROM {table}") for table in ("fact", "passage"))
            assert facts == len(ids)
            assert count(connection, "count(*) FROM text_index_docsize") == facts + passages
            assert count(connection, "count(*) FROM node") == count(connection, "max(id) FROM node")
