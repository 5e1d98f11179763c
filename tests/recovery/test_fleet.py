"""Real processes before one backend: what they send it together, and what becomes of their calls."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.fleet_member import RECOVERY_SECONDS
from support.servers import DEADLINE_SECONDS, wait_until
from support.slow_proxy import slow_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.redis import RedisServer

PROCESSES = 4
START_SECONDS = 60
"""Four interpreters that start at once on a busy machine need long."""
TESTS = Path(__file__).parents[1]


@dataclass
class Backend:
    """Notes when each request for an operation came, and answers only while it is alive."""

    alive: bool = False
    requests: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        operation = (await reader.readline()).decode().strip()
        self.requests[operation].append(time.monotonic())
        if self.alive:
            writer.write(b"ok")
        writer.close()


class Call(NamedTuple):
    ended: float
    seconds: float
    fate: str


@dataclass
class Member:
    process: subprocess.Popen[bytes]
    log: Path

    def calls(self, since: float = 0.0) -> list[Call]:
        lines = [line.split() for line in self.log.read_text().splitlines()]
        calls = [Call(float(line[0]), float(line[1]), line[2]) for line in lines if len(line) == 3]
        return [call for call in calls if call.ended >= since]


def start_member(uri: str, port: int, operations: int, log: Path) -> Member:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.fleet_member", uri, str(port), str(operations)],
            stdin=subprocess.PIPE,
            stdout=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))},
        )
    return Member(process, log)


@asynccontextmanager
async def members(uri: str, port: int, directory: Path, operations: int = 1) -> AsyncIterator[list[Member]]:
    started: list[Member] = []
    try:
        for number in range(PROCESSES):
            started.append(start_member(uri, port, operations, directory / f"member-{number}.log"))
        yield started
    finally:
        for member in started:
            assert member.process.stdin is not None
            member.process.stdin.close()
        for member in started:
            await asyncio.to_thread(member.process.wait, DEADLINE_SECONDS)


@pytest.mark.timeout(240)
async def test_a_dead_backend_gets_one_probe_a_recovery_timeout_from_the_whole_fleet(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    backend = Backend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server, members(redis_server.uri, port, tmp_path) as fleet:
        await all_see(fleet, "circuit_open")
        opened = time.monotonic() + 0.1  # what was on its way then has come
        await asyncio.sleep(5)
        dead = backend.requests["ask 0"].copy()
        backend.alive = True
        back = time.monotonic()
        await all_see(fleet, "ok", back)
        closed = time.monotonic()
        await asyncio.sleep(0.5)

    probes = [at for at in dead if at >= opened]
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert min(gaps) >= RECOVERY_SECONDS
    assert len(probes) >= 5 / RECOVERY_SECONDS * 0.7  # and it is asked, again and again
    assert closed - back < 3 * RECOVERY_SECONDS
    assert {member.process.returncode for member in fleet} == {0}
    for member in fleet:
        assert fates(member, opened) <= {"circuit_open", "ConnectionError", "ok"}
        assert fates(member, closed) == {"ok"}
        waits = [call.seconds for call in member.calls(opened) if call.fate == "circuit_open"]
        assert max(waits) < 0.05 + 0.1  # what a call may wait for the store, and a busy machine


@pytest.mark.timeout(240)
async def test_a_store_30_ms_away_and_20_open_circuits_cost_the_backend_no_probe_more(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    backend, operations, seconds = Backend(), 20, 6.0
    server = await asyncio.start_server(backend.serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        slow_proxy(redis_server.port, 0.03) as far,
        members(f"redis://127.0.0.1:{far}/0", port, tmp_path, operations) as fleet,
    ):
        await all_see(fleet, "circuit_open")
        await asyncio.sleep(1)  # until all circuits are open
        opened = time.monotonic()
        await asyncio.sleep(seconds)
        dead = {operation: list(requests) for operation, requests in backend.requests.items()}

    assert len(dead) == operations
    for requests in dead.values():
        probes = [at for at in requests if at >= opened]
        gaps = [later - earlier for earlier, later in pairwise(probes)]
        assert min(gaps) >= RECOVERY_SECONDS
        assert len(probes) >= seconds / RECOVERY_SECONDS / 3  # slow, but no circuit is forgotten
    for member in fleet:
        assert member.log.read_text().splitlines()[-1] in ("primary", "slow")


async def all_see(fleet: list[Member], fate: str, since: float = 0.0) -> None:
    def seen() -> bool:
        return all(fate in fates(member, since) for member in fleet)

    await asyncio.to_thread(wait_until, seen, f"{fate} in every process", START_SECONDS)


def fates(member: Member, since: float = 0.0) -> set[str]:
    return {call.fate for call in member.calls(since)}
