"""The file: what is in it, how it is opened, and what makes one not ours."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SCHEMA_VERSION", "fact_text", "open_reader", "open_writer", "prepare"]

APPLICATION_ID = 0x6C6B6731
"""The bytes "lkg1" at offset 68 of the file: tells our version 1 from another program's version 1."""

SCHEMA_VERSION = 1

BUSY_SECONDS = 5.0
"""How long a write waits for another process's write: more than any healthy group commit takes."""

# Rows are never deleted and SQLite gives the next id as the largest plus one, so the largest id of
# a table is its count: no counter to keep, and none that a crash could put out of step.
# Each index on one part ends in the order of the answer, so that a hub's best facts need no sort.
# The text index keeps no text of its own (content=''): facts have even rowids, passages odd ones.
_SCHEMA = """
CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE fact (
    id INTEGER PRIMARY KEY,
    subject INTEGER NOT NULL REFERENCES node,
    predicate TEXT NOT NULL,
    object INTEGER NOT NULL REFERENCES node,
    confidence REAL NOT NULL,
    UNIQUE (subject, predicate, object)
);
CREATE INDEX fact_by_subject ON fact (subject, confidence DESC);
CREATE INDEX fact_by_predicate ON fact (predicate, confidence DESC);
CREATE INDEX fact_by_object ON fact (object, confidence DESC);
CREATE INDEX fact_by_both ON fact (object, predicate, confidence DESC);
CREATE INDEX fact_by_confidence ON fact (confidence DESC);
CREATE VIEW triple AS
    SELECT f.id, s.name AS subject, f.predicate, o.name AS object, f.confidence,
        f.subject AS subject_id, f.object AS object_id
    FROM fact f CROSS JOIN node s ON s.id = f.subject CROSS JOIN node o ON o.id = f.object;
CREATE TABLE passage (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    source TEXT NOT NULL
);
CREATE VIRTUAL TABLE text_index USING fts5 (
    text, content='', tokenize='porter unicode61 remove_diacritics 2'
);
-- Merge index segments early: searches are a fifth faster after many single stores, writes no slower.
INSERT INTO text_index (text_index, rank) VALUES ('automerge', 2);
CREATE TABLE vector (id INTEGER PRIMARY KEY, item INTEGER NOT NULL UNIQUE, value BLOB NOT NULL);
"""
_IDENTITY = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def as_words(name: str) -> str:
    """Part a camelCase name; the tokenizer itself parts at underscores."""
    return _HUMP.sub(" ", name)


def fact_text(subject: str, predicate: str, obj: str) -> str:
    """Return the sentence under which a fact is searched."""
    return f"{subject} {as_words(predicate)} {obj}"


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the connection that writes, durable at each commit (WAL, synchronous=FULL)."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # A batch touches pages all over six indexes. With SQLite's 2 MB cache they are written more
        # than once in a commit, with its 4 MB log copied back after each: half the speed (measured).
        connection.execute("PRAGMA cache_size = -32000")  # KiB
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages of 4 KiB
    except sqlite3.Error:
        connection.close()
        raise
    connection.create_function("fact_text", 3, fact_text, deterministic=True)
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write."""
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def prepare(path: Path, dimensions: int | None) -> None:
    """Create the file's tables, or check that an existing file is one this version can use.

    `dimensions` is the length of the vectors that will be stored, None for no vectors.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigurationError(f"path is {str(path)!r}: must be a file in a directory that exists")
    try:
        with closing(open_writer(path)) as connection:
            _create_or_check(connection, path)
            _check_vectors(connection, dimensions)
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"path is {str(path)!r}: must be a SQLite file that can be read and written ({error})"
        ) from error


def _create_or_check(connection: sqlite3.Connection, path: Path) -> None:
    if _identity(connection) == (0, 0, 0):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {_IDENTITY} COMMIT;")
        except sqlite3.Error:
            # Two processes may start on one new file: whoever came second finds the tables made.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if _identity(connection)[:2] != (APPLICATION_ID, SCHEMA_VERSION):
                raise
    owner, version, _ = _identity(connection)
    if owner != APPLICATION_ID:
        raise ConfigurationError(f"path is {str(path)!r}: this SQLite file belongs to another program")
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"path is {str(path)!r} with schema version {version}: must be {SCHEMA_VERSION} for this release"
        )


def _check_vectors(connection: sqlite3.Connection, dimensions: int | None) -> None:
    row = connection.execute("SELECT length(value) / 4 FROM vector LIMIT 1").fetchone()
    if row and dimensions and row[0] != dimensions:
        raise ConfigurationError(
            f"embedding_dim is {dimensions}: must suit the file, which has vectors of length {row[0]}"
        )


def _identity(connection: sqlite3.Connection) -> tuple[int, int, int]:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    return owner, version, tables
