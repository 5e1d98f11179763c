"""The operators' port answers from its own thread: a blocked loop cannot keep it from that."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import http_get

from llmkg_otel.config import HealthCheckConfig, ServerConfig
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.server.ops import OpsServer
from llmkg_otel.server.serve import SWITCH_SECONDS, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

SERVER = ServerConfig(port=0, ops_port=0)
PROBES = ("livez", "readyz", "startupz", "healthz")


async def test_every_probe_answers_while_the_loop_is_blocked_and_a_check_hangs(
    make_system: MakeSystem,
) -> None:
    system, release = (
        make_system(server=SERVER, health=HealthCheckConfig(check_timeout_seconds=0.05)),
        (threading.Event()),
    )

    async def hangs() -> None:
        await asyncio.Event().wait()

    def blocks() -> None:
        release.wait(20)

    system.register_health_check("hanging", hangs, essential=False)
    system.register_health_check("stuck", blocks, essential=False)
    with OpsServer(system) as ops:
        await system.start()
        # urllib blocks this thread, and with it the loop, until there is an answer.
        answers = {probe: http_get(f"{ops.url}/{probe}") for probe in PROBES}
        release.set()
        await system.shutdown()
    assert {probe: answer.status for probe, answer in answers.items()} == dict.fromkeys(PROBES, 200)
    assert "TimeoutError: no answer within 0.05 s" in answers["healthz"].body


async def test_liveness_fails_once_the_loop_has_been_blocked_for_five_seconds_and_readiness_does_not(
    make_system: MakeSystem,
) -> None:
    system = make_system(server=SERVER)
    with OpsServer(system) as ops:
        await system.start()
        assert system.heartbeat._last is not None
        system.heartbeat._last -= 6
        alive = http_get(f"{ops.url}/livez")
        ready = http_get(f"{ops.url}/readyz")
        await system.shutdown()
    assert (alive.status, ready.status) == (503, 200)
    assert alive.body.startswith("the event loop has been blocked for 6.")


async def test_grpc_health_without_its_extra_is_an_error_that_names_it(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "llmkg_otel.server.grpc_health", raising=False)
    monkeypatch.setitem(sys.modules, "grpc_health.v1", None)
    system = make_system(server=ServerConfig(port=0, ops_port=0, grpc_health_port=0))
    with pytest.raises(ConfigurationError, match=r"pip install 'llmkg-otel\[grpc-health\]'"):
        await serve(system)


async def test_threads_take_turns_more_often_while_serving(make_system: MakeSystem) -> None:
    before = sys.getswitchinterval()
    system = make_system(server=SERVER)
    serving: asyncio.Task[Any] = asyncio.create_task(serve(system))
    async with asyncio.timeout(20):
        while system.lifecycle.state != "serving":  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    signal.raise_signal(signal.SIGTERM)
    await serving
    assert sys.getswitchinterval() == pytest.approx(before)
