"""Probes answered by a thread of their own in two system calls, whoever else wants the interpreter."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from llmkg_otel.health.status import HealthStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.health.probes import ProbeResult
    from llmkg_otel.system import ProductionSystem

__all__ = ["Probe", "ProbeAnswer", "ProbeThread", "probes_of", "quick_answer"]

_log = logging.getLogger(__name__)

REQUEST = re.compile(rb"GET (/\w+) HTTP/1\.([01])\r\n((?:[\w-]+:[\t\x20-\x7e]*\r\n)*)\r\n")
HOST = re.compile(rb"^host:[ \t]*(.*?)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
MORE = re.compile(rb"^(content-length|transfer-encoding|expect|upgrade):", re.IGNORECASE | re.MULTILINE)
"""The header of a request that does not end with its headers, or asks for more than an answer."""
REQUEST_BYTES = 4096
ANSWER_BYTES = 8192
"""What the send buffer of a new connection takes at once, however slowly its client reads."""
DEFER_SECONDS = 1
PAUSE_SECONDS = 0.1
STOP_SECONDS = 2.0


class ProbeAnswer(NamedTuple):
    """What a probe is answered, whichever way it was asked."""

    status: int
    media_type: str
    body: bytes


Probe = Callable[[], ProbeAnswer]


def probes_of(system: ProductionSystem) -> dict[str, Probe]:
    """Return what answers each path: nothing here checks or waits, it all reads what is known already."""

    def healthz() -> ProbeAnswer:
        report = system.read_health_report()
        status = 503 if report.status is HealthStatus.CRITICAL else 200
        body = json.dumps(report.to_health_json(), ensure_ascii=False, allow_nan=False)
        return ProbeAnswer(status, "application/health+json", body.encode())

    return {
        "/livez": lambda: _told(system.probes.liveness()),
        "/readyz": lambda: _told(system.probes.readiness()),
        "/startupz": lambda: _told(system.probes.startup()),
        "/healthz": healthz,
    }


def _told(result: ProbeResult) -> ProbeAnswer:
    reasons = "\n".join(result.reasons) or "ok"
    return ProbeAnswer(200 if result.ok else 503, "text/plain; charset=utf-8", reasons.encode())


def quick_answer(
    request: bytes, probes: Mapping[str, Probe], hosts: re.Pattern[str] | None = None
) -> bytes | None:
    """Return the response to a request that is whole, plain and a probe, else None.

    None means that an HTTP server has to look at it. `hosts` is what a Host header may say, None: anything.
    """
    if (match := REQUEST.fullmatch(request)) is None:
        return None
    path, minor, headers = match.groups()
    probe, named = probes.get(path.decode()), HOST.findall(headers)
    if probe is None or MORE.search(headers) or not (len(named) == 1 or (minor == b"0" and not named)):
        return None
    if hosts is not None and not all(hosts.fullmatch(host.decode()) for host in named):
        return None
    return _response(probe())


def _response(answer: ProbeAnswer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"date: {formatdate(usegmt=True)}",
        f"content-type: {answer.media_type}",
        f"content-length: {len(answer.body)}",
        "connection: close\r\n\r\n",
    )
    return "\r\n".join(head).encode() + answer.body


class ProbeThread:
    """Accepts a listener's connections: answers what is plainly a probe, and gives all others away.

    A thread that comes back from a system call waits for its turn at the interpreter. asyncio makes ten
    of them for a request; here a probe costs two, for the connection comes with its request (Linux's
    TCP_DEFER_ACCEPT), and is closed after the answer. Nothing waits for a client: one that has not sent a
    whole request by then is given away as well, and so is one whose answer is long. `give_away` gets a
    connection from which nothing was taken, on this thread, and must not wait either.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[bytes], bytes | None],
        give_away: Callable[[socket.socket], object],
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._give_away = give_away
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="llmkg-probes", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(True)  # whatever the program's default timeout is
        if (defer := getattr(socket, "TCP_DEFER_ACCEPT", None)) is not None:
            self._listener.setsockopt(socket.IPPROTO_TCP, defer, DEFER_SECONDS)
        self._thread.start()

    def stop(self) -> None:
        """Accept no more; the listener is of no use afterwards."""
        self._stopping = True
        with suppress(OSError):  # where a listener cannot be shut down
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing does not
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping:
                    _log.warning("a probe was not accepted: %s", error)
                    time.sleep(PAUSE_SECONDS)  # no descriptor is free: this is no reason to spin
                continue
            if self._serve(connection):
                connection.close()
            else:
                self._give_away(connection)

    def _serve(self, connection: socket.socket) -> bool:
        """Return whether this connection is done with."""
        try:
            request = connection.recv(REQUEST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            answer = self._answer(request)
            if answer is None or len(answer) > ANSWER_BYTES:
                return False
            connection.send(answer, socket.MSG_DONTWAIT)
            connection.recv(REQUEST_BYTES)  # what is left unread would reset the connection
        except BlockingIOError:
            return False
        except OSError:
            return True  # the client has left
        except Exception:  # noqa: BLE001 - the thread has to go on
            _log.exception("a probe could not be answered")
            return False
        return True
