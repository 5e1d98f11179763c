"""The end of a process: what it still has goes out, and no collector holds it up."""

from __future__ import annotations

import socket
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from support.processes import facts, run
from support.servers import Servers

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
START_SECONDS = 10.0
"""What a process may take to start and to import, on a busy machine. The SDK's own exit takes 15 to 30."""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    running = Servers(tmp_path)
    yield running
    running.kill_remaining()


@contextmanager
def silent_collector(protocol: str) -> Iterator[dict[str, str]]:
    """Accept connections and never answer; give the variables that lead a process there."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        yield {
            **{f"OTEL_{signal}_EXPORTER": "otlp" for signal in ("TRACES", "METRICS", "LOGS")},
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
        }


@PROTOCOLS
def test_closing_takes_no_longer_than_it_may(protocol: str) -> None:
    code = """
        system = make()
        system.execute_protected_operation_sync("op", lambda: logging.getLogger("e").warning("hello"))
        began = time.monotonic()
        told(problem=system.telemetry.close(0.3), seconds=time.monotonic() - began)
    """
    with silent_collector(protocol) as environment:
        found = facts(code, **environment)
    assert found["problem"] == "3 of 3 telemetry providers did not finish in 0.3 s"
    assert found["seconds"] < 3


@PROTOCOLS
@pytest.mark.parametrize(
    "code",
    [
        "asyncio.run(use(make(flush=0.3)))",
        """
        from llmkg_otel.telemetry import setup
        setup._lasting.exit_seconds = 0.3  # of 5, for the test's sake
        make().execute_protected_operation_sync("op", lambda: None)
        """,
        """
        from opentelemetry.sdk._configuration import _OTelSDKConfigurator
        from llmkg_otel.telemetry.setup import bound_exit
        type("Theirs", (_OTelSDKConfigurator,), {})().configure()
        system = make(flush=0.3)
        bound_exit()
        asyncio.run(use(system))
        """,
    ],
    ids=["a closed system", "a system that is never closed", "providers of others in a program of ours"],
)
def test_a_collector_that_accepts_and_never_answers_holds_no_exit_up(protocol: str, code: str) -> None:
    with silent_collector(protocol) as environment:
        began = time.monotonic()
        run(code, **environment)
        assert time.monotonic() - began < START_SECONDS


@PROTOCOLS
def test_the_server_exits_within_its_configured_time(protocol: str, servers: Servers) -> None:
    with silent_collector(protocol) as environment:
        server = servers.start(env={**environment, "LLMKG_SHUTDOWN__FLUSH_TIMEOUT_SECONDS": "0.5"})
        began = time.monotonic()
        assert server.terminate() == 1  # telemetry was lost
        assert time.monotonic() - began < START_SECONDS


def test_what_is_recorded_after_the_close_goes_out_at_the_exit() -> None:
    code = """
        asyncio.run(use(make()))
        trace.get_tracer("after").start_span("late").end()
        metrics.get_meter("after").create_counter("late").add(1)
    """
    with OtlpReceiver() as receiver:
        run(code, **receiver.environment())
        assert [span.name for span in receiver.spans(scope="after")] == ["late"]
        assert [point.value for point in receiver.metric("late").values()] == [1]
