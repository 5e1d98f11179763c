"""Saving the engine's state, now and then and at shutdown: there is always a whole copy to go back to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkg_otel._disk import digest, sync
from llmkg_otel._threads import in_daemon_thread, run_in_daemon_thread
from llmkg_otel.engine.protocol import EngineStats, SupportsBackup
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.events import CheckpointEnded, Observer
from llmkg_otel.shutdown.manifest import DATA, MANIFEST, CheckpointError, Manifest, checkpoints_in, next_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from llmkg_otel.config import ProductionConfig

__all__ = ["Checkpoints", "config_fingerprint"]

PARTIAL = ".partial-"
DISCARD_SECONDS = 1.0
"""How long a save that failed waits for its remains to be gone; the next one sweeps what is left."""


def config_fingerprint(config: ProductionConfig) -> str:
    """Return 16 hexadecimal digits that change with the configuration, whatever its secrets are."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]


class Checkpoints:
    """Saves checkpoints of an engine, keeps the last few. Belongs to one loop; `failing` is for any thread.

    A checkpoint is made under a temporary name, written to the disk, then renamed: it is whole or not
    there. Whatever happens to one, the older ones stay. Needs POSIX file locks. Raises
    ConfigurationError for an engine without `backup`. Emits CheckpointEnded for each save.
    """

    def __init__(
        self,
        config: ProductionConfig,
        engine: Any,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if not isinstance(engine, SupportsBackup):
            raise ConfigurationError(f"checkpoint.directory: {type(engine).__name__} has no backup() to call")
        self._config = config.checkpoint
        self._directory = Path(config.checkpoint.directory or "").absolute()
        self._fingerprint = config_fingerprint(config)
        self._engine = engine
        self._observer = observer
        self._clock = clock
        self._sleep = sleep
        self._one_at_a_time = asyncio.Lock()
        self._schedule: asyncio.Task[None] | None = None
        self._last_saved = clock()
        self._error: str | None = None

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint was saved, or since the system was made."""
        return self._clock() - self._last_saved

    @property
    def failing(self) -> str | None:
        """Why there is reason to worry: the last save failed, or two are overdue. None: all is well."""
        if self._error is not None:
            return f"the last save failed: {self._error}"
        interval = self._config.interval_seconds
        if interval is not None and self.age > 2 * interval + self._config.timeout_seconds:
            return f"nothing was saved for {self.age:.0f} s"
        return None

    def start(self) -> None:
        """Begin to save at the configured interval, first when it is over."""
        if self._config.interval_seconds is not None:
            repeating = self._repeat(self._config.interval_seconds)
            self._schedule = asyncio.create_task(repeating, context=Context())  # in nobody's span

    async def save(self) -> Path:
        """Save a checkpoint and return its directory; waits for one that is being saved already.

        Raises TimeoutError after `timeout_seconds`, or what went wrong; nothing of it is left then.
        """
        began = self._clock()
        try:
            async with self._one_at_a_time, asyncio.timeout(self._config.timeout_seconds):
                saved = await self._save()
        except BaseException as error:
            self._error = self._words(error)
            self._observer.on_event(CheckpointEnded(self._clock() - began, error=self._error))
            raise
        self._error, self._last_saved = None, self._clock()
        self._observer.on_event(CheckpointEnded(self._clock() - began, saved.name))
        return saved

    async def save_last(self) -> None:
        """End the schedule and save once more: the shutdown's part."""
        if self._schedule is not None:
            self._schedule.cancel()
            await asyncio.wait({self._schedule})
        await self.save()

    async def _repeat(self, interval: float) -> None:
        while True:
            await self._sleep(interval)
            with suppress(Exception):  # told by the event, and by health until one is saved
                await self.save()

    async def _save(self) -> Path:
        making = in_daemon_thread(partial(_Partial, self._directory), "llmkg-checkpoint")
        try:
            unfinished = await asyncio.wrap_future(making)
            counts = await self._counts()
            await self._engine.backup(unfinished.path / DATA)
            return await run_in_daemon_thread(partial(self._seal, unfinished, counts), "llmkg-checkpoint")
        finally:
            gone = asyncio.wrap_future(in_daemon_thread(partial(_discard, making), "llmkg-checkpoint"))
            await asyncio.wait({gone}, timeout=DISCARD_SECONDS)

    async def _counts(self) -> dict[str, int]:
        stats = getattr(self._engine, "stats", None)
        found = await stats() if stats is not None else None
        if not isinstance(found, EngineStats):
            return {}
        return {"facts": found.facts, "passages": found.passages, "nodes": found.nodes}

    def _seal(self, unfinished: _Partial, counts: dict[str, int]) -> Path:
        """Write the manifest, wait for the disk, give the checkpoint its name, and remove old ones."""
        with unfinished.in_use:  # a save that is given up meanwhile must not take files from under its name
            return self._sealed(unfinished.path, counts)

    def _sealed(self, unfinished: Path, counts: dict[str, int]) -> Path:
        data = unfinished / DATA
        if not data.is_file():
            raise CheckpointError("the engine's backup returned and left no file")
        sync(data)
        manifest = Manifest(
            created=datetime.now(UTC),
            engine=str(getattr(self._engine, "name", type(self._engine).__name__)),
            schema_version=getattr(self._engine, "schema_version", None),
            size_bytes=data.stat().st_size,
            sha256=digest(data),
            counts=counts,
            config_fingerprint=self._fingerprint,
            library_version=version("llmkg-otel"),
        )
        (unfinished / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        sync(unfinished / MANIFEST)
        sync(unfinished)
        saved = unfinished.rename(self._directory / next_name(self._directory))
        sync(self._directory)
        for old in checkpoints_in(self._directory)[self._config.keep :]:
            # Renamed first: a process that dies here leaves no half of a checkpoint under its name.
            shutil.rmtree(old.rename(old.with_name(PARTIAL + old.name)))
        return saved

    def _words(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError) and not str(error):
            return f"not done within {self._config.timeout_seconds:g} s"
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Partial:
    """A directory for a checkpoint in the making, locked while its maker lives."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        self.path = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=directory))
        self.lock = _lock(self.path)
        self.in_use = threading.Lock()

    def discard(self) -> None:
        """Remove what is left, once nobody writes it any more; a finished one has another name by then."""
        with self.in_use:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _discard(making: Future[_Partial]) -> None:
    if making.exception() is None:  # waits
        making.result().discard()


def _sweep(directory: Path) -> None:
    """Remove what makers left behind who died: nobody holds its lock."""
    for remains in directory.glob(f"{PARTIAL}*"):
        with suppress(OSError):  # locked, so its maker lives; or somebody else swept it
            lock = _lock(remains)
            shutil.rmtree(remains, ignore_errors=True)
            os.close(lock)


def _lock(directory: Path) -> int:
    """Return a descriptor that holds the directory's lock; raise BlockingIOError if somebody has it."""
    import fcntl  # noqa: PLC0415 - POSIX only, and needed only here

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
