"""grpc.health.v1 asked by the real client: it says what the HTTP probes say, at every moment."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from support.servers import http_get, wait_until

from llmkg_otel.config import HealthCheckConfig, ServerConfig
from llmkg_otel.health.probes import Probes
from llmkg_otel.health.status import ComponentHealth, HealthStatus
from llmkg_otel.server.grpc_health import GrpcHealthServer, serving_statuses
from llmkg_otel.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.servers import Servers

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

STATUS = health_pb2.HealthCheckResponse
REQUEST = health_pb2.HealthCheckRequest
ONCE = HealthCheckConfig(failure_threshold=1, check_interval_seconds=1000)


class Client:
    """Asks over a real connection, from threads: the loop under test may be busy."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self._stub = health_pb2_grpc.HealthStub(self.channel)

    def check(self, service: str = "") -> str:
        try:
            answer = self._stub.Check(REQUEST(service=service), timeout=10)
            return str(STATUS.ServingStatus.Name(answer.status))
        except grpc.RpcError as error:
            return str(error.code().name)

    def watch(self, service: str = "") -> queue.Queue[str]:
        seen: queue.Queue[str] = queue.Queue()
        answers = self._stub.Watch(REQUEST(service=service))

        def read() -> None:
            try:
                for answer in answers:
                    seen.put(STATUS.ServingStatus.Name(answer.status))
            except grpc.RpcError:
                seen.put("closed")

        threading.Thread(target=read, daemon=True).start()
        return seen


@contextmanager
def served(system: ProductionSystem) -> Iterator[Client]:
    with GrpcHealthServer(system) as server:
        client = Client(server.address)
        with closing(client.channel):
            yield client


async def test_the_whole_follows_readiness_from_the_start_to_the_end(make_system: MakeSystem) -> None:
    system = make_system(health=ONCE)
    with served(system) as client:
        assert await asyncio.to_thread(client.check) == "NOT_SERVING"
        changes = client.watch()
        assert await asyncio.to_thread(changes.get, timeout=10) == "NOT_SERVING"
        await system.start()
        assert await asyncio.to_thread(client.check) == "SERVING"
        assert await asyncio.to_thread(changes.get, timeout=10) == "SERVING"
        await system.shutdown()
        assert await asyncio.to_thread(client.check) == "NOT_SERVING"
        assert await asyncio.to_thread(changes.get, timeout=10) == "NOT_SERVING"


async def test_a_component_has_its_own_status_under_its_name(make_system: MakeSystem) -> None:
    found = HealthStatus.HEALTHY
    system = make_system(health=ONCE)
    system.register_health_check("cache", lambda: found, essential=False)
    with served(system) as client:
        assert await asyncio.to_thread(client.check, "cache") == "UNKNOWN"
        changes = client.watch("cache")
        await system.start()
        for found, expected in [  # noqa: B007 - the check reads `found`
            (HealthStatus.WARNING, "SERVING"),
            (HealthStatus.CRITICAL, "NOT_SERVING"),
            (HealthStatus.HEALTHY, "SERVING"),
        ]:
            await system.health.run_once()
            assert await asyncio.to_thread(client.check, "cache") == expected
            assert await asyncio.to_thread(client.check) == "SERVING"
        system.health.unregister("cache")
        assert await asyncio.to_thread(client.check, "cache") == "NOT_FOUND"
        seen = [await asyncio.to_thread(changes.get, timeout=10) for _ in range(5)]
        assert seen == ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVING", "SERVICE_UNKNOWN"]
        await system.shutdown()


async def test_who_watches_a_component_that_comes_later_is_told(make_system: MakeSystem) -> None:
    system = make_system(health=ONCE)
    with served(system) as client:
        assert await asyncio.to_thread(client.check, "later") == "NOT_FOUND"
        changes = client.watch("later")
        assert await asyncio.to_thread(changes.get, timeout=10) == "SERVICE_UNKNOWN"
        system.register_health_check("later", lambda: None)
        assert await asyncio.to_thread(changes.get, timeout=10) == "UNKNOWN"


async def test_it_answers_while_the_loop_is_blocked(make_system: MakeSystem) -> None:
    system = make_system(health=ONCE)
    await system.start()
    with served(system) as client:
        assert client.check("engine") == "SERVING"  # asked on the loop: nothing else runs there now
    await system.shutdown()


async def test_more_watchers_than_threads_do_not_keep_others_from_an_answer(make_system: MakeSystem) -> None:
    with served(make_system(health=ONCE)) as client:
        watching = [client.watch() for _ in range(20)]
        assert {await asyncio.to_thread(each.get, timeout=10) for each in watching} == {"NOT_SERVING"}
        assert await asyncio.to_thread(client.check) == "NOT_SERVING"


def test_a_port_that_is_taken_is_an_error_and_not_shared(make_system: MakeSystem) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} for gRPC"):
            GrpcHealthServer(make_system(server=ServerConfig(grpc_health_port=port)))


components = st.lists(
    st.builds(
        ComponentHealth,
        name=st.sampled_from("abcdef"),
        essential=st.booleans(),
        status=st.sampled_from(HealthStatus),
    ),
    unique_by=lambda each: each.name,
)


class World:
    """What is read of a system."""

    def __init__(self, state: str, found: list[ComponentHealth]) -> None:
        self.lifecycle = type("Lifecycle", (), {"state": state})
        self.health = type("Health", (), {"components": lambda _: tuple(found)})()
        self.probes = Probes(None, lambda: state, lambda: found)  # type: ignore[arg-type]


@given(st.sampled_from(semconv.LIFECYCLE_STATES), components)
def test_it_serves_exactly_when_it_is_ready_and_a_failing_component_never(
    state: str, found: list[ComponentHealth]
) -> None:
    world: Any = World(state, found)
    names = {name: STATUS.ServingStatus.Name(status) for name, status in serving_statuses(world).items()}
    assert set(names) == {"", *(each.name for each in found)}
    assert (names[""] == "SERVING") == world.probes.readiness().ok
    for each in found:
        up = each.status in (HealthStatus.HEALTHY, HealthStatus.WARNING) and state in ("starting", "serving")
        assert (names[each.name] == "SERVING") == up


def test_the_served_process_answers_and_stops_serving_in_the_lame_duck(servers: Servers) -> None:
    server = servers.start(
        env={"LLMKG_SERVER__GRPC_HEALTH_PORT": "0", "LLMKG_SHUTDOWN__LAME_DUCK_SECONDS": "3"}
    )
    client = Client(server._logged(r"gRPC health: ([\d.:]+)"))
    assert (client.check(), client.check("storage")) == ("SERVING", "SERVING")
    server.process.terminate()
    wait_until(lambda: client.check() == "NOT_SERVING", "NOT_SERVING")
    assert http_get(f"{server.ops_url}/readyz").status == 503
    assert server.process.wait(20) == 0
    client.channel.close()
