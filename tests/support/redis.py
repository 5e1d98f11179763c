"""A redis-server of the test's own, on a spare port, that can be hung, killed and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.servers import wait_until


def spare_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RedisServer:
    """Keeps nothing on disk: what it knew is gone when it is killed."""

    path: str
    port: int = field(default_factory=spare_port)
    client: Any = None

    @property
    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [self.path, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))
        wait_until(self._answers, "redis-server's first answer")

    restart = start

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()

    def calls(self, command: str) -> int:
        """How often a command has been run since the server started."""
        return int(self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


def started_redis() -> RedisServer:
    """Start a server, or skip the test where none is installed. Whoever starts it kills it."""
    path = shutil.which("redis-server")
    if path is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(path)
    server.start()
    return server
