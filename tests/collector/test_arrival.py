"""What a service sends arrives behind the agent: all of it, as it was, whatever happens in between."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from support.contract_run import ALERT, workload
from support.sending import PROTOCOLS, Sender, arrived, by_id, sending, words, work

from llmkg_otel.telemetry.logs import LogExport
from llmkg_otel.telemetry.semconv import INSTRUMENTS
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.collector import Collector

pytestmark = pytest.mark.timeout(900)  # the first of them may have to build the Collector


@pytest.fixture
def backend() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(protocol="grpc") as receiver:
        yield receiver


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_arrives_is_what_was_sent(
    protocol: str, collect: Callable[..., Collector], backend: OtlpReceiver
) -> None:
    agent = collect("agent.yaml", COLLECTOR_UPSTREAM=backend.endpoint)
    with sending(agent, protocol) as sender:
        await work(sender)
        sender.flush()
        assert arrived(sender, backend)
        assert len(backend.spans()) == len(sender.spans()) > 60
        assert by_id(backend.spans()) == by_id(sender.spans())
        assert words(backend.logs()) == words(sender.logs()) != []
        sent = sender.metrics()
        assert "llmkg.operation.duration" in sent
        assert backend.wait_until(lambda b: all(b.metric(name) == sent[name] for name in sent))


async def test_all_that_the_contract_names_arrives_with_every_attribute_as_it_was_sent(
    collect: Callable[..., Collector],
    backend: OtlpReceiver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = collect("agent.yaml", COLLECTOR_UPSTREAM=backend.endpoint)
    (tmp_path / "rules.yaml").write_text(ALERT)
    with (
        sending(agent, "http") as sender,
        caplog.at_level(logging.DEBUG, "llmkg_otel"),
    ):
        export = LogExport(logger_provider=sender.telemetry.logger_provider)
        logging.getLogger().addHandler(export)
        telemetry = replace(sender.telemetry, meter_provider=sender.meter_provider)
        await workload(telemetry, tmp_path / "rules.yaml")
        logging.getLogger().removeHandler(export)
        sender.flush()
        assert arrived(sender, backend)
        assert by_id(backend.spans()) == by_id(sender.spans())
        assert words(backend.logs()) == words(sender.logs())
        for each in INSTRUMENTS:
            assert backend.wait_until(partial(has, each.name, set(each.attributes))), each.name


def has(name: str, attributes: set[str], backend: OtlpReceiver) -> bool:
    points = backend.metric(name)
    return bool(points) and {key for point in points for key, _ in point} == attributes


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_nothing_is_lost_when_the_agent_ends_in_the_middle(
    protocol: str, end: str, collect: Callable[..., Collector], backend: OtlpReceiver
) -> None:
    agent = collect("agent.yaml", COLLECTOR_UPSTREAM=backend.endpoint)
    with sending(agent, protocol) as sender:
        emitting = threading.Thread(target=emit, args=(sender, 3.0))
        emitting.start()
        for _ in range(2):
            assert backend.wait_until(lambda b: b.spans(), 30)
            time.sleep(0.5)  # in the middle of what is being sent
            getattr(agent, end)()
            agent.start()
        emitting.join()
        sender.flush()
        assert arrived(sender, backend, 60)
        assert by_id(backend.spans()) == by_id(sender.spans())
        assert set(words(backend.logs())) == set(words(sender.logs()))


def test_nothing_is_lost_while_the_back_end_is_away_even_if_the_agent_is_killed_then(
    collect: Callable[..., Collector],
) -> None:
    first = OtlpReceiver(protocol="grpc")
    agent = collect("agent.yaml", COLLECTOR_UPSTREAM=first.endpoint)
    first.close()
    with sending(agent, "grpc") as sender:
        emit(sender, 1.0)
        sender.flush()
        agent.kill()
        agent.start()
        emit(sender, 1.0)
        sender.flush()
        with OtlpReceiver(protocol="grpc", port=first.port) as backend:
            assert arrived(sender, backend, 60)
            assert by_id(backend.spans()) == by_id(sender.spans())
            assert set(words(backend.logs())) == set(words(sender.logs()))


def emit(sender: Sender, seconds: float) -> None:
    """Make about a thousand spans and log records a second."""
    logger = logging.getLogger("sender")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = LoggingHandler(logger_provider=sender.telemetry.logger_provider)
    logger.addHandler(handler)
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends:
        for _ in range(10):
            number += 1
            with sender.tracer.start_as_current_span("numbered", attributes={"number": number}):
                logger.info("numbered %d", number)
        time.sleep(0.01)
    logger.removeHandler(handler)
