"""The real server over stdio, as a client starts and ends it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import struct
import subprocess
import termios
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from support.servers import DEADLINE_SECONDS, SCRIPTS, http_get, wait_until

from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARIS = {"subject": "Paris", "predicate": "capital_of", "object": "France"}
COMMAND = [str(SCRIPTS / "llmkg-otel"), "serve", "--transport", "stdio", "--engine-path"]


def as_a_client_starts_it(engine: Path) -> StdioServerParameters:
    return StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], str(engine)], env=dict(os.environ))


@contextmanager
def running(tmp_path: Path, *more: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start a server whose stdin stays open and whose log is tmp_path / "log"; kill it if need be."""
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path / "k.db"), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **env},
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(tmp_path: Path, what: str) -> str:
    log = tmp_path / "log"
    return wait_until(lambda: what in log.read_text() and log.read_text(), f"{what} in {log}")  # type: ignore[no-any-return]


def report_in(log: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next(line["report"] for line in lines if "report" in line)


def say(process: subprocess.Popen[str], method: str, params: dict[str, Any], **request: int) -> None:
    assert process.stdin is not None
    message = {"jsonrpc": "2.0", "method": method, "params": params} | request
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def greet(process: subprocess.Popen[str]) -> None:
    client = {"name": "test", "version": "1"}
    asked = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
    say(process, "initialize", asked, id=1000)
    say(process, "notifications/initialized", {})


def waiting_in(pipe: IO[str] | None) -> int:
    """Return how many bytes nobody has read yet."""
    assert pipe is not None
    (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(size)


async def test_a_client_that_leaves_finds_the_same_tools_and_gives_time_to_end_well(tmp_path: Path) -> None:
    """Defaults on both sides: the SDK's client kills its server four seconds after closing stdin."""
    server = as_a_client_starts_it(tmp_path / "k.db")
    with (tmp_path / "log").open("w") as log:
        async with Client(stdio_client(server, errlog=log)) as client:
            assert not (await client.call_tool("store_fact", PARIS)).is_error
    assert report_in(tmp_path / "log")["clean"]
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    assert len(await engine.find_facts("Paris")) == 1
    await engine.aclose()


async def test_two_run_side_by_side_without_an_operators_port(tmp_path: Path) -> None:
    both = [as_a_client_starts_it(tmp_path / name) for name in ("one.db", "two.db")]
    with (tmp_path / "log").open("w") as log:
        async with (
            Client(stdio_client(both[0], errlog=log)) as one,
            Client(stdio_client(both[1], errlog=log)) as two,
        ):
            for client in (one, two):
                assert not (await client.call_tool("store_fact", PARIS)).is_error
    assert "operators' port" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("more", "env"),
    [(["--ops-port", "0"], {}), ([], {"LLMKG_SERVER__OPS_PORT": "0"})],
    ids=["argument", "env"],
)
def test_the_operators_port_is_there_when_asked_for(
    tmp_path: Path, more: list[str], env: dict[str, str]
) -> None:
    with running(tmp_path, *more, **env):
        log = wait_for(tmp_path, "operators' port: ")
        url = log.partition("operators' port: ")[2].partition('"')[0]
        assert http_get(f"{url}/livez").status == 200


def test_sigterm_ends_it_at_once_though_stdin_stays_open(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        wait_for(tmp_path, "starting -> serving")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    report = report_in(tmp_path / "log")
    assert report["clean"]
    assert [phase["name"] for phase in report["phases"]][-1] == "flushing"
    assert report["total_duration"] < 4


def test_sigterm_ends_it_though_nobody_reads_what_it_says(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        greet(process)
        for number in range(100):  # with answers of some kB each
            say(process, "tools/list", {}, id=number)
        wait_until(lambda: waiting_in(process.stdout) > 32_000, "a pipe about to be full")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    assert report_in(tmp_path / "log")["clean"]


async def test_sigterm_under_load_answers_every_call_that_was_carried_out(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        greet(process)
        for number in range(300):
            fact = {**PARIS, "subject": f"s{number}"}
            say(process, "tools/call", {"name": "store_fact", "arguments": fact}, id=number)
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest = await asyncio.to_thread(process.stdout.readlines)
        assert process.wait(DEADLINE_SECONDS) == 0
    stored_later = [answer for answer in map(json.loads, rest) if not answer["result"].get("isError")]
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    stored = await engine.find_facts(limit=1000)
    await engine.aclose()
    assert len(stored) == len(stored_later) + 19  # the first answer was the greeting's
