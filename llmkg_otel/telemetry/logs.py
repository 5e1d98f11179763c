"""Log records: as JSON lines on stderr, written off the request path, and to the logger provider."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import weakref
from collections import Counter
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Self, TextIO

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggingHandler as SdkLoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.semconv.attributes.code_attributes import (
    CODE_FILE_PATH,
    CODE_FUNCTION_NAME,
    CODE_LINE_NUMBER,
)
from opentelemetry.semconv.attributes.exception_attributes import (
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
)

from llmkg_otel._forks import in_child
from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.log_lines import LogEntry, entry_of
from llmkg_otel.telemetry.redaction import plain_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

__all__ = ["CountingProcessor", "JsonLogs", "LogExport", "RedactedExports", "dropped_records"]

QUEUE_SIZE = 10_000
QUEUE_CHARACTERS = 16 * 2**20
STOP_SECONDS = 5.0

_EXPORTING = (LoggingHandler, SdkLoggingHandler)
_dropped: Counter[str] = Counter(dict.fromkeys(semconv.LOG_DESTINATIONS, 0))
_drop_lock = threading.Lock()


def dropped_records() -> Mapping[str, int]:
    """Return how many log records this process has lost to full queues, by where they should have gone."""
    return dict(_dropped)


def _count_drops(destination: str, count: int = 1) -> None:
    with _drop_lock:
        _dropped[destination] += count


class _Lines(logging.Handler):
    """Queues records as lines, which a thread of its own writes; what does not fit is dropped, and counted.

    Each number has one writer: what went in, whoever holds the handler's lock; what came out, the thread.
    """

    def __init__(self, stream: TextIO, *, redact: bool) -> None:
        super().__init__()
        self._stream, self._redact = stream, redact
        self.dropped = 0
        self._reset()

    def _reset(self) -> None:
        self._lines: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._lines_in = self._lines_out = self._characters_in = self._characters_out = 0
        self._writer: Future[None] | None = None
        self._writing_thread = 0

    def start(self) -> None:
        """Write from now on; in a fork, too, which has no thread: what is queued there is its parent's."""
        self._reset()
        self._writer = in_daemon_thread(self._write, "llmkg-logs")

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line, or drop it; so what the stream itself logs, which would have no end."""
        if threading.get_ident() == self._writing_thread:
            self._drop()
        else:
            self._put(entry_of(record, redact=self._redact).line())

    def flush(self) -> None:
        """Wait until all that is queued is written, `STOP_SECONDS` at most; `logging.shutdown` calls this."""
        if self._writer is not None and not self._writer.done():
            written = threading.Event()
            self._lines.put(written)
            written.wait(STOP_SECONDS)

    def stop(self) -> None:
        """Write what is queued, within `STOP_SECONDS`, and end."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        if self.dropped:
            told = {
                "name": __name__,
                "levelname": "WARNING",
                "msg": f"{self.dropped} log records were dropped",
            }
            self._lines.put(LogEntry(logging.makeLogRecord(told), redact=False).line())
        self._lines.put(None)
        wait([writer], STOP_SECONDS)

    def _put(self, line: str) -> None:
        queued, size = self._lines_in - self._lines_out, self._characters_in - self._characters_out
        if queued >= QUEUE_SIZE or size + len(line) > QUEUE_CHARACTERS:
            self._drop()
            return
        self._lines_in += 1
        self._characters_in += len(line)
        self._lines.put(line)

    def _write(self) -> None:
        self._writing_thread = threading.get_ident()
        while (line := self._lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            self._lines_out += 1
            self._characters_out += len(line)
            try:
                self._stream.write(f"{line}\n")  # one write a line: other processes may share the pipe
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more, the disk is full, it is closed
                self._drop()

    def _drop(self) -> None:
        with _drop_lock:
            self.dropped += 1
            _dropped["stderr"] += 1


class JsonLogs:
    """Installs the JSON lines on the root logger; a context manager that puts the old handlers back.

    For programs, not for libraries: `llmkg-otel serve` uses it. What `opentelemetry-instrument` exports
    meanwhile is redacted too. Its end writes what is queued, but waits `STOP_SECONDS` at most for a stream
    that takes no lines. `redact` False leaves secrets in.
    """

    def __init__(self, level: str, stream: TextIO | None = None, *, redact: bool = True) -> None:
        self._level = level.upper()
        self._lines = _Lines(stream or sys.stderr, redact=redact)
        self._exports = RedactedExports(redact=redact)

    @property
    def dropped(self) -> int:
        """Records lost because the queue was full, or the stream took no lines."""
        return self._lines.dropped

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._before = (list(root.handlers), root.level)
        for handler in self._before[0]:
            if isinstance(handler, logging.StreamHandler):
                root.removeHandler(handler)
        self._exports.attach()
        self._lines.start()
        _writing.add(self._lines)
        root.addHandler(self._lines)
        root.setLevel(self._level)
        return self

    def __exit__(self, *_exc: object) -> None:
        _writing.discard(self._lines)
        root = logging.getLogger()
        root.removeHandler(self._lines)
        self._exports.detach()
        for handler in self._before[0]:
            if handler not in root.handlers:
                root.addHandler(handler)
        root.setLevel(self._before[1])
        self._lines.stop()


_writing: weakref.WeakSet[_Lines] = weakref.WeakSet()


def _after_fork() -> None:
    global _drop_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _drop_lock = threading.Lock()
    for lines in tuple(_writing):
        lines.start()


in_child(_after_fork)


class LogExport(LoggingHandler):
    """Hands the root logger's records to the global logger provider, unless another handler does.

    The SDK, the logging instrumentation and `opentelemetry-instrument` each may have added a handler of
    theirs, or add it later. Of several of ours the first exports. What OpenTelemetry itself logs, and what
    its exporters' HTTP clients log while they export, is left out: it must not feed the exporter. Secrets
    are redacted unless `redact` is False; a record inside a call has its operation and correlation id as
    attributes.
    """

    def __init__(self, *args: Any, redact: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self._redact = redact
        self.setFormatter(_Message(redact=redact))

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether this handler is the one to export this record."""
        if get_value(_SUPPRESS_INSTRUMENTATION_KEY) or record.name.startswith("opentelemetry"):
            return False
        return self._is_chosen() and bool(super().filter(record))

    def _is_chosen(self) -> bool:
        exporting = [h for h in logging.getLogger().handlers if isinstance(h, _EXPORTING)]
        return exporting[:1] == [self] and all(isinstance(h, LogExport) for h in exporting)

    def _get_attributes(self, record: logging.LogRecord) -> tuple[dict[str, Any], str | None]:
        entry = entry_of(record, redact=self._redact)
        attributes = {
            (f"extra.{key}" if key in _OUR_ATTRIBUTES else key): value
            for key, value in entry.attributes.items()
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            attributes[EXCEPTION_TYPE] = kind.__name__
            attributes[EXCEPTION_MESSAGE] = plain_text(error, redact=self._redact)
        if entry.exception is not None:
            attributes[EXCEPTION_STACKTRACE] = entry.exception
        for name, key in _OUR_ATTRIBUTES.items():
            if key in entry.ids:
                attributes[name] = entry.ids[key]
        return attributes, entry.event


class _InPlaceOf(LogExport):
    """Exports what another handler would, to its provider, with the attributes and the format it has.

    It stands on no logger: the other stays there, where the SDK guards it against `logging.config`, and
    its last filter hands over.
    """

    def __init__(self, theirs: LoggingHandler | SdkLoggingHandler, *, redact: bool) -> None:
        provider = theirs._logger_provider  # noqa: SLF001 - it tells nobody else
        code = getattr(theirs, "_log_code_attributes", True)
        super().__init__(logger_provider=provider, log_code_attributes=code, redact=redact)
        self._theirs = theirs

    def take(self, record: logging.LogRecord) -> bool:
        """Export a record, and say that its own handler should not."""
        self.handle(record)
        return False

    def _is_chosen(self) -> bool:
        return True

    def format(self, record: logging.LogRecord) -> str:
        if self._theirs.formatter is None:
            return super().format(record)
        return plain_text(self._theirs.format(record), redact=self._redact)

    def _get_attributes(self, record: logging.LogRecord) -> tuple[dict[str, Any], str | None]:
        attributes, event = super()._get_attributes(record)
        if self._log_code_attributes:
            attributes[CODE_FILE_PATH] = record.pathname
            attributes[CODE_FUNCTION_NAME] = record.funcName
            attributes[CODE_LINE_NUMBER] = record.lineno
        return attributes, event


class RedactedExports:
    """Has a `LogExport` send what OpenTelemetry's own handlers of the root logger would: redacted, and once.

    These are the SDK's and the logging instrumentation's, which `opentelemetry-instrument` installs. No
    other handler is touched. Where two are attached, the first redacts.
    """

    def __init__(self, *, redact: bool) -> None:
        self._redact = redact
        self._taking: dict[logging.Handler, Callable[[logging.LogRecord], bool]] = {}

    def attach(self) -> None:
        """Begin with those that are there and not attached yet."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LogExport) or not isinstance(handler, _EXPORTING):
                continue
            if handler not in self._taking:
                self._taking[handler] = take = _InPlaceOf(handler, redact=self._redact).take
                handler.addFilter(take)

    def detach(self) -> None:
        """Leave them as they were."""
        while self._taking:
            handler, take = self._taking.popitem()
            handler.removeFilter(take)


_OUR_ATTRIBUTES = {semconv.CORRELATION_ID: "correlation_id", semconv.OPERATION_NAME: "operation"}


class _Message(logging.Formatter):
    """The body of an exported record."""

    def __init__(self, *, redact: bool) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return entry_of(record, redact=self._redact).message


class CountingProcessor(BatchLogRecordProcessor):
    """The SDK's batches of log records; what its full queue drops is counted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        batch: Any = self._batch_processor
        batch._metrics = _CountedDrops(batch._metrics)  # noqa: SLF001 - where it reports what it drops


class _CountedDrops:
    """The SDK's own metrics of a queue, which most have switched off, and ours beside them."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def drop_items(self, count: int, *reason: str) -> None:
        _count_drops("otlp", count)
        self._inner.drop_items(count, *reason)
