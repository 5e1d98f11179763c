"""Four processes and a real server: together never above the limit, and hardly below it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from limiting.shared_worker import BURST, PER_SECOND, PROCESSES

if TYPE_CHECKING:
    from support.redis import RedisServer

SECONDS = 3.0
MOST = PER_SECOND * SECONDS + BURST
TRIPS_AT_MOST = {"exact": 1.0, "leases": 0.02}
WORKER = Path(__file__).with_name("shared_worker.py")


def together(uri: str, mode: str, offered: float) -> list[dict[str, Any]]:
    """Run the processes from one moment on; return what each tells."""
    command = [sys.executable, str(WORKER), uri, mode, str(SECONDS), str(offered)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start = f"{time.monotonic() + 0.2}\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(start)
        process.stdin.flush()
    return [json.loads(process.communicate(timeout=30)[0]) for process in processes]


@pytest.mark.parametrize("mode", ["exact", "leases"])
def test_together_they_are_never_admitted_more_often_than_one(mode: str, redis_server: RedisServer) -> None:
    """At twice the limit: the burst and what came in since. How near to it they come is a benchmark's."""
    redis_server.client.config_resetstat()
    told = together(redis_server.uri, mode, 2.0)
    admitted = sum(each["admitted"] for each in told)
    decided = admitted + sum(each["refused"] for each in told)
    assert MOST / 2 <= admitted <= MOST + PER_SECOND * 0.06  # the last calls may wait that long
    assert redis_server.calls() <= TRIPS_AT_MOST[mode] * decided + 2 * PROCESSES
