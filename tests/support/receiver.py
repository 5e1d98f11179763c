"""An HTTP server that keeps the JSON it is posted."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Receiver(ThreadingHTTPServer):
    """Keeps path, headers and body; answers `statuses` one by one, then 200, and sends to `location`."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.statuses: list[int] = []
        self.location = ""
        super().__init__(("127.0.0.1", 0), _Posts)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Posts(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), json.loads(body)))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Retry-After", "0")
        self.send_header("Location", self.server.location)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Serve on a thread until the end of the block."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
