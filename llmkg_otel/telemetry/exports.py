"""Whether telemetry leaves the process: what the SDK's exporters and queues complain of."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ExportWatch"]

EXPORTING = (
    "opentelemetry.exporter.",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk._logs._internal.export",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.trace.export",
)
"""Loggers of the exporters that come with OpenTelemetry, and of the queues before any exporter."""

TRANSIENT = "Transient error"
"""How the OTLP exporters begin when they are going to try again."""

MEMORY_SECONDS = 90.0
"""Metrics are exported once a minute and give up after 10 s: an outage is told of at least this often."""

MESSAGE_LENGTH = 200


class ExportWatch(logging.Handler):
    """Remembers the last failed export or full queue, between `start` and `stop`.

    Listens to the SDK's own log, on the logger `opentelemetry`, and changes nothing about where else that
    goes. The SDK's counters (`otel.sdk.exporter.*`, `otel.sdk.processor.*`) tell the same, but only where
    OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED is set, which costs three more counter records a span.
    Exporters of other makers are heard of only when they raise. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._last: tuple[float, str] | None = None
        self._logger = logging.getLogger("opentelemetry")

    @property
    def problem(self) -> str | None:
        """What went wrong last, if that was in the last 90 seconds."""
        last = self._last
        return last[1] if last is not None and self._clock() - last[0] <= MEMORY_SECONDS else None

    def start(self) -> None:
        """Begin to listen."""
        self._logger.addHandler(self)

    def stop(self) -> None:
        """Stop listening."""
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Note what is about exporting; let the last resort have it all, which a handler keeps from it."""
        if record.name.startswith(EXPORTING) and not str(record.msg).startswith(TRANSIENT):
            self._last = self._clock(), record.getMessage()[:MESSAGE_LENGTH]
        handlers = [*self._logger.handlers, *logging.getLogger().handlers]
        unheard = all(isinstance(each, ExportWatch) for each in handlers)
        if unheard and handlers[0] is self and logging.lastResort is not None:
            logging.lastResort.handle(record)
