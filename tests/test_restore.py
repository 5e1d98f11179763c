"""Putting a checkpoint back: checked first, nothing overwritten unasked, the old file kept."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.checkpoints import Saving, embedded, names

from llmkg_otel.cli import main
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two checkpoints of an engine: with Paris and Rome, and with Oslo too."""

    async def save() -> None:
        async with embedded(tmp_path) as engine:
            saving = Saving(engine, tmp_path / "saved")
            await saving.checkpoints.save()
            await engine.store_facts([Fact("Oslo", "capital_of", "Norway")])
            await saving.checkpoints.save()

    asyncio.run(save())
    return tmp_path / "saved"


def subjects(path: Path) -> list[str]:
    async def read() -> list[str]:
        async with EmbeddedKnowledgeEngine(path) as engine:
            return [fact.subject for fact in await engine.find_facts()]

    return asyncio.run(read())


def store(path: Path, subject: str) -> None:
    async def write() -> None:
        async with EmbeddedKnowledgeEngine(path) as engine:
            await engine.store_facts([Fact(subject, "p", "o")])

    asyncio.run(write())


def restore(source: Path, target: Path, *options: str) -> int:
    return main(["restore", "--from", str(source), "--engine-path", str(target), *options])


def test_the_newest_of_a_directory_comes_back(saved: Path, tmp_path: Path) -> None:
    assert restore(saved, tmp_path / "new.db") == 0
    assert subjects(tmp_path / "new.db") == ["Paris", "Rome", "Oslo"]


def test_one_that_is_named_comes_back_and_stays_where_it_was(saved: Path, tmp_path: Path) -> None:
    assert restore(saved / "checkpoint-00000001", tmp_path / "new.db") == 0
    store(tmp_path / "new.db", "Lima")
    assert subjects(tmp_path / "new.db") == ["Paris", "Rome", "Lima"]
    assert main(["checkpoints", "--directory", str(saved)]) == 0


def test_the_configured_paths_are_the_default(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMKG_ENGINE__PATH", str(tmp_path / "new.db"))
    monkeypatch.setenv("LLMKG_CHECKPOINT__DIRECTORY", str(saved))
    assert main(["restore", "--from", str(saved)]) == 0
    assert subjects(tmp_path / "new.db") == ["Paris", "Rome", "Oslo"]
    capsys.readouterr()
    assert main(["checkpoints"]) == 0
    newest, oldest = capsys.readouterr().out.splitlines()
    assert newest.startswith(f"{saved}/checkpoint-00000002  20")
    assert newest.endswith("3 facts, 0 passages, 6 nodes")
    assert oldest.endswith("2 facts, 0 passages, 4 nodes")


def test_a_file_in_the_way_is_not_touched(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "new.db", "Lima")
    before = (tmp_path / "new.db").read_bytes()
    assert restore(saved, tmp_path / "new.db") == 1
    assert "new.db exists: --force" in capsys.readouterr().err
    assert (tmp_path / "new.db").read_bytes() == before


def test_force_keeps_the_old_file_beside_the_new_one(saved: Path, tmp_path: Path) -> None:
    store(tmp_path / "new.db", "Lima")
    assert restore(saved, tmp_path / "new.db", "--force") == 0
    assert subjects(tmp_path / "new.db") == ["Paris", "Rome", "Oslo"]
    (kept,) = tmp_path.glob("new.db.before-*")
    assert subjects(kept) == ["Lima"]


def test_the_log_of_a_server_that_was_killed_goes_with_its_file(saved: Path, tmp_path: Path) -> None:
    store(tmp_path / "dead.db", "Lima")
    with closing(sqlite3.connect(tmp_path / "dead.db")) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE fact SET confidence = 0.5")
        connection.commit()
        for each in tmp_path.glob("dead.db*"):  # as the dead leave it: with a log that nobody merged
            (tmp_path / each.name.replace("dead", "new")).write_bytes(each.read_bytes())
    assert (tmp_path / "new.db-wal").stat().st_size > 0
    assert restore(saved, tmp_path / "new.db", "--force") == 0
    assert subjects(tmp_path / "new.db") == ["Paris", "Rome", "Oslo"]
    (kept,) = tmp_path.glob("new.db.before-*")
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT confidence FROM fact").fetchall() == [(0.5,)]


def test_a_file_that_is_not_readable_any_more_can_be_replaced(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "new.db").write_bytes(b"rubbish" * 1000)
    assert restore(saved, tmp_path / "new.db", "--force") == 0
    assert subjects(tmp_path / "new.db") == ["Paris", "Rome", "Oslo"]
    (kept,) = tmp_path.glob("new.db.before-*")
    assert kept.read_bytes() == b"rubbish" * 1000


def test_a_file_that_a_server_has_open_is_not_replaced(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "new.db", "Lima")
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        connection.execute("SELECT * FROM fact").fetchall()
        assert restore(saved, tmp_path / "new.db", "--force") == 1
    assert "is open in another process" in capsys.readouterr().err
    assert subjects(tmp_path / "new.db") == ["Lima"]
    assert not list(tmp_path.glob(".*restoring*"))


def corrupt(data: Path) -> None:
    with data.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")


def truncate(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-1])


def remove(data: Path) -> None:
    data.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(corrupt, "SHA-256 differs"), (truncate, "the manifest says"), (remove, "No such file")],
)
def test_a_damaged_one_is_refused_and_the_newest_good_one_offered(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    damage(saved / "checkpoint-00000002" / "data")
    assert restore(saved, tmp_path / "new.db") == 1
    said = capsys.readouterr().err
    assert f"{saved}/checkpoint-00000002 is refused: " in said
    assert reason in said
    assert f"the newest good one is {saved}/checkpoint-00000001, of 20" in said
    assert not (tmp_path / "new.db").exists()
    assert main(["checkpoints", "--directory", str(saved)]) == 1
    assert capsys.readouterr().out.count("BAD") == 1


def test_when_none_is_good_that_is_said(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in names(saved):
        corrupt(saved / checkpoint / "data")
    assert restore(saved, tmp_path / "new.db") == 1
    assert "no other one is good" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "said"), [("nowhere", "no such directory"), (".", "neither a checkpoint")]
)
def test_what_is_no_checkpoint_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    assert restore(tmp_path / source, tmp_path / "new.db") == 1
    assert said in capsys.readouterr().err


def test_one_of_another_engine_is_left_to_its_own_tools(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = saved / "checkpoint-00000002" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sqlite"', '"neo4j"'))
    assert restore(saved, tmp_path / "new.db") == 1
    assert "of the engine neo4j" in capsys.readouterr().err
