"""What the usual HTTP clients make of a server that carries a request out and is then gone."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import threading
from typing import TYPE_CHECKING

import httpx2
import pytest
import requests
import urllib3

from llmkg_otel.config import OperationConfig, RetryConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmkg_otel.system import ProductionSystem

    Client = Callable[[int], object]


class Vanishing:
    """A server that reads each request, counts it, and closes or resets the connection."""

    def __init__(self, *, resets: bool) -> None:
        self.resets = resets
        self.requests = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                if not self._read(connection):
                    return
                self.requests += 1
                if self.resets:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @staticmethod
    def _read(connection: socket.socket) -> bool:
        read = b""
        while b"\r\n\r\n" not in read:
            if not (more := connection.recv(4096)):
                return False
            read += more
        return True

    def close(self) -> None:
        socket.create_connection(("127.0.0.1", self.port)).close()  # ends `accept`
        self._thread.join()
        self._socket.close()


@pytest.fixture(params=[False, True], ids=["closes", "resets"])
def server(request: pytest.FixtureRequest) -> Iterator[Vanishing]:
    started = Vanishing(resets=request.param)
    yield started
    started.close()


def by_requests(port: int) -> None:
    requests.post(f"http://127.0.0.1:{port}/", data=b"x", timeout=10)


def by_urllib3(port: int) -> None:
    urllib3.PoolManager(retries=False).request("POST", f"http://127.0.0.1:{port}/", body=b"x")


def by_httpx(port: int) -> None:
    httpx2.post(f"http://127.0.0.1:{port}/", content=b"x")


def by_the_standard_library(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("POST", "/", body=b"x")
        connection.getresponse()
    finally:
        connection.close()


def by_streams(port: int) -> None:
    async def exchange() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"POST / HTTP/1.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()

    asyncio.run(exchange())


CLIENTS: list[Client] = [by_requests, by_urllib3, by_httpx, by_the_standard_library, by_streams]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize(("idempotent", "times"), [(False, 1), (True, 3)])
def test_what_may_have_been_carried_out_is_repeated_only_where_that_does_no_harm(
    system: ProductionSystem, server: Vanishing, client: Client, *, idempotent: bool, times: int
) -> None:
    retry = RetryConfig(max_retries=2, base_delay_ms=0, max_delay_ms=0)
    system.configure_operation("op", OperationConfig(idempotent=idempotent, retry=retry))
    with pytest.raises(Exception) as failed:
        system.execute_protected_operation_sync("op", lambda: client(server.port))
    assert server.requests == times, failed.value


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_a_connection_that_was_never_made_is_tried_again(system: ProductionSystem, client: Client) -> None:
    attempts = 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    def operation() -> None:
        nonlocal attempts
        attempts += 1
        client(port)

    with pytest.raises(Exception):  # noqa: B017 - each client has classes of its own
        system.execute_protected_operation_sync("op", operation)
    assert attempts == 3
