"""Log records: as JSON lines on stderr, written off the request path, and to the logger provider."""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import traceback
from concurrent.futures import wait
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Self, TextIO

from opentelemetry import trace
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggingHandler as SdkLoggingHandler

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.call import current_call
from llmkg_otel.telemetry.records import EVENT_NAME

__all__ = ["JsonFormatter", "JsonLogs", "LogExport", "correlation_id"]

QUEUE_SIZE = 10_000
STOP_SECONDS = 5.0

_EXPORTING = (LoggingHandler, SdkLoggingHandler)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "llmkg"}


def correlation_id() -> str | None:
    """Return the id that ties this call's traces, logs and answer together.

    The caller's own if it sent a well-formed one, else the trace id; None outside any trace.
    """
    call = current_call()
    if call is not None and call.correlation_id is not None:
        return call.correlation_id
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, ids, and the record's own attributes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        attributes = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if (event := attributes.pop(EVENT_NAME, None)) is not None:
            line["event"] = event
        line |= getattr(record, "llmkg", {}) | attributes
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        try:
            return json.dumps(line, default=str, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):  # JSON has no infinity, no cycle, no key but text
            plain = {k: v if isinstance(v, str | int | None) else str(v) for k, v in line.items()}
            return json.dumps(plain, ensure_ascii=False)


class _ContextQueue(QueueHandler):
    """Notes the caller's ids on the record and queues it; a full queue drops, and counts what it drops."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.dropped = 0
        self._drop_lock = threading.Lock()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        context = trace.get_current_span().get_span_context()
        ids: dict[str, str | None] = {}
        if context.is_valid:
            ids["trace_id"] = trace.format_trace_id(context.trace_id)
            ids["span_id"] = trace.format_span_id(context.span_id)
        if (correlation := correlation_id()) is not None:
            ids["correlation_id"] = correlation
        if (call := current_call()) is not None:
            ids["operation"] = call.operation
        record.llmkg = ids
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            with self._drop_lock:
                self.dropped += 1


class _Listener(QueueListener):
    def __init__(self, records: queue.Queue[Any], output: logging.Handler) -> None:
        super().__init__(records, output)
        self._records = records

    def enqueue_sentinel(self) -> None:
        self._records.put(None)  # waits for room, where the original raises queue.Full


class JsonLogs:
    """Installs the JSON lines on the root logger; a context manager that puts the old handlers back.

    For programs, not for libraries: `llmkg-otel serve` uses it. Its end writes what is queued, but waits
    `STOP_SECONDS` at most for a stream that takes no lines.
    """

    def __init__(self, level: str, stream: TextIO | None = None) -> None:
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_SIZE)
        output = logging.StreamHandler(stream or sys.stderr)
        output.setFormatter(JsonFormatter())
        self._level = level.upper()
        self._handler = _ContextQueue(self._records)
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
        root.addHandler(self._handler)
        root.setLevel(self._level)
        self._listener.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        root = logging.getLogger()
        root.removeHandler(self._handler)
        for handler in self._before[0]:
            if handler not in root.handlers:
                root.addHandler(handler)
        root.setLevel(self._before[1])
        wait([in_daemon_thread(self._finish, "llmkg-logs")], STOP_SECONDS)

    def _finish(self) -> None:
        if self.dropped:
            record = logging.makeLogRecord(
                {"name": __name__, "levelname": "WARNING", "msg": f"{self.dropped} log records were dropped"}
            )
            self._records.put(record)
        self._listener.stop()


class LogExport(LoggingHandler):
    """Hands the root logger's records to the global logger provider, unless another handler does.

    The SDK, the logging instrumentation and `opentelemetry-instrument` each may have added a handler of
    theirs, or add it later. Of several of ours the first exports. What OpenTelemetry itself logs, its
    exporters' failures above all, is left out: it must not feed the exporter.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether this handler is the one to export this record."""
        exporting = [h for h in logging.getLogger().handlers if isinstance(h, _EXPORTING)]
        alone = exporting[:1] == [self] and all(isinstance(h, LogExport) for h in exporting)
        return alone and not record.name.startswith("opentelemetry") and bool(super().filter(record))
