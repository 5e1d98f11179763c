"""What is told of a record by every way out: once, as it was logged, bounded, never taken for our own."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from support.log_ways import every_way_out
from support.processes import run

from llmkg_otel.telemetry.log_lines import LogEntry
from llmkg_otel.telemetry.logs import QUEUE_CHARACTERS, JsonLogs, LogExport, dropped_records
from llmkg_otel.telemetry.recent_logs import RecentLogs
from llmkg_otel.telemetry.records import EVENT_NAME
from llmkg_otel.telemetry.redaction import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

log = logging.getLogger("engine")
MIB = 2**20


class Counted:
    """Counts how often it is made text of."""

    def __init__(self) -> None:
        self.told = 0

    def __str__(self) -> str:
        self.told += 1
        return f"told {self.told}"


class Broken:
    """Has no text."""

    def __str__(self) -> str:
        raise LookupError("password=Zq7-hunter-Xk9")

    __repr__ = __str__


class Chatty:
    """Logs itself while it is logged."""

    def __str__(self) -> str:
        log.warning("asked for text: %s", self)
        return "text"


def line_of(**record: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(LogEntry(logging.makeLogRecord(record), redact=True).line())
    return told


def test_a_record_is_formatted_once_for_all_ways_out_and_nothing_is_left_on_it() -> None:
    counted, seen = Counted(), logging.NullHandler()
    seen.handle = records.append  # type: ignore[method-assign, assignment]
    with every_way_out() as told:
        logging.getLogger().addHandler(seen)
        try:
            log.warning("it is %s", counted, extra={"at": Counted()})
        finally:
            logging.getLogger().removeHandler(seen)
    assert counted.told == 1
    assert all('"it is told 1"' in said for said in told.everything().values())
    (record,) = records
    assert set(vars(record)) - set(vars(logging.makeLogRecord({}))) <= {"at", "message"}


records: list[logging.LogRecord] = []


def test_arguments_and_attributes_are_told_as_they_were_when_logged() -> None:
    facts = ["first"]
    stream = io.StringIO()
    with JsonLogs("info", stream):
        for _ in range(100):
            log.info("knows %s", facts, extra={"facts": facts})
        facts.append("later")
    assert "later" not in stream.getvalue()


def test_what_a_queue_holds_keeps_no_argument_alive() -> None:
    class Graph:
        __slots__ = ("__weakref__",)

    graph = Graph()
    gone = weakref.ref(graph)
    with every_way_out() as told:
        log.warning("asked %s", graph, extra={"graph": graph})
        del graph
        assert gone() is None
    assert told.ring.read()


@pytest.mark.parametrize("name", ["correlation_id", "trace_id", "span_id", "operation", "event", "level"])
def test_a_users_attribute_is_shown_beside_our_own_and_never_as_our_own(name: str) -> None:
    with every_way_out() as told:
        log.warning("outside of any call", extra={name: "theirs"})
    (line,) = told.ring.read()
    assert line.get(name) != "theirs"
    assert line[f"extra.{name}"] == "theirs"
    assert not told.ring.read(correlation_id="theirs")
    assert not told.ring.read(event="theirs")


async def test_a_call_is_found_by_its_own_correlation_id_whatever_its_records_claim(
    make_system: Callable[..., ProductionSystem], telemetry: CapturedTelemetry
) -> None:
    system = make_system()
    export = LogExport(logger_provider=telemetry.logger_provider)

    def work() -> None:
        log.warning("working", extra={"correlation_id": "victim-0001", "llmkg.correlation.id": "victim-0001"})

    async with system:
        logging.getLogger().addHandler(export)
        try:
            await system.execute_protected_operation("op", work, correlation_id="correlated-1")
            log.warning(
                "outside", extra={"llmkg.operation.name": "op", "_llmkg_call_ids": {"operation": "op"}}
            )
        finally:
            logging.getLogger().removeHandler(export)
        recent = system.telemetry.recent_logs
        (line,) = recent.read(correlation_id="correlated-1")
        assert not recent.read(correlation_id="victim-0001")
    assert line["correlation_id"] == "correlated-1"
    assert line["operation"] == "op"
    assert line["extra.correlation_id"] == "victim-0001"
    exported = {each.log_record.body: dict(each.log_record.attributes or {}) for each in telemetry.logs()}
    inside, outside = exported["working"], exported["outside"]
    assert inside["llmkg.correlation.id"] == "correlated-1"
    assert inside["extra.llmkg.correlation.id"] == inside["correlation_id"] == "victim-0001"
    assert "llmkg.operation.name" not in outside


@pytest.mark.parametrize(
    "evil", ["\n", "\r\n", "\x1b[2J", "\x9b2J", "\x7f", "\u2028", "\u202e", "\x00", "\x85"]
)
def test_no_record_can_pass_for_two_or_command_a_terminal(evil: str) -> None:
    stream = io.StringIO()
    forged = f'{evil}{{"level": "info", "message": "all is well"}}'
    with JsonLogs("info", stream):
        logging.getLogger(f"engine{evil}").warning("said %s", forged, extra={f"a{evil}": evil})
    written = stream.getvalue()
    assert len(written.splitlines()) == 1
    assert evil.strip(" ") not in written.rstrip("\n")
    assert json.loads(written)["message"] == f"said {forged}"


@pytest.mark.parametrize(
    ("message", "args"),
    [("asked %d", ("Zq7",)), ("asked", ("Zq7", 2)), ("%(x)s", ("Zq7",)), ("%s", (Broken(),))],
)
def test_a_record_that_cannot_be_formatted_is_told_without_its_arguments(
    message: str, args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    record = logging.LogRecord("engine", logging.ERROR, "kg.py", 7, message, args, None)
    with every_way_out() as told:
        logging.getLogger().handlers = [
            h for h in logging.getLogger().handlers if "pytest" not in type(h).__module__
        ]
        log.handle(record)
    (line,) = told.ring.read()
    assert line["message"] == message
    assert line["format_error"].endswith("Error at kg.py:7")
    assert not [said for said in told.everything().values() if "Zq7" in said]
    assert capsys.readouterr() == ("", "")


def test_secrets_in_causes_contexts_notes_and_groups_are_hidden() -> None:
    def connect() -> None:
        raise ConnectionError("bolt://u:Zq7/1@db")

    def fail() -> None:
        try:
            connect()
        except ConnectionError as error:
            error.add_note("token=Zq7-hunter")
            raise ExceptionGroup("both", [error, KeyError("password", "Zq7")]) from PermissionError("pwd=Zq7")

    with every_way_out() as told:
        try:
            fail()
        except ExceptionGroup:
            log.exception("failed: %s", "api_key=Zq7")
    for said in told.everything().values():
        assert said.count("[redacted]") >= 4
        assert "Zq7" not in said


def test_the_last_frames_and_the_words_of_a_long_traceback_are_kept() -> None:
    def deep(level: int) -> None:
        if level:
            shallow(level)
        raise ValueError("why it failed")

    def shallow(level: int) -> None:
        deep(level - 1)

    try:
        deep(200)
    except ValueError as error:
        line = line_of(exc_info=(type(error), error, error.__traceback__))
    assert len(line["exception"]) <= LONGEST
    assert "frames left out" in line["exception"]
    assert line["exception"].endswith("ValueError: why it failed\n")


def test_an_exception_of_another_process_and_a_stack_are_told() -> None:
    line = line_of(exc_text="Traceback of theirs, password=Zq7", stack_info="Stack: token=Zq7")
    assert line["exception"] == "Traceback of theirs, password=[redacted]"
    assert line["stack"] == "Stack: token=[redacted]"


def big(kind: str) -> dict[str, Any]:
    text = "x " * MIB
    records: dict[str, dict[str, Any]] = {
        "message": {"msg": text},
        "exception": {"exc_info": (ValueError, ValueError(text), None)},
        "attribute": {"kg": text},
        "attributes": {f"kg.{number}": text for number in range(100)},
        "list": {"kg": list(range(MIB))},
        "names": {"kg": {str(number): None for number in range(MIB)}},
        "bytes": {"kg": b"\x00" * MIB},
    }
    return records[kind]


@pytest.mark.parametrize(
    "kind", ["message", "exception", "attribute", "attributes", "list", "names", "bytes"]
)
def test_a_huge_record_is_cut_and_says_so(kind: str) -> None:
    with every_way_out() as told:
        log.handle(logging.makeLogRecord({"name": "engine", "levelno": 40, "levelname": "ERROR"} | big(kind)))
    stderr, _ring, otlp = told.everything().values()
    for said in (stderr, otlp):
        assert "left out]" in said
        assert len(said) < 4 * LONGEST


def test_no_secret_is_shown_because_it_was_cut_in_two() -> None:
    secret = "bolt://u:" + "Zq7" * 500 + "@db"
    for room in range(LONGEST - 30, LONGEST + 30, 3):
        assert "Zq7" not in line_of(msg="x" * (room - 20) + " " + secret)["message"]


def test_a_value_in_itself_is_told_in_bounded_time_and_size() -> None:
    ring: list[Any] = []
    ring.extend([ring] * 50)
    assert len(json.dumps(line_of(kg=ring))) < 4 * LONGEST


@pytest.mark.parametrize("value", [Chatty(), Broken()])
def test_a_value_that_logs_or_fails_while_it_is_told_is_no_error_for_who_logs_it(value: object) -> None:
    stream = io.StringIO()
    with JsonLogs("info", stream):
        logging.getLogger().handlers = logging.getLogger().handlers[-1:]  # pytest's own raises
        log.warning("it is here", extra={"value": value})
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert told[-1]["message"] == "it is here"


def test_a_stream_that_logs_does_not_feed_itself() -> None:
    class Logged(io.StringIO):
        def write(self, text: str, /) -> int:
            log.warning("wrote %d characters", len(text))
            return super().write(text)

    stream, before = Logged(), dropped_records()["stderr"]
    with JsonLogs("info", stream) as logs:
        log.warning("once")
        logs._lines.flush()
        assert stream.getvalue().count("\n") == 1
    assert dropped_records()["stderr"] - before >= 1


def test_lines_that_a_stream_refuses_are_counted_and_the_next_is_written() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str, /) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    with JsonLogs("info", stream) as logs:
        log.warning("lost")
        logs._lines.flush()
        stream.full = False
        log.warning("written")
        logs._lines.flush()
        assert logs.dropped == 1
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == [
        "written",
        "1 log records were dropped",
    ]


def test_lines_that_nobody_reads_take_bounded_memory() -> None:
    class Unread(io.StringIO):
        go = threading.Event()

        def write(self, text: str, /) -> int:
            self.go.wait(20)
            return super().write(text)

    with JsonLogs("info", Unread()) as logs:
        for _ in range(2_000):
            log.warning("x " * (LONGEST // 2))
        lines = logs._lines
        assert logs.dropped > 1_000
        assert lines._characters_in - lines._characters_out <= QUEUE_CHARACTERS
        Unread.go.set()


def test_what_an_adapter_adds_is_told() -> None:
    with every_way_out() as told:
        logging.LoggerAdapter(log, {"tenant": "a", "password": "Zq7"}).warning("said", extra={"lost": 1})
    (line,) = told.ring.read()
    assert (line["tenant"], line["password"]) == ("a", "[redacted]")


def test_an_exporters_own_http_client_does_not_feed_the_exporter(telemetry: CapturedTelemetry) -> None:
    export = LogExport(logger_provider=telemetry.logger_provider)
    logging.getLogger().addHandler(export)
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # as the SDK does while it exports
    try:
        logging.getLogger("urllib3.connectionpool").warning("POST /v1/logs")
    finally:
        detach(token)
        logging.getLogger().removeHandler(export)
    assert telemetry.logs() == []


def test_a_program_that_sets_up_logging_after_us_is_heard_again() -> None:
    ring = RecentLogs(10)
    root = logging.getLogger()
    before = list(root.handlers)
    ring.start()
    try:
        console = {"class": "logging.StreamHandler", "stream": io.StringIO()}
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"console": console},
                "root": {"handlers": ["console"]},
            }
        )
        assert ring not in root.handlers
        assert ring.read() == []
        log.warning("heard")
        assert [line["message"] for line in ring.read()] == ["heard"]
    finally:
        ring.stop()
        root.handlers[:] = before
    assert ring.read()
    assert ring not in root.handlers


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "logging.shutdown(); os._exit(0)"])
def test_the_last_lines_before_an_exit_are_written(end: str) -> None:
    code = f"""
        from llmkg_otel.telemetry.logs import JsonLogs
        import os
        logs = JsonLogs("info").__enter__()
        for number in range(3000):
            logging.getLogger("engine").warning("line %d", number)
        {end}
    """
    done = run(code)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()][-1] == "line 2999"
    assert len(done.stderr.splitlines()) == 3000


def test_events_keep_their_attributes() -> None:
    told = line_of(name="llmkg_otel.events", operation="op", **{EVENT_NAME: "llmkg.retry.scheduled"})
    assert told["operation"] == "op"
    assert told["event"] == "llmkg.retry.scheduled"
