"""The last log records of this process, to be read at `/logs` without a log store."""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import Any, NamedTuple

from llmkg_otel.telemetry.log_lines import entry_of

__all__ = ["LEVELS", "RecentLogs"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LONGEST_LINE = 8192
"""Characters of a record that are kept; of a longer one only what begins its text."""


class _Entry(NamedTuple):
    level: int
    event: str | None
    correlation_id: str | None
    line: str


class RecentLogs(logging.Handler):
    """Keeps the last `size` log records between start and stop, as JSON lines.

    Those that reach the root logger, if the program has set up logging; else this layer's own, so that
    `logging.basicConfig` still works later, and warnings still reach stderr as Python's last resort. A
    program that sets up logging after the start is heard from the next read on.
    Thread-safe and without a lock: whoever logs waits for nobody. `redact` False leaves secrets in.
    """

    def __init__(self, size: int, *, redact: bool = True) -> None:
        super().__init__()
        self._redact = redact
        self._entries: deque[_Entry] = deque(maxlen=size)
        self._logger = logging.getLogger()
        self._listening = False

    def createLock(self) -> None:  # noqa: N802 - logging's own name
        """Do without: appending to a deque is atomic."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Keep a record that passes the filters; logging's own would take the lock."""
        passed: object = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def start(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._attach()

    def stop(self) -> None:
        """Stop listening; what is kept stays readable."""
        self._listening = False
        self._logger.removeHandler(self)

    def _attach(self) -> None:
        """Listen where the program's handlers are: it may have set up logging since, without this one."""
        others = [each for each in logging.root.handlers if not isinstance(each, RecentLogs)]
        target = logging.getLogger() if others else logging.getLogger("llmkg_otel")
        if self._listening and (target is not self._logger or self not in target.handlers):
            self._logger.removeHandler(self)
            self._logger = target
            target.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        entry = entry_of(record, redact=self._redact)
        line = entry.line()
        if len(line) > LONGEST_LINE:
            line = json.dumps({"truncated": True, "line": line[:LONGEST_LINE]}, ensure_ascii=False)
        self._entries.append(_Entry(record.levelno, entry.event, entry.ids.get("correlation_id"), line))
        if self._is_alone() and (last := logging.lastResort) is not None and record.levelno >= last.level:
            last.handle(record)

    def _is_alone(self) -> bool:
        """Say whether nobody else hears, so that the last resort would, were it not for this handler."""
        others = [*self._logger.handlers, *logging.root.handlers]
        return others[:1] == [self] and all(isinstance(each, RecentLogs) for each in others)

    def read(
        self,
        *,
        limit: int = 100,
        level: str = "debug",
        event: str | None = None,
        correlation_id: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return the last `limit` records that match, the oldest first.

        `level` is the lowest; None matches any event, any call or none.
        """
        self._attach()
        found: list[dict[str, Any]] = []
        for entry in reversed(self._entries.copy()):
            if len(found) == limit:
                break
            if (
                entry.level >= LEVELS[level]
                and event in (None, entry.event)
                and correlation_id in (None, entry.correlation_id)
            ):
                found.append(json.loads(entry.line))
        return found[::-1]
