"""A Bolt 4.4 server on a spare loopback port that answers every query with the same two rows.

Just enough of the protocol (neo4j.com/docs/bolt) for the neo4j driver to run its own code against a socket.
"""

from __future__ import annotations

import socketserver
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = bytes.fromhex("6060b017")
VERSION = bytes((0, 0, 4, 4))
HELLO, GOODBYE, RESET, RUN, PULL = 0x01, 0x02, 0x0F, 0x10, 0x3F
SUCCESS, RECORD, IGNORED, FAILURE = 0x70, 0x71, 0x7E, 0x7F
SIMPLE = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = {0xC1: ">d", 0xC8: ">b", 0xC9: ">h", 0xCA: ">i", 0xCB: ">q"}
SIZES = {0: 1, 1: 2, 2: 4}
FAILING = "FAIL"
"""A query with this word in it fails."""


@contextmanager
def bolt_server() -> Iterator[str]:
    """Serve, and give the URI."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Connection) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"bolt://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class _Connection(socketserver.StreamRequestHandler):
    failed = False

    def handle(self) -> None:
        self.rfile.read(20)
        self.wfile.write(VERSION)
        while (message := self._receive()) is not None:
            signature, fields = message
            if signature == GOODBYE:
                return
            self._answer(signature, fields)

    def _answer(self, signature: int, fields: list[Any]) -> None:
        if self.failed and signature != RESET:
            self._send(IGNORED, {})
        elif signature == HELLO:
            self._send(SUCCESS, {"server": "Neo4j/4.4.0", "connection_id": "bolt-1", "hints": {}})
        elif signature == RUN and FAILING in fields[0]:
            self.failed = True
            self._send(FAILURE, {"code": "Neo.ClientError.Statement.SyntaxError", "message": "no such word"})
        elif signature == RUN:
            self._send(SUCCESS, {"fields": ["n"], "t_first": 0, "qid": 0})
        elif signature == PULL:
            for number in (1, 2):
                self._send(RECORD, [number])
            self._send(SUCCESS, {"has_more": False, "type": "r", "t_last": 0, "db": "neo4j"})
        else:
            self.failed = False
            self._send(SUCCESS, {})

    def _receive(self) -> tuple[int, list[Any]] | None:
        message = b""
        while True:
            if len(header := self.rfile.read(2)) < 2:
                return None
            if (size := int.from_bytes(header)) == 0:
                if message:
                    break
                continue  # an empty chunk keeps the connection alive
            message += self.rfile.read(size)
        reader = _Reader(message)
        count = reader.byte() & 0x0F
        return reader.byte(), [reader.value() for _ in range(count)]

    def _send(self, signature: int, field: Any) -> None:
        message = bytes((0xB1, signature)) + _packed(field)
        self.wfile.write(struct.pack(">H", len(message)) + message + b"\0\0")


def _packed(value: Any) -> bytes:
    """Pack what the answers above are made of, each of it short."""
    match value:
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return bytes((value,))
        case str():
            text = value.encode()
            return bytes((0xD0, len(text))) + text
        case list():
            return bytes((0x90 + len(value),)) + b"".join(map(_packed, value))
        case dict():
            pairs = (_packed(key) + _packed(each) for key, each in value.items())
            return bytes((0xA0 + len(value),)) + b"".join(pairs)
    raise TypeError(type(value))


class _Reader:
    """Unpacks what the driver sends."""

    def __init__(self, message: bytes) -> None:
        self._rest = message

    def byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def value(self) -> Any:
        marker = self.byte()
        if marker in SIMPLE:
            return SIMPLE[marker]
        if marker in NUMBERS:
            kind = NUMBERS[marker]
            return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]
        if marker < 0x80 or marker >= 0xF0:
            return marker if marker < 0x80 else marker - 0x100
        high, low = marker & 0xF0, marker & 0x0F
        if high == 0xD0:  # the size follows: a text, a list or a map
            size = int.from_bytes(self._take(SIZES[low & 3]))
            high = (0x80, 0x90, 0xA0)[low >> 2]
        else:
            size = low
        if high == 0x80:
            return self._take(size).decode()
        if high == 0x90:
            return [self.value() for _ in range(size)]
        return {self.value(): self.value() for _ in range(size)}
