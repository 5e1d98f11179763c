"""The three ways by which a log record leaves the process, side by side."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkg_otel.telemetry.logs import JsonLogs, LogExport
from llmkg_otel.telemetry.recent_logs import RecentLogs
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Told", "every_way_out"]


class Told:
    """What left by each way: JSON lines on stderr, the ring, and OTLP."""

    def __init__(self) -> None:
        self.stderr, self.ring = io.StringIO(), RecentLogs(10)
        self.otlp: list[Any] = []

    def everything(self) -> dict[str, str]:
        lines = [json.loads(line) for line in self.stderr.getvalue().splitlines()]
        records = [[each.log_record.body, dict(each.log_record.attributes or {})] for each in self.otlp]
        ways = {"stderr": lines, "ring": self.ring.read(), "otlp": records}
        assert [len(told) for told in ways.values()] == [1, 1, 1]
        return {way: json.dumps(told, ensure_ascii=False, default=str) for way, told in ways.items()}


@contextmanager
def every_way_out(*, redact: bool = True) -> Iterator[Told]:
    told = Told()
    told.ring = RecentLogs(10, redact=redact)
    with captured_telemetry() as captured:
        export = LogExport(logger_provider=captured.logger_provider, redact=redact)
        with JsonLogs("info", told.stderr, redact=redact):
            logging.getLogger().addHandler(export)
            told.ring.start()
            try:
                yield told
            finally:
                told.ring.stop()
                logging.getLogger().removeHandler(export)
        told.otlp = captured.logs()
