"""Servers ended at random moments under load. MOMENTS=100 for each signal is what docs/faults.md reports."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.moments import DEADLINE, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOMENTS = int(os.environ.get("MOMENTS", "4"))
LANES = 2  # cores: a server starts on one while another ends

pytestmark = pytest.mark.timeout(60 + 10 * MOMENTS)


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[list[Lane]]:
    made = [Lane(tmp_path / f"lane-{number}", random.Random(number)) for number in range(LANES)]
    yield made
    for lane in made:
        lane.servers.kill_remaining()


async def test_sigterm_at_any_moment_loses_nothing_and_the_books_balance(lanes: list[Lane]) -> None:
    async def run(lane: Lane) -> None:
        for _ in range(MOMENTS // LANES):
            ended = await lane.end_by(signal.SIGTERM)
            assert ended.status == 0
            assert ended.seconds < DEADLINE
            assert ended.books.balanced, [check for check in ended.books.checks if not check.holds]
            assert ended.report is not None
            assert ended.report["clean"]
            assert ended.report["operations"] == ended.counted
            assert lane.bad_checkpoints() == []
            assert await lane.missing_in_the_newest_checkpoint() == []

    await asyncio.gather(*map(run, lanes))
    assert all(lane.acknowledged for lane in lanes)


async def test_sigkill_at_any_moment_loses_no_acknowledged_write_and_no_checkpoint(lanes: list[Lane]) -> None:
    async def run(lane: Lane) -> None:
        for _ in range(MOMENTS // LANES):  # each start is a restart after the kill before
            ended = await lane.end_by(signal.SIGKILL)
            assert ended.status == -signal.SIGKILL
            assert await lane.missing() == []
            assert lane.bad_checkpoints() == []
            with closing(sqlite3.connect(lane.directory / "k.db")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert (await lane.end_by(signal.SIGTERM)).status == 0
        assert not list(lane.saved.glob(".partial-*"))

    await asyncio.gather(*map(run, lanes))
    assert all(lane.acknowledged for lane in lanes)
