"""A redis-server of the test's own, on a spare port, that can be hung, killed and started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.servers import spare_ports, wait_until

SCRIPTS = ("evalsha", "eval")


class RedisServer:
    """Keeps nothing on disk but its log: what it knew is gone when it is killed.

    `options` are those of redis-server, `directory` is where it works; `sentinel_of` makes it a sentinel
    that watches another server under the name "main". Skips the test where no server is installed.
    """

    def __init__(
        self, *options: str, directory: Path | str | None = None, sentinel_of: RedisServer | None = None
    ) -> None:
        if (path := shutil.which("redis-server")) is None:
            pytest.skip("redis-server is not installed")
        (self.port,) = spare_ports(1)
        self.uri = f"redis://127.0.0.1:{self.port}"
        self.client: Any = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))  # its types hedge
        self._directory = Path(directory or tempfile.gettempdir())
        kind = ["--save", "", "--appendonly", "no"]
        if sentinel_of is not None:
            file = self._directory / "sentinel.conf"
            file.write_text(f"sentinel monitor main 127.0.0.1 {sentinel_of.port} 1\n", encoding="utf-8")
            kind = [str(file), "--sentinel"]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        self._command = [path, *kind, *place, *options]
        self.start()

    def start(self) -> None:
        with (self._directory / "llmkg-test-redis.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self._answers, f"redis-server's first answer, see {log.name}")

    restart = start

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def calls(self, *commands: str) -> int:
        """How often these commands (scripts, if none is named) have been run, as the server counts."""
        stats = self.client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in commands or SCRIPTS)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


def started_redis() -> RedisServer:
    """Start a server. Whoever starts it kills it."""
    return RedisServer()
