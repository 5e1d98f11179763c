"""Probes asked over real sockets, politely and otherwise: none of it keeps the next probe from its answer."""

from __future__ import annotations

import http.client
import re
import resource
import socket
import struct
import sys
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import http_get, wait_until

from llmkg_otel.config import ServerConfig
from llmkg_otel.health.status import CheckResult, HealthStatus
from llmkg_otel.server.ops import LOOPBACK_HOST, OpsServer
from llmkg_otel.server.probe_thread import ProbeAnswer, probes_of, quick_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.servers import Servers

    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

PLAIN = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
PROBES = {"/livez": lambda: ProbeAnswer(200, "text/plain", b"ok")}

NOT_PLAIN = {
    "HEAD": (b"HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n", [200]),
    "another method": (b"POST /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n", [405]),
    "a body": (b"GET /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nhi", [200]),
    "chunks": (
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        [200],
    ),
    "two at once": (PLAIN + PLAIN, [200, 200]),
    "a query": (b"GET /livez?verbose HTTP/1.1\r\nhost: localhost\r\n\r\n", [200]),
    "another path": (b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n", [404]),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", [400]),
    "two hosts": (b"GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", [400]),
    "a foreign host": (b"GET /livez HTTP/1.1\r\nhost: evil.example\r\n\r\n", [421]),
    "a host on two lines": (b"GET /livez HTTP/1.1\r\nhost: localhost\r\n evil.example\r\n\r\n", [421]),
    "a whole URL": (b"GET http://localhost:9464/livez HTTP/1.1\r\nhost: evil.example\r\n\r\n", [200]),
    "a whole URL of another": (b"GET http://evil.example/livez HTTP/1.1\r\nhost: localhost\r\n\r\n", [421]),
    "a whole URL with a user": (
        b"GET http://evil@localhost/livez HTTP/1.1\r\nhost: localhost\r\n\r\n",
        [421],
    ),
    "a whole URL without a path": (b"GET http://localhost HTTP/1.1\r\nhost: localhost\r\n\r\n", [404]),
    "a URL without a host": (b"GET http:///livez HTTP/1.1\r\nhost: localhost\r\n\r\n", [404]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [404, 400]),
    "TLS": (bytes.fromhex("16030100c8010000c4030361") + b"\x00" * 190, [400]),
    "a header without end": (b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 70_000, [400]),
}


@pytest.fixture
def ops(make_system: MakeSystem) -> Iterator[OpsServer]:
    with OpsServer(make_system(server=ServerConfig(ops_port=0))) as server:
        yield server


def connect(ops: OpsServer) -> socket.socket:
    host, port = ops.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answers(connection: socket.socket, count: int) -> list[int]:
    """Read until so many responses have begun, or the end."""
    received = b""
    while len(found := re.findall(rb"HTTP/1.1 (\d+) ", received)) < count and (
        more := connection.recv(65_536)
    ):
        received += more
    return [int(status) for status in found]


def alive(ops: OpsServer) -> bool:
    return http_get(f"{ops.url}/livez").body == "ok"


def test_a_plain_probe_is_answered_whole_and_its_connection_closed(ops: OpsServer) -> None:
    with connect(ops) as connection:
        connection.sendall(PLAIN)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.read(), answer.getheader("connection")) == (200, b"ok", "close")
        assert answer.getheader("content-type") == "text/plain; charset=utf-8"
        assert connection.recv(1) == b""


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/healthz"])
@pytest.mark.parametrize(
    "head", ["HTTP/1.0\r\n", "HTTP/1.1\r\nHost: 127.0.0.1:9464\r\nUser-Agent: kube-probe/1.34\r\n"]
)
def test_every_probe_is_plain_as_the_kubelet_and_haproxy_send_it(
    make_system: MakeSystem, path: str, head: str
) -> None:
    probes = probes_of(make_system())
    answer = quick_answer(f"GET {path} {head}\r\n".encode(), probes, LOOPBACK_HOST)
    assert answer is not None
    assert answer.startswith(
        b"HTTP/1.1 503 " if path == "/readyz" or path == "/startupz" else b"HTTP/1.1 200 "
    )


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_whatever_is_not_a_plain_probe_is_left_to_uvicorn_which_answers_it(ops: OpsServer, what: str) -> None:
    request, expected = NOT_PLAIN[what]
    assert quick_answer(request, PROBES, LOOPBACK_HOST) is None
    with connect(ops) as connection:
        connection.sendall(request)
        assert answers(connection, len(expected)) == expected
    assert alive(ops)


async def test_no_probe_reads_a_file(make_system: MakeSystem) -> None:
    system, opened = make_system(), []
    here = threading.get_ident()
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and threading.get_ident() == here:
            opened.append(arguments[0])

    await system.start()
    sys.addaudithook(hook)  # for good: there is no way to remove it
    answers = [probe() for probe in probes_of(system).values()]
    watching = False
    await system.shutdown()
    assert {answer.status for answer in answers} == {200}
    assert opened == []


pieces = st.sampled_from(
    [
        *(
            b"GET",
            b"HEAD",
            b" ",
            b"\t",
            b"/livez",
            b"/",
            b"?",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"HTTP/2",
            b"\r\n",
            b"\n",
            b"\r",
        ),
        *(
            b"host",
            b"Host",
            b":",
            b"localhost",
            b"a",
            b",",
            b"content-length",
            b"5",
            b"transfer-encoding",
            b"chunked",
        ),
        *(b"\0", b"\xe9", b"\r\n\r\n", b"upgrade", b"Connection: upgrade\r\n", b"host: localhost\r\n"),
    ]
)
headers = st.lists(
    st.one_of(st.lists(pieces, max_size=5).map(b"".join), st.just(b"host: localhost\r\n"))
).map(b"".join)


@given(
    st.sampled_from([b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.0\r\n", b""]),
    headers,
    st.sampled_from([b"\r\n", b""]),
)
def test_what_is_answered_quickly_is_one_whole_request_to_h11_as_well(
    line: bytes, head: bytes, end: bytes
) -> None:
    request = line + head + end
    if quick_answer(request, PROBES) is None:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (b"GET", b"/livez")
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)


def test_a_request_in_pieces_is_answered_when_it_is_whole(ops: OpsServer) -> None:
    with connect(ops) as slow:
        for piece in (PLAIN[:7], PLAIN[7:-2], PLAIN[-2:]):
            assert alive(ops)
            slow.sendall(piece)
        assert answers(slow, 1) == [200]


def test_a_client_that_keeps_its_connection_gets_all_its_answers(ops: OpsServer) -> None:
    with closing(http.client.HTTPConnection(ops.url.removeprefix("http://"), timeout=10)) as client:
        for path in ("/metrics", "/livez", "/metrics", "/livez", "/livez", "/metrics"):
            client.request("GET", path)
            answer = client.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)


def test_a_thousand_idle_and_half_open_connections_do_not_keep_a_probe_waiting(ops: OpsServer) -> None:
    with ExitStack() as stack:
        for number in range(1000):
            idle = stack.enter_context(connect(ops))
            if number % 2:
                idle.sendall(b"GET /livez HTTP/1.1\r\nhost: loc")
        assert alive(ops)


def test_a_client_that_does_not_read_or_leaves_keeps_nobody_waiting(
    make_system: MakeSystem,
) -> None:
    system = make_system(server=ServerConfig(ops_port=0))
    for number in range(300):
        name = f"component-{number}-{'x' * 5000}"
        system.register_health_check(name, lambda: CheckResult(HealthStatus.HEALTHY))
    with OpsServer(system) as ops, connect(ops) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(PLAIN.replace(b"livez", b"healthz"))
        with connect(ops) as leaves:
            leaves.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaves.sendall(PLAIN)
        assert alive(ops)
        whole = http_get(f"{ops.url}/healthz")
    assert len(whole.body) > 1_500_000


def test_a_probe_is_answered_while_the_other_thread_is_stuck(ops: OpsServer) -> None:
    release = threading.Event()
    try:
        ops._loop.result().call_soon_threadsafe(release.wait, 20)
        assert alive(ops)
    finally:
        release.set()
    assert http_get(f"{ops.url}/metrics").status == 200


def test_a_probe_that_raises_is_a_500_and_the_next_one_is_answered(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = make_system(server=ServerConfig(ops_port=0))

    def broken() -> Any:
        raise RuntimeError("no report today")

    with OpsServer(system) as ops:
        monkeypatch.setattr(system, "read_health_report", broken)
        assert http_get(f"{ops.url}/healthz").status == 500
        assert alive(ops)


def test_a_process_out_of_descriptors_answers_again_once_it_has_some(servers: Servers) -> None:
    server = servers.start()
    pid = server.process.pid
    assert http_get(server.mcp_url).status == 405  # its listener has all it needs
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    host, port = server.ops_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as waiting:
        waiting.sendall(PLAIN)
        wait_until(lambda: "a probe was not accepted: [Errno 24]" in server.log.read_text(), "a warning")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert answers(waiting, 1) == [200]
    assert server.terminate() == 0


def test_the_port_is_closed_and_both_threads_have_ended_at_the_end(make_system: MakeSystem) -> None:
    with OpsServer(make_system(server=ServerConfig(ops_port=0))) as ops:
        assert alive(ops)
    assert not any(thread.name in ("llmkg-probes", "llmkg-ops") for thread in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        connect(ops)
