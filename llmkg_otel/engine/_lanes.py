"""Lanes of daemon threads between the event loop and SQLite: one writes in groups, some read."""

from __future__ import annotations

import asyncio
import copy
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llmkg_otel._threads import run_in_daemon_thread
from llmkg_otel.engine._rows import index_text, newest
from llmkg_otel.engine._schema import open_reader, open_writer
from llmkg_otel.errors import LlmkgOtelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["EngineBusyError", "Lane", "read", "write"]

T = TypeVar("T")

GROUP_ROWS = 1000
"""Rows after which a group commits: bounds how long the first caller waits for the last."""

STEPS = 100_000
"""Virtual machine steps (1 to 10 ms) between two looks at whether the caller still waits."""


class EngineBusyError(LlmkgOtelError):
    """Another process held the file's write lock for too long; nothing was stored, trying again is safe."""

    blames_engine = True

    reason = "engine_busy"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One call: what to do with a connection, and who waits for it. `size` is the rows it writes."""

    future: asyncio.Future[Any]
    work: Callable[[sqlite3.Connection], Any]
    size: int


class Outcome(NamedTuple):
    """What became of a job: a result, or an error."""

    job: Job
    result: Any
    error: Exception | None


Jobs = SimpleQueue[Job | None]


class Lane:
    """A queue of jobs and the threads that take from it, started by the first job.

    The threads are daemons: a process that never closes the lane still ends, and loses only what
    was never acknowledged.
    """

    def __init__(self, name: str, path: Path, run: Callable[[Path, Jobs], None], threads: int) -> None:
        self._jobs: Jobs = SimpleQueue()
        self._threads = [
            threading.Thread(target=run, args=(path, self._jobs), name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        self._started = False

    def submit(self, work: Callable[[sqlite3.Connection], T], size: int = 1) -> asyncio.Future[T]:
        """Queue work for the next free thread; cancelling the future abandons it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(Job(future, work, size))
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        return future

    async def aclose(self) -> None:
        """Let the threads finish what is queued, and end; may be called again."""
        if not self._started:
            return
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            await run_in_daemon_thread(thread.join, "llmkg-engine-close")


def read(path: Path, jobs: Jobs) -> None:
    """Run jobs one by one on a read-only connection until None arrives.

    A query asks every `STEPS` whether its own caller still waits. `Connection.interrupt` from the
    loop could do the same, but does nothing when it falls between two statements of a job.
    """
    connection: sqlite3.Connection | None = None
    job: Job | None = None

    def abandoned() -> bool:
        return job is not None and job.future.cancelled()

    while (job := jobs.get()) is not None:
        if job.future.cancelled():
            continue
        try:
            if connection is None:
                connection = open_reader(path)
                connection.set_progress_handler(abandoned, STEPS)
            outcome = Outcome(job, job.work(connection), None)
        except Exception as error:  # noqa: BLE001 - it is the caller's, who waits on the loop
            outcome = Outcome(job, None, error)
        _deliver([outcome])
        del outcome
    if connection is not None:
        connection.close()


def write(path: Path, jobs: Jobs) -> None:
    """Commit jobs in groups until None arrives; then checkpoint and close.

    While one group waits for the disk the next one gathers in the queue, so the more callers, the
    more calls share one fsync.
    """
    connection: sqlite3.Connection | None = None
    more = True
    while more:
        group, more = _next_group(jobs)
        try:
            connection = connection or open_writer(path)
            outcomes = _commit(connection, group)
        except Exception as error:  # noqa: BLE001 - every caller in the group gets one
            outcomes = [Outcome(job, None, _explained(error)) for job in group]
        _deliver(outcomes)
        del group, outcomes
    if connection is not None:
        # A reader elsewhere may hold the log; it is then merged at the next opening, nothing is lost.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()


def _next_group(jobs: Jobs) -> tuple[list[Job], bool]:
    """Wait for a job and take what else is queued; say whether more may come."""
    group: list[Job] = []
    rows = 0
    job = jobs.get()
    while job is not None:
        group.append(job)
        rows += job.size
        if rows >= GROUP_ROWS:
            return group, True
        try:
            job = jobs.get_nowait()
        except Empty:
            return group, True
    return group, False


def _commit(connection: sqlite3.Connection, group: list[Job]) -> list[Outcome]:
    """Run a group in one transaction; a job that fails takes back only its own changes."""
    wanted = [job for job in group if not job.future.cancelled()]
    if not wanted:
        return []
    connection.execute("BEGIN IMMEDIATE")
    try:
        before = newest(connection)
        outcomes = [_in_savepoint(connection, job) for job in wanted]
        # Once for all: FTS5 writes a segment at every savepoint after its first row.
        index_text(connection, before)
        connection.execute("COMMIT")
    except Exception:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _in_savepoint(connection: sqlite3.Connection, job: Job) -> Outcome:
    connection.execute("SAVEPOINT one_call")
    try:
        outcome = Outcome(job, job.work(connection), None)
    except Exception as error:
        if not connection.in_transaction:  # the disk is full or failing: SQLite undid the whole group
            raise
        connection.execute("ROLLBACK TO one_call")
        outcome = Outcome(job, None, error)
    connection.execute("RELEASE one_call")
    return outcome


def _explained(error: Exception) -> Exception:
    """Return the error for one caller of a group that failed as a whole."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        busy = EngineBusyError("another process is writing to this file and did not finish in time")
        busy.__cause__ = error
        return busy
    return copy.copy(error)  # two tasks that raise one object would share its traceback


def _deliver(outcomes: Iterable[Outcome]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.job.future.get_loop(), []).append(outcome)
    for loop, theirs in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(outcomes: Iterable[Outcome]) -> None:
    for job, result, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
