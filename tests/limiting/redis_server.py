"""A Redis server of a test's own, that can be paused, killed and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from pathlib import Path

SERVER = shutil.which("redis-server")
DEADLINE_SECONDS = 10.0


class RedisServer:
    """`redis-server` as a child on a spare loopback port, without persistence."""

    def __init__(self, directory: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as spare:
            self.port = spare.getsockname()[1]
        self._directory, self._options = directory, options
        self.uri = f"redis://127.0.0.1:{self.port}"
        self.client: Any = redis.Redis(port=self.port)  # its types hedge every answer
        self.start()

    def start(self) -> None:
        assert SERVER is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self._directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [SERVER, *options, *self._options, "--dir", str(self._directory)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                assert time.monotonic() < deadline, (self._directory / "redis.log").read_text()
                time.sleep(0.01)
            else:
                return

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)

    def calls(self) -> int:
        """Return how many scripts were run, as the server counts them."""
        stats = self.client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))
