"""One of several processes that share a limit: `python shared_worker.py URI MODE SECONDS OFFERED`.

Says when it is ready, reads when to start (monotonic seconds), calls at OFFERED times its share of the
limit, and prints how many calls were admitted and refused, the longest wait,
how many tokens it held at the end, and how the store was.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from llmkg_otel.config import RateLimitConfig
from llmkg_otel.errors import RateLimitedError
from llmkg_otel.limiting.rates import make_rate_limits

PROCESSES, PER_SECOND, BURST = 4, 1000, 1000


async def call_on(config: RateLimitConfig, seconds: float, offered: float) -> dict[str, Any]:
    rates = make_rate_limits(config)
    levels = rates.levels("op", ())
    told: dict[str, Any] = {"admitted": 0, "refused": 0, "longest": 0.0}

    async def call() -> None:
        began = time.monotonic()
        try:
            pending = rates.check("op", levels, None, began)
            if pending is not None:
                await pending.settle()
            told["admitted"] += 1
        except RateLimitedError:
            told["refused"] += 1
        told["longest"] = max(told["longest"], time.monotonic() - began)

    await rates.start()
    print("ready", flush=True)  # noqa: T201 - its parent reads it
    start = float(sys.stdin.readline())
    await asyncio.sleep(start - time.monotonic())
    made, calls = 0, set[asyncio.Task[None]]()
    while (now := time.monotonic()) < start + seconds:
        for _ in range(int((now - start) * offered) - made):
            made += 1
            task = asyncio.create_task(call())
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.sleep(0.002)
    if calls:
        await asyncio.wait(calls)
    told["held"] = sum(lease.left for lease in getattr(rates, "_leases", {}).values())
    told["state"] = rates.store_state
    told["failed"] = {f"{p} {r}": n for (p, r), n in rates.decisions.items() if r.startswith("failed")}
    rates.close()
    return told


def main() -> None:
    uri, mode, seconds, times = sys.argv[1:]
    config = RateLimitConfig.model_validate(
        {
            "requests_per_second": PER_SECOND,
            "burst_capacity": BURST,
            "storage_uri": uri,
            "storage_mode": mode,
            "on_store_failure": "fail_closed",  # a machine too busy for 50 ms must not blur the bound
        }
    )
    offered = float(times) * PER_SECOND / PROCESSES
    print(json.dumps(asyncio.run(call_on(config, float(seconds), offered))))  # noqa: T201 - its report


if __name__ == "__main__":
    main()
