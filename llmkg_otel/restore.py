"""Putting a checkpoint back in the place of the embedded engine's file."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from llmkg_otel._disk import digest, sync
from llmkg_otel.engine._schema import prepare
from llmkg_otel.shutdown.manifest import DATA, CheckpointError, Manifest, checkpoints_in, verify

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["restore"]

LOGS = ("-wal", "-shm")


def restore(source: Path, engine_path: Path, *, force: bool = False) -> tuple[Manifest, Path | None]:
    """Put a checkpoint, or the newest one of a directory of them, where the engine will open it.

    Returns the manifest, and the path of the file that was there before: `force` keeps it beside the new
    one. The server must not run. Raises CheckpointError, with nothing changed, if the checkpoint is not
    whole (the message names the newest one that is), is of another engine, if a file is in the way without
    `force`, or if another process has it open.
    """
    checkpoint = _chosen(source)
    manifest = _checked(checkpoint)
    in_the_way = any(each.exists() for each in _with_logs(engine_path))
    if in_the_way and not force:
        raise CheckpointError(f"{engine_path} exists: --force puts the checkpoint there and keeps it beside")
    unfinished = engine_path.with_name(f".{engine_path.name}.restoring")
    try:
        shutil.copyfile(checkpoint / DATA, unfinished)
        if digest(unfinished) != manifest.sha256:
            raise CheckpointError(f"{checkpoint} was not copied as it is: is the disk failing?")
        prepare(unfinished, None)
        sync(unfinished)
        before = _set_aside(engine_path) if in_the_way else None
        unfinished.replace(engine_path)
        sync(engine_path.parent)
    finally:
        for each in _with_logs(unfinished):
            each.unlink(missing_ok=True)
    return manifest, before


def _chosen(source: Path) -> Path:
    if newest := next(iter(checkpoints_in(source)), None):
        return newest
    if not source.is_dir():
        raise CheckpointError(f"{source}: there is no such directory")
    if source not in checkpoints_in(source.parent):
        raise CheckpointError(f"{source}: neither a checkpoint nor a directory that holds any")
    return source


def _checked(checkpoint: Path) -> Manifest:
    try:
        manifest = verify(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} is refused: {error}; {_offer(checkpoint)}") from None
    if manifest.engine != "sqlite":
        raise CheckpointError(
            f"{checkpoint} is of the engine {manifest.engine}: restore it with its own tools"
        )
    return manifest


def _offer(refused: Path) -> str:
    for checkpoint in checkpoints_in(refused.parent):
        try:
            manifest = verify(checkpoint)
        except CheckpointError:
            continue
        return f"the newest good one is {checkpoint}, of {manifest.created:%Y-%m-%d %H:%M:%S} UTC"
    return "no other one is good"


def _set_aside(engine_path: Path) -> Path:
    """Keep the old file under another name too, so that there is one under the engine's at every moment."""
    _merge_log(engine_path)
    before = engine_path.with_name(f"{engine_path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for log, kept in zip(_with_logs(engine_path)[1:], _with_logs(before)[1:], strict=True):
        if log.exists():  # of a file that SQLite cannot read any more
            log.rename(kept)
    if engine_path.exists():
        os.link(engine_path, before)
    return before


def _merge_log(engine_path: Path) -> None:
    """Merge the file's log into it; SQLite does that only while nobody else has the file open."""
    try:
        with closing(sqlite3.connect(engine_path, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise CheckpointError(
                f"{engine_path} is open in another process: stop the server first"
            ) from None
    except sqlite3.DatabaseError:
        pass  # not readable, which may be why it is replaced


def _with_logs(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + suffix) for suffix in LOGS)]
