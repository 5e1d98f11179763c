"""JSON log lines: complete, off the request path, and bounded."""

from __future__ import annotations

import io
import json
import logging
import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs import LoggingHandler as SdkLoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from llmkg_otel.telemetry.log_lines import call_ids
from llmkg_otel.telemetry.logs import QUEUE_SIZE, CountingProcessor, JsonLogs, LogExport, dropped_records
from llmkg_otel.telemetry.records import EVENT_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

DROPPED = "llmkg.telemetry.logs.dropped"
BURST = 100_000


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in stream.getvalue().split("\n") if line]


def logged(write: Callable[[logging.Logger], object], level: str = "info") -> list[dict[str, Any]]:
    stream = io.StringIO()
    with JsonLogs(level, stream):
        write(logging.getLogger("some.library"))
    return lines(stream)


class BlockedStream(io.StringIO):
    """A terminal that nobody reads: the first write blocks until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked, self.go = threading.Event(), threading.Event()

    def write(self, text: str, /) -> int:
        self.blocked.set()
        self.go.wait(20)
        return super().write(text)


def test_a_line_has_time_level_logger_message_and_the_records_own_attributes() -> None:
    def write(logger: logging.Logger) -> None:
        logger.warning("%s\nof %d", "two lines", 2, extra={"size": 3, EVENT_NAME: "it.happened"})

    (line,) = logged(write)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "some.library",
        "message": "two lines\nof 2",
        "event": "it.happened",
        "size": 3,
    }


def test_an_exception_is_there_with_its_traceback() -> None:
    def write(logger: logging.Logger) -> None:
        try:
            int("lost")
        except ValueError:
            logger.exception("failed")

    (line,) = logged(write)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("base 10: 'lost'\n")
    assert "exception" not in logged(lambda logger: logger.error("failed", exc_info=True))[0]  # noqa: LOG014 - on purpose


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (math.nan, "nan"),
        ([math.inf], ["inf"]),
        (2**63, "9223372036854775808"),
        ({1}, "{1}"),
        ({(1,): 2}, {"(1,)": 2}),
        (io.SEEK_SET, 0),
        ("\u2028 ünï \x9b", "\u2028 ünï \x9b"),
    ],
)
def test_whatever_an_attribute_is_the_line_is_valid_json(value: object, told: object) -> None:
    (line,) = logged(lambda logger: logger.info("odd", extra={"value": value}))
    assert line["message"] == "odd"
    assert line["value"] == told


async def test_inside_a_call_a_line_has_its_operation_and_ids(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("engine")
    with JsonLogs("info", stream):
        for given in (None, "correlated-1"):
            await system.execute_protected_operation(
                "op", lambda: logger.info("working"), correlation_id=given
            )
        logger.info("outside")
    own, given_line, outside = [line for line in lines(stream) if line["logger"] == "engine"]
    for line, span in zip((own, given_line), telemetry.spans("op"), strict=True):
        assert span.context is not None
        assert line["trace_id"] == trace.format_trace_id(span.context.trace_id)
        assert line["span_id"] == trace.format_span_id(span.context.span_id)
        assert line["operation"] == "op"
    assert own["correlation_id"] == own["trace_id"]
    assert given_line["correlation_id"] == "correlated-1"
    assert not {"trace_id", "span_id", "correlation_id", "operation"} & set(outside)
    assert call_ids().get("correlation_id") is None


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_is_respected(level: str, expected: list[str]) -> None:
    def write(logger: logging.Logger) -> None:
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)("said")

    assert [line["level"] for line in logged(write, level)] == expected


def test_afterwards_the_root_logger_is_as_it_was() -> None:
    root = logging.getLogger()
    stream, kept = logging.StreamHandler(io.StringIO()), logging.NullHandler()
    root.addHandler(stream)
    root.addHandler(kept)
    before = (set(root.handlers), root.level)
    with JsonLogs("debug", io.StringIO()):
        assert stream not in root.handlers
        assert kept in root.handlers
        assert root.level == logging.DEBUG
    assert (set(root.handlers), root.level) == before
    root.removeHandler(stream)
    root.removeHandler(kept)


def test_a_stream_that_blocks_blocks_no_caller_and_what_did_not_fit_is_counted() -> None:
    stream = BlockedStream()
    logger = logging.getLogger("burst")
    before = dropped_records()["stderr"]
    with JsonLogs("info", stream) as logs:
        logger.info("first")
        assert stream.blocked.wait(20)
        for number in range(BURST):
            logger.info("line %d", number)
        assert logs.dropped == BURST - QUEUE_SIZE
        assert dropped_records()["stderr"] - before == logs.dropped
        stream.go.set()
    messages = [line["message"] for line in lines(stream)]
    assert messages[:2] == ["first", "line 0"]
    assert messages[-1] == f"{BURST - QUEUE_SIZE} log records were dropped"
    assert len(messages) == 1 + QUEUE_SIZE + 1


def test_the_end_does_not_wait_for_a_stream_that_stays_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkg_otel.telemetry.logs.STOP_SECONDS", 0.05)
    stream = BlockedStream()
    ended = threading.Event()

    def use() -> None:
        with JsonLogs("info", stream):
            for _ in range(QUEUE_SIZE + 2):
                logging.getLogger("burst").info("line")
        ended.set()

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert ended.wait(15)
    stream.go.set()
    thread.join()


@contextmanager
def exporting_to(provider: LoggerProvider) -> Iterator[LogExport]:
    export = LogExport(logger_provider=provider)
    logging.getLogger().addHandler(export)
    try:
        yield export
    finally:
        logging.getLogger().removeHandler(export)


class Blocked(InMemoryLogRecordExporter):
    """A collector that takes nothing before it is released."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the SDK left it untyped
        self.entered, self.release = threading.Event(), threading.Event()

    def export(self, batch: Any) -> Any:
        self.entered.set()
        self.release.wait(20)
        return super().export(batch)


def test_a_burst_that_no_collector_takes_blocks_no_caller_and_is_counted(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry
) -> None:
    system = make_system()
    exporter = Blocked()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(
        CountingProcessor(exporter, max_queue_size=100, max_export_batch_size=10)
    )
    before = dropped_records()["otlp"]
    with exporting_to(provider):
        for number in range(5_000):
            logging.getLogger("burst").warning("line %d", number)
            if number == 9:  # one batch: the SDK says of what it takes meanwhile that it were dropped
                assert exporter.entered.wait(20)
    dropped = dropped_records()["otlp"] - before
    points = {dict(key)["destination"]: value for key, value in telemetry.metric(DROPPED).items()}
    exporter.release.set()
    provider.shutdown()
    assert not system.closed
    assert points == dropped_records()
    assert dropped == 5_000 - 100 - 10
    assert len(exporter.get_finished_logs()) == 5_000 - dropped


async def test_an_exported_record_has_the_ids_of_its_call_and_none_of_the_lines(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    with JsonLogs("info", io.StringIO()), exporting_to(telemetry.logger_provider):
        await system.execute_protected_operation(
            "op", lambda: logging.getLogger("engine").info("working"), correlation_id="correlated-1"
        )
        logging.getLogger("opentelemetry.exporter.otlp").error("lost")
    (span,) = telemetry.spans("op")
    (entry,) = [entry for entry in telemetry.logs() if entry.log_record.body == "working"]
    assert span.context is not None
    assert entry.log_record.trace_id == span.context.trace_id
    assert dict(entry.log_record.attributes or {}) == {
        "llmkg.correlation.id": "correlated-1",
        "llmkg.operation.name": "op",
    }
    assert not [entry for entry in telemetry.logs() if entry.log_record.body == "lost"]


def test_what_opentelemetry_instrument_has_installed_is_redacted_and_comes_back(
    telemetry: CapturedTelemetry,
) -> None:
    root = logging.getLogger()
    theirs = LoggingHandler(logger_provider=telemetry.logger_provider)
    root.addHandler(theirs)
    try:
        with JsonLogs("info", io.StringIO()):
            logging.getLogger("engine").warning("password=hunter2-again")
        assert theirs in root.handlers
        assert not [handler for handler in root.handlers if isinstance(handler, LogExport)]
    finally:
        root.removeHandler(theirs)
    assert [entry.log_record.body for entry in telemetry.logs()] == ["password=[redacted]"]


@contextmanager
def on_the_root_logger(*handlers: logging.Handler) -> Iterator[None]:
    before = logging.getLogger().handlers.copy()
    for handler in handlers:
        logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().handlers[:] = before


def sdk_handler(provider: LoggerProvider) -> logging.Handler:
    with pytest.warns(DeprecationWarning, match="LoggingHandler"):
        return SdkLoggingHandler(logger_provider=provider)


@pytest.mark.parametrize(
    "kind", [sdk_handler, lambda provider: LoggingHandler(logger_provider=provider, log_code_attributes=True)]
)
async def test_while_a_system_is_there_what_opentelemetrys_own_handlers_export_is_redacted_and_once(
    kind: Callable[[LoggerProvider], logging.Handler],
    make_system: Callable[..., ProductionSystem],
    telemetry: CapturedTelemetry,
) -> None:
    theirs, other = kind(telemetry.logger_provider), logging.StreamHandler(io.StringIO())
    with on_the_root_logger(theirs, other):
        handlers, logger = logging.getLogger().handlers.copy(), logging.getLogger("engine")
        system = make_system()
        logger.warning("made: password=hunter2-again")
        async with system:
            logger.warning("serving: password=hunter2-again", extra={"detail": "token=hunter2-again"})
        logger.warning("ended: password=mine-to-tell")
        assert logging.getLogger().handlers == handlers
        assert not theirs.filters
    entries = [e for e in telemetry.logs() if str(e.log_record.body).startswith(("made", "serv", "end"))]
    assert [entry.log_record.body for entry in entries] == [
        "made: password=[redacted]",
        "serving: password=[redacted]",
        "ended: password=mine-to-tell",
    ]
    attributes = dict(entries[1].log_record.attributes or {})
    assert attributes["detail"] == "token=[redacted]"
    assert attributes["code.file.path"] == __file__
    assert "made: password=hunter2-again" in other.stream.getvalue()


async def test_a_handler_of_opentelemetrys_that_is_added_before_the_start_is_redacted_as_it_is_set_up(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry
) -> None:
    system = make_system()
    theirs = LoggingHandler(logging.ERROR, logger_provider=telemetry.logger_provider)
    theirs.setFormatter(logging.Formatter("<%(message)s>"))
    theirs.addFilter(lambda record: "unwanted" not in record.getMessage())
    with on_the_root_logger(theirs):
        async with system:
            for message in ("password=hunter2-again", "unwanted"):
                logging.getLogger("engine").error(message)
            logging.getLogger("engine").warning("below its level")
    said = [entry.log_record for entry in telemetry.logs() if "password" in str(entry.log_record.body)]
    assert [each.body for each in said] == ["<password=[redacted]"]
    assert not [each for each in telemetry.logs() if "unwanted" in str(each.log_record.body)]
    assert not [each for each in telemetry.logs() if "below" in str(each.log_record.body)]


async def test_without_redaction_opentelemetrys_own_handlers_are_left_alone(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry
) -> None:
    theirs = LoggingHandler(logger_provider=telemetry.logger_provider)
    with on_the_root_logger(theirs):
        async with make_system(monitoring={"redact_secrets": False}):
            assert not theirs.filters
            logging.getLogger("engine").warning("password=hunter2-again")
    assert "password=hunter2-again" in [entry.log_record.body for entry in telemetry.logs()]
