"""Log records: as JSON lines on stderr, written off the request path, and to the logger provider."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import weakref
from collections import Counter
from concurrent.futures import wait
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING, Any, Self, TextIO

from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggingHandler as SdkLoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

from llmkg_otel._forks import in_child
from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.log_lines import IDS, JsonFormatter, note_ids
from llmkg_otel.telemetry.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry._logs import LogRecord

__all__ = ["CountingProcessor", "JsonLogs", "LogExport", "dropped_records"]

QUEUE_SIZE = 10_000
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


class _ContextQueue(QueueHandler):
    """Notes the caller's ids on the record and queues it; a full queue drops, and counts what it drops."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        note_ids(record)
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1  # the handler's lock is held
            _count_drops("stderr")


class _Listener(QueueListener):
    def __init__(self, records: queue.Queue[Any], output: logging.Handler) -> None:
        super().__init__(records, output)
        self._records = records

    def enqueue_sentinel(self) -> None:
        self._records.put(None)  # waits for room, where the original raises queue.Full


class JsonLogs:
    """Installs the JSON lines on the root logger; a context manager that puts the old handlers back.

    For programs, not for libraries: `llmkg-otel serve` uses it. What `opentelemetry-instrument` has
    installed to export records makes room for a `LogExport` to the same provider, so that these are
    redacted too. Its end writes what is queued, but waits `STOP_SECONDS` at most for a stream that takes no
    lines. `redact` False leaves secrets in.
    """

    def __init__(self, level: str, stream: TextIO | None = None, *, redact: bool = True) -> None:
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_SIZE)
        output = logging.StreamHandler(stream or sys.stderr)
        output.setFormatter(JsonFormatter(redact=redact))
        self._level, self._redact = level.upper(), redact
        self._handler = _ContextQueue(self._records)
        self._exports: list[logging.Handler] = []
        self._listener = _Listener(self._records, output)

    @property
    def dropped(self) -> int:
        """Records lost because the queue was full."""
        return self._handler.dropped

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._before = (list(root.handlers), root.level)
        for handler in self._before[0]:
            if isinstance(handler, logging.StreamHandler):
                root.removeHandler(handler)
            elif isinstance(handler, _EXPORTING) and not isinstance(handler, LogExport):
                root.removeHandler(handler)
                root.addHandler(self._instead_of(handler))
        root.addHandler(self._handler)
        root.setLevel(self._level)
        self._listener.start()
        _writing.add(self)
        return self

    def __exit__(self, *_exc: object) -> None:
        _writing.discard(self)
        root = logging.getLogger()
        for handler in (self._handler, *self._exports):
            root.removeHandler(handler)
        for handler in self._before[0]:
            if handler not in root.handlers:
                root.addHandler(handler)
        root.setLevel(self._before[1])
        wait([in_daemon_thread(self._finish, "llmkg-logs")], STOP_SECONDS)

    def start_in_fork(self) -> None:
        """Write the lines of a fork, which has no thread that would; what is queued is the parent's."""
        self._records = queue.Queue(QUEUE_SIZE)
        self._handler.queue = self._records
        self._listener = _Listener(self._records, *self._listener.handlers)
        self._listener.start()

    def _instead_of(self, handler: LoggingHandler | SdkLoggingHandler) -> LogExport:
        provider = handler._logger_provider  # noqa: SLF001 - it tells nobody else
        export = LogExport(handler.level, provider, redact=self._redact)
        self._exports.append(export)
        return export

    def _finish(self) -> None:
        if self.dropped:
            record = logging.makeLogRecord(
                {"name": __name__, "levelname": "WARNING", "msg": f"{self.dropped} log records were dropped"}
            )
            self._records.put(record)
        self._listener.stop()


_writing: weakref.WeakSet[JsonLogs] = weakref.WeakSet()


def _after_fork() -> None:
    global _drop_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _drop_lock = threading.Lock()
    for logs in tuple(_writing):
        logs.start_in_fork()


in_child(_after_fork)


class LogExport(LoggingHandler):
    """Hands the root logger's records to the global logger provider, unless another handler does.

    The SDK, the logging instrumentation and `opentelemetry-instrument` each may have added a handler of
    theirs, or add it later. Of several of ours the first exports. What OpenTelemetry itself logs, its
    exporters' failures above all, is left out: it must not feed the exporter. Secrets are redacted unless
    `redact` is False; a record inside a call has its operation and correlation id as attributes. A record
    that cannot be told is no error for whoever logs it.
    """

    def __init__(self, *args: Any, redact: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self._redact = redact

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether this handler is the one to export this record."""
        exporting = [h for h in logging.getLogger().handlers if isinstance(h, _EXPORTING)]
        alone = exporting[:1] == [self] and all(isinstance(h, LogExport) for h in exporting)
        return alone and not record.name.startswith("opentelemetry") and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Export a record; what goes wrong is told as logging tells it."""
        try:
            super().emit(record)
        except Exception:  # noqa: BLE001 - the stock handler would raise it in the caller
            self.handleError(record)

    def _translate(self, record: logging.LogRecord) -> LogRecord:
        ids = note_ids(record)
        told = super()._translate(record)
        attributes = dict(told.attributes or {})
        attributes.pop(IDS, None)
        if self._redact:
            told.body, attributes = redact(told.body), redact(attributes)
        for key, name in ((semconv.CORRELATION_ID, "correlation_id"), (semconv.OPERATION_NAME, "operation")):
            if name in ids:
                attributes[key] = ids[name]
        told.attributes = attributes
        return told


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
