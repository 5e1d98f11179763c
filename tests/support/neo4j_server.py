"""A neo4j of the tests' own, in a process of its own, on a spare loopback port: `make engines` fetches it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from support.engines_venv import BIN, ROOT
from support.servers import spare_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JARS = BIN.parent / "neo4j"
PROGRAM = ROOT / "tests" / "support" / "neo4j" / "Neo4jServer.java"
START_SECONDS = 120.0
"""Alone it takes 10 s; with eight more on two cores far longer."""

needs_neo4j = pytest.mark.skipif(
    shutil.which("java") is None or not JARS.is_dir(), reason="neo4j is not installed (make engines)"
)


@contextmanager
def neo4j_server(directory: Path) -> Iterator[str]:
    """Serve from a directory, and give the URI."""
    (port,) = spare_ports(1)
    command = ["java", "-Xmx512m", "-cp", f"{JARS}/*", str(PROGRAM), str(directory), str(port)]
    with (directory / "neo4j.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: _answers(process, port), f"neo4j, see {log.name}", START_SECONDS)
            yield f"bolt://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, f"neo4j ended with {process.returncode}"
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)):
        return True
    return False
