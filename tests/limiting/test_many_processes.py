"""Four processes and a real server: together never above the limit."""

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
    from limiting.redis_server import RedisServer

SECONDS = 3.0
TRIPS_AT_MOST = {"exact": 1.0, "leases": 0.1}
WORKER = Path(__file__).with_name("shared_worker.py")


def together(uri: str, mode: str, offered: float) -> list[dict[str, Any]]:
    start = time.monotonic() + 6.0  # when all of them have started
    arguments = [uri, mode, str(start), str(SECONDS), str(offered)]
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), *arguments], stdout=subprocess.PIPE)
        for _ in range(PROCESSES)
    ]
    return [json.loads(process.communicate(timeout=30)[0]) for process in processes]


@pytest.mark.parametrize("mode", ["exact", "leases"])
def test_together_they_are_never_admitted_more_often_than_one_would_be(
    mode: str, redis_server: RedisServer
) -> None:
    """At twice the limit: the burst and what came in since, not one more. How much less is a benchmark's."""
    redis_server.client.config_resetstat()
    told = together(redis_server.uri, mode, 2.0)
    admitted = sum(each["admitted"] for each in told)
    decided = admitted + sum(each["refused"] for each in told)
    assert [each["state"] for each in told] == ["primary"] * PROCESSES
    most = PER_SECOND * SECONDS + BURST
    assert most / 2 <= admitted <= most + PER_SECOND * 0.02  # the last calls end a little later
    assert redis_server.calls() <= TRIPS_AT_MOST[mode] * decided + 2 * PROCESSES  # scripts are loaded once
