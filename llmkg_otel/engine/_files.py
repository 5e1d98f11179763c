"""What is done to the file as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel._disk import sync
from llmkg_otel.engine._schema import SCHEMA_VERSION
from llmkg_otel.errors import InvalidInputError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["copy_into", "size_on_disk", "touch"]


def touch(connection: sqlite3.Connection) -> None:
    """Write the first page as it is: the least that proves that the disk takes writes."""
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def size_on_disk(path: Path) -> int:
    """Return the bytes of the file and of its log."""
    log = path.with_name(path.name + "-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def copy_into(connection: sqlite3.Connection, dest: Path) -> None:
    """Write a copy of the database and wait until the disk has it; leave nothing when that fails.

    VACUUM INTO reads one snapshot: unlike `Connection.backup` it also ends while others write.
    """
    try:
        dest.open("xb").close()  # SQLite fills an empty file; making it first claims the name
    except FileExistsError as error:
        raise InvalidInputError(f"dest is {str(dest)!r}: must not exist yet") from error
    except OSError as error:
        raise InvalidInputError(
            f"dest is {str(dest)!r}: must be a file that can be made ({error})"
        ) from error
    try:
        connection.execute("VACUUM INTO ?", (str(dest),))
        sync(dest)
        sync(dest.parent)  # the name is part of the copy
    except BaseException:
        dest.unlink(missing_ok=True)
        raise
