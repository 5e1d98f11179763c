"""One log record as one JSON line, and the ids that tie it to its call."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from llmkg_otel.call import current_call
from llmkg_otel.telemetry import redaction
from llmkg_otel.telemetry.records import EVENT_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["IDS", "JsonFormatter", "correlation_id", "note_ids"]

IDS = "_llmkg_call_ids"
"""The record's attribute that holds the ids of its call."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", IDS}


def correlation_id() -> str | None:
    """Return the id that ties this call's traces, logs and answer together.

    The caller's own if it sent a well-formed one, else the trace id; None outside any trace.
    """
    call = current_call()
    if call is not None and call.correlation_id is not None:
        return call.correlation_id
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def note_ids(record: logging.LogRecord) -> Mapping[str, str]:
    """Note the ids of the call that the calling thread is in on the record, once; return them.

    Keys, each only where there is one: trace_id, span_id, correlation_id, operation.
    """
    ids: dict[str, str] | None = getattr(record, IDS, None)
    if ids is not None:
        return ids
    ids = {}
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        ids["trace_id"] = trace.format_trace_id(context.trace_id)
        ids["span_id"] = trace.format_span_id(context.span_id)
    if (correlation := correlation_id()) is not None:
        ids["correlation_id"] = correlation
    if (call := current_call()) is not None:
        ids["operation"] = call.operation
    setattr(record, IDS, ids)
    return ids


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, ids, and the record's own attributes.

    Secrets are redacted unless `redact` is False: see `redaction`.
    """

    def __init__(self, *, redact: bool = True) -> None:
        super().__init__()
        self._redact = redact

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
        line = {**line, **attributes, **line}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        if self._redact:
            line = redaction.redact(line)
        return _json(line | getattr(record, IDS, {}))


def _json(line: dict[str, Any]) -> str:
    try:
        return json.dumps(line, default=str, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # JSON has no infinity, no cycle, no key but text
        plain = {k: v if isinstance(v, str | int | None) else str(v) for k, v in line.items()}
        return json.dumps(plain, ensure_ascii=False)
