"""/logs: the last records, filtered, for operators, and bounded whatever is logged."""

from __future__ import annotations

import json
import logging
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import run
from support.servers import Answer, http_get

from llmkg_otel.config import MonitoringConfig, ServerConfig
from llmkg_otel.server.ops import OpsServer
from llmkg_otel.telemetry.recent_logs import LONGEST_LINE, RecentLogs
from llmkg_otel.telemetry.records import EVENT_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry

log = logging.getLogger("engine")
TOKEN = "operator-token-of-24-chars"


@pytest.fixture
def recent() -> Iterator[RecentLogs]:
    ring = RecentLogs(3)
    ring.start()
    yield ring
    ring.stop()


def messages(found: list[dict[str, Any]]) -> list[str]:
    return [line["message"] for line in found]


def test_the_last_records_are_kept_and_read_oldest_first(recent: RecentLogs) -> None:
    for number in range(5):
        log.warning("line %d", number)
    assert messages(recent.read()) == ["line 2", "line 3", "line 4"]
    assert messages(recent.read(limit=2)) == ["line 3", "line 4"]
    recent.stop()
    log.warning("afterwards")
    assert messages(recent.read(limit=1)) == ["line 4"]


def test_a_record_that_is_too_long_is_cut_and_stays_json(recent: RecentLogs) -> None:
    log.warning("x" * 1_000_000, extra={"event": "y" * 1_000_000})
    (line,) = recent.read()
    assert line["truncated"] is True
    assert len(line["line"]) == LONGEST_LINE
    assert '"logger": "engine"' in line["line"]


def test_a_burst_from_many_threads_loses_nothing_of_the_last_and_grows_no_memory() -> None:
    ring = RecentLogs(1000)
    logger = logging.getLogger("burst-in-a-ring")
    logger.propagate = False  # pytest keeps what reaches the root
    logger.addHandler(ring)

    def burst() -> None:
        for number in range(2_500):
            logger.warning("line %d of a burst, with %s", number, "some text")

    def run() -> None:
        threads = [threading.Thread(target=burst) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            ring.read(limit=5)
        for thread in threads:
            thread.join()

    run()
    assert len(ring.read(limit=10_000)) == 1000
    tracemalloc.start()
    run()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    logger.removeHandler(ring)
    assert grown < 1_500_000  # a thousand new lines for a thousand old ones; ten thousand would be 4 MB


PLAIN = """
    async def main():
        async with make() as system:
            logging.getLogger("theirs").warning("of theirs")
            logging.getLogger("llmkg_otel").warning("of ours")
            kept = [line["message"] for line in system.telemetry.recent_logs.read()]
            logging.basicConfig(format="set up: %(message)s")
            logging.getLogger("theirs").warning("later")
            told(theirs="of theirs" in kept, ours="of ours" in kept)
    asyncio.run(main())
"""


def test_a_program_that_has_not_set_up_logging_sees_and_sets_up_what_it_would_without_us() -> None:
    done = run(PLAIN)
    assert done.stderr.splitlines()[:2] == ["of theirs", "of ours"]
    assert "set up: later" in done.stderr
    assert json.loads(done.stdout) == {"theirs": False, "ours": True}


@pytest.fixture
def serve(make_system: Callable[..., ProductionSystem]) -> Callable[..., ProductionSystem]:
    def make(**server: Any) -> ProductionSystem:
        return make_system(
            server=ServerConfig(ops_port=0, **server), monitoring=MonitoringConfig(max_log_entries=50)
        )

    return make


def ask(ops: OpsServer, query: str = "", token: str | None = None) -> Answer:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return http_get(f"{ops.url}/logs{query}", headers)


def told(ops: OpsServer, query: str = "") -> list[dict[str, Any]]:
    answer = ask(ops, query)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = json.loads(answer.body)["logs"]
    return found


async def test_an_operator_finds_what_a_call_logged_by_its_correlation_id_level_and_event(
    serve: Callable[..., ProductionSystem], telemetry: CapturedTelemetry
) -> None:
    system = serve()

    def work() -> None:
        log.warning("working")
        log.error("failing", extra={EVENT_NAME: "engine.failed"})

    async with system:
        with OpsServer(system) as ops:
            await system.execute_protected_operation("op", work, correlation_id="correlated-1")
            await system.execute_protected_operation("op", work)
            log.warning("outside")
            (_, second) = telemetry.spans("op")
            assert second.context is not None
            trace_id = format(second.context.trace_id, "032x")
            engine = [line for line in told(ops, "?limit=50") if line["logger"] == "engine"]
            assert messages(engine) == ["working", "failing", "working", "failing", "outside"]
            assert messages(told(ops, "?correlation_id=correlated-1")) == ["working", "failing"]
            assert [line["trace_id"] for line in told(ops, f"?correlation_id={trace_id}")] == [trace_id] * 2
            assert messages(told(ops, "?level=error")) == ["failing"] * 2
            assert messages(told(ops, "?event=engine.failed&limit=1")) == ["failing"]
            assert told(ops, "?event=never.happened") == []
            for number in range(60):
                log.warning("line %d", number)
            assert messages(told(ops, "?limit=1000")) == [f"line {number}" for number in range(10, 60)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?limit=0", "limit: Input should be greater than or equal to 1, not '0'"),
        ("?level=loud", "level: Input should be 'debug', 'info', 'warning' or 'error', not 'loud'"),
        (
            "?correlation=x",
            "correlation is no parameter of /logs; known: limit, level, event, correlation_id",
        ),
    ],
)
async def test_a_wrong_parameter_is_named_with_what_is_allowed(
    serve: Callable[..., ProductionSystem], query: str, said: str
) -> None:
    system = serve()
    async with system:
        with OpsServer(system) as ops:
            answer = ask(ops, query)
    assert answer.status == 400
    assert json.loads(answer.body)["detail"] == said


async def test_only_operators_read_logs(serve: Callable[..., ProductionSystem]) -> None:
    system = serve(operator_token=TOKEN)
    async with system:
        with OpsServer(system) as ops:
            log.warning("told to operators")
            for given in (None, "another-token-of-24-chars"):
                refused = ask(ops, token=given)
                assert refused.status == 401
                assert "told to operators" not in refused.body
            assert "told to operators" in ask(ops, token=TOKEN).body


@pytest.mark.parametrize(("redact", "said"), [(True, "[redacted]"), (False, "hunter2-again")])
async def test_secrets_are_hidden_unless_the_configuration_says_otherwise(
    make_system: Callable[..., ProductionSystem], redact: bool, said: str
) -> None:
    async with make_system(monitoring=MonitoringConfig(redact_secrets=redact)) as system:
        log.warning("password=hunter2-again")
        assert f"password={said}" in messages(system.telemetry.recent_logs.read())


@pytest.mark.parametrize("extra", [{"password": "hunter2"}, "plain", None])
def test_no_attribute_of_a_users_is_taken_for_our_own(recent: RecentLogs, extra: Any) -> None:
    log.warning("told", extra={"llmkg": extra})
    [line] = recent.read()
    assert line["message"] == "told"
    assert line["llmkg"] == ({"password": "[redacted]"} if isinstance(extra, dict) else extra)
