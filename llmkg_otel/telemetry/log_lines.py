"""What is told of a log record: once, for every way out, as a JSON line too."""

from __future__ import annotations

import json
import logging
import re
import threading
import traceback
import weakref
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from llmkg_otel.call import current_call
from llmkg_otel.telemetry.records import EVENT_NAME
from llmkg_otel.telemetry.redaction import LONGEST, plain_name, plain_text, plain_value

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LogEntry", "call_ids", "entry_of"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CALL = ("trace_id", "span_id", "correlation_id", "operation")
_OURS = frozenset(("timestamp", "level", "logger", "message", "event", "exception", "stack", *_CALL))
"""Keys of a line that no attribute of a user's record can have: there it is `extra.level`."""
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys or takes for the end of a line; JSON escapes only what is below a space."""


def call_ids() -> Mapping[str, str]:
    """Return the ids of the call that this thread is in, each only where there is one.

    The correlation id ties the call's traces, logs and answer together: the caller's own if it sent a
    well-formed one, else the trace id.
    """
    ids: dict[str, str] = {}
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        ids["trace_id"] = ids["correlation_id"] = trace.format_trace_id(context.trace_id)
        ids["span_id"] = trace.format_span_id(context.span_id)
    if (call := current_call()) is not None:
        ids["operation"] = call.operation
        if call.correlation_id is not None:
            ids["correlation_id"] = call.correlation_id
    return ids


class LogEntry:
    """A record as plain data of bounded size, which shares nothing with it; secrets are redacted.

    `ids`: of the call that logged it, from its context and never from the record: trace_id, span_id,
    correlation_id, operation. `exception`: the traceback, or None. A record that cannot be formatted is
    told by its unformatted message and `format_error`.
    """

    __slots__ = (
        "_line",
        "attributes",
        "created",
        "event",
        "exception",
        "ids",
        "level",
        "logger",
        "message",
        "stack",
    )

    def __init__(self, record: logging.LogRecord, *, redact: bool) -> None:
        self.created, self.level, self.logger = record.created, record.levelname, plain_name(record.name)
        self.ids, self._line = call_ids(), ""
        attributes = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        message: object
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a user's format and arguments may raise anything
            message = record.msg
            attributes["format_error"] = f"{type(error).__name__} at {record.pathname}:{record.lineno}"
        self.message = plain_text(message, redact=redact)
        event = attributes.pop(EVENT_NAME, None)
        self.event = None if event is None else plain_text(event, redact=redact)
        self.attributes: dict[str, Any] = plain_value(attributes, redact=redact) if attributes else attributes
        exception = _exception(record)
        self.exception = None if exception is None else plain_text(exception, redact=redact)
        self.stack = None if record.stack_info is None else plain_text(record.stack_info, redact=redact)

    def line(self) -> str:
        """Return it as one line of JSON, without its end; made once."""
        if not self._line:
            self._line = self._told()
        return self._line

    def _told(self) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(self.created, UTC).isoformat(timespec="milliseconds"),
            "level": self.level.lower(),
            "logger": self.logger,
            "message": self.message,
            **self.ids,
        }
        for key in ("event", "exception", "stack"):
            if (value := getattr(self, key)) is not None:
                line[key] = value
        for key, value in self.attributes.items():
            if key not in _OURS or (self.logger.startswith("llmkg_otel") and key not in line):
                line[key] = value
            elif line.get(key) != value:
                line[f"extra.{key}"] = value
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        if text.isascii() and "\x7f" not in text:
            return text
        return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _exception(record: logging.LogRecord) -> str | None:
    """Return the traceback, of a long one the last frames: what was raised stands at its end."""
    if not record.exc_info or record.exc_info[0] is None:
        return record.exc_text or None
    try:
        parts = traceback.format_exception(*record.exc_info)
    except Exception as error:  # noqa: BLE001 - a user's exception may have broken parts
        return f"{record.exc_info[0].__name__} without a traceback: {type(error).__name__}"
    if sum(map(len, parts)) <= LONGEST:
        return "".join(parts)
    head, tail, room = [parts[0]], [], LONGEST // 2
    for part in reversed(parts[1:]):
        if (room := room - len(part)) < 0:
            break
        tail.append(part)
    left_out = len(parts) - len(head) - len(tail)
    return "".join((*head, f"  [{left_out} frames left out]\n", *reversed(tail or parts[-1:])))


_latest = threading.local()
"""The record this thread has told last: one handler after the other asks for the same."""


def entry_of(record: logging.LogRecord, *, redact: bool) -> LogEntry:
    """Return what is told of a record: made by the first handler that asks, on the thread that logs.

    So arguments are told as they were when logged, and no queue holds on to them. Nothing is left on the
    record, where other handlers would find it. Never raises an Exception.
    """
    known: tuple[weakref.ref[logging.LogRecord], bool, LogEntry] | None = getattr(_latest, "entry", None)
    if known is not None and known[0]() is record and known[1] is redact:
        return known[2]
    entry = LogEntry(record, redact=redact)
    _latest.entry = (weakref.ref(record), redact, entry)
    return entry
