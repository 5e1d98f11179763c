"""Measure the rate limits: `python benchmarks/limiting.py` (about 30 s).

in process  one decision through three levels (global, operation, user), one through a single token bucket,
            throttled-py's token bucket and the strategies of `limits`, each in memory; refused ones too
shared      a hit of `limits` on its RedisStorage (fixed window, its cheapest), and one decision of ours:
            exact, in a task and in a thread, and on leases, all on one redis-server started for this
memory      what a million distinct users take: our table, the same twice (both generations, the worst
            case), and a dictionary

throttled-py is left out where it is not installed (`uv pip install throttled-py`), and what is shared where
there is no redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import shutil
import socket
import subprocess
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

from _measure import Contestant, Times, aligned, alternate, machine, table, verdict
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from llmkg_otel.config import RateLimitConfig, RateLimitRule
from llmkg_otel.errors import RateLimitedError
from llmkg_otel.limiting.rates import RateLimits, make_rate_limits
from llmkg_otel.limiting.token_bucket import TokenBuckets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from llmkg_otel.limiting.plan import Levels

PLENTY: dict[str, Any] = {"requests_per_second": 1e9, "burst_capacity": 10**9}
A_LOT = 10**6
THREE, ONE, THROTTLED, FIXED = (
    "ours, three levels",
    "ours, one bucket",
    "throttled-py, bucket",
    "limits, fixed",
)
REDIS, LEASES = "limits, RedisStorage", "ours, leases"
MICROSECONDS_AT_MOST, LEASES_CHEAPER, MEBIBYTES_AT_MOST = 3.0, 20.0, 64.0
USERS = 1_000_000


def repeated(part: Callable[[], object]) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count):
            part()

    return calls


def decision(rates: RateLimits, levels: Levels, user: str | None) -> Callable[[], object]:
    return lambda: rates.check("op", levels, user, time.monotonic())


def refused(decide: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        try:
            decide()
        except RateLimitedError:
            return
        raise RuntimeError("a call was let in")

    return call


def windows(strategy: str, theirs: type[RateLimiter]) -> dict[str, Contestant]:
    """Return ours and theirs in one window, not near its limit."""
    rule = RateLimitRule(requests_per_second=A_LOT, burst_capacity=A_LOT, strategy=strategy)
    rates = RateLimits(RateLimitConfig(**rule.model_dump()))
    item, limiter = RateLimitItemPerSecond(A_LOT), theirs(MemoryStorage())
    name = strategy.removesuffix("_window")
    return {
        f"ours, {name}": repeated(decision(rates, rates.levels("op", ()), None)),
        f"limits, {name}": repeated(lambda: limiter.hit(item, "global")),
    }


def in_process() -> dict[str, Contestant]:
    one, three = (RateLimits(RateLimitConfig(**PLENTY, **more)) for more in ({}, {"per_user": PLENTY}))
    spent = RateLimits(RateLimitConfig(requests_per_second=1e-6, burst_capacity=1, per_user=PLENTY))
    decide = decision(spent, spent.levels("op", (RateLimitRule(**PLENTY),)), "u")
    decide()
    contestants = {
        THREE: repeated(decision(three, three.levels("op", (RateLimitRule(**PLENTY),)), "u")),
        ONE: repeated(decision(one, one.levels("op", ()), None)),
        "ours, three levels, refused": repeated(refused(decide)),
    }
    with contextlib.suppress(ImportError):
        from throttled import Throttled, rate_limiter, store  # noqa: PLC0415 - may be missing

        quota = rate_limiter.per_sec(A_LOT, burst=A_LOT)
        theirs = Throttled(key="global", using="token_bucket", quota=quota, store=store.MemoryStore())
        contestants[THROTTLED] = repeated(theirs.limit)
    return {
        **contestants,
        **windows("fixed_window", FixedWindowRateLimiter),
        **windows("sliding_window", SlidingWindowCounterRateLimiter),
        **windows("moving_window", MovingWindowRateLimiter),
    }


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Start a server on a spare port; give its URI."""
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        uri = f"redis://127.0.0.1:{port}"
        storage = storage_from_string(uri)
        while not storage.check():
            time.sleep(0.01)
        yield uri
    finally:
        process.kill()
        process.wait()


def settled(rates: RateLimits, levels: Levels) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        if (pending := rates.check("op", levels, "u", time.monotonic())) is not None:
            await pending.settle()

    return call


def settled_sync(rates: RateLimits, levels: Levels) -> Callable[[], None]:
    def call() -> None:
        if (pending := rates.check("op", levels, "u", time.monotonic())) is not None:
            pending.settle_sync()

    return call


def awaited(part: Callable[[], Awaitable[None]], at_once: int = 1) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count // at_once):
            await asyncio.gather(*(part() for _ in range(at_once))) if at_once > 1 else await part()

    return calls


async def shared(slices: int) -> dict[str, Times]:
    many = {"requests_per_second": A_LOT, "burst_capacity": A_LOT}
    with redis_server() as uri:
        both = [
            make_rate_limits(RateLimitConfig(**many, storage_uri=uri, storage_mode=mode, per_user=many))
            for mode in ("exact", "leases")
        ]
        for rates in both:
            await rates.start()
        exact, leases = ((rates, rates.levels("op", (RateLimitRule(**many),))) for rates in both)
        limiter = FixedWindowRateLimiter(storage_from_string(uri))  # type: ignore[arg-type]
        item = RateLimitItemPerSecond(A_LOT)
        contestants = {
            REDIS: repeated(lambda: limiter.hit(item, "global")),
            "ours, exact, three levels": awaited(settled(*exact)),
            "  32 at once": awaited(settled(*exact), 32),
            "  in a thread": repeated(settled_sync(*exact)),
            LEASES: awaited(settled(*leases)),
        }
        measured = await alternate(contestants, slices=slices, calls=64)
        for rates in both:
            rates.close()
    return measured


def mebibytes(fill: Callable[[], object]) -> float:
    gc.collect()
    tracemalloc.start()
    kept = fill()
    taken = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    del kept
    return taken


def a_million(generations: int) -> TokenBuckets:
    buckets = TokenBuckets(RateLimitRule(requests_per_second=1, burst_capacity=3600))
    for generation in range(generations):
        for user in range(USERS):
            buckets.take(generation * 3601.0 + 1.0, 1, hash(f"user {user}"))
    return buckets


def memory() -> dict[str, float]:
    return {
        "ours, once each": mebibytes(lambda: a_million(1)),
        "ours, in both generations": mebibytes(lambda: a_million(2)),
        "a dictionary": mebibytes(lambda: {hash(f"user {user}"): user + 0.5 for user in range(USERS)}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=100, help="slices of each contestant (100)")
    options = parser.parse_args()
    print(f"{machine()}; {options.slices} slices each\n")
    local = asyncio.run(alternate(in_process(), slices=options.slices, calls=500))
    print(aligned(table(local, scale=1e6, unit="us")))
    print()
    stored = asyncio.run(shared(options.slices)) if shutil.which("redis-server") else {}
    if stored:
        print(aligned(table(stored, scale=1e6, unit="us")))
        print()
    taken = memory()
    print(aligned([["a million users", "MiB"], *([name, f"{size:.1f}"] for name, size in taken.items())]))
    print()
    print(verdict("three levels", local[THREE].p10 * 1e6, MICROSECONDS_AT_MOST, at_most=True, unit=" us"))
    for theirs in (name for name in (THROTTLED, FIXED) if name in local):
        print(verdict(f"{theirs} / {ONE}", local[theirs].p10 / local[ONE].p10, 1.0, at_most=False))
    if stored:
        cheaper = stored[REDIS].p10 / stored[LEASES].p10
        print(verdict(f"{REDIS} / {LEASES}", cheaper, LEASES_CHEAPER, at_most=False))
    most = taken["ours, in both generations"]
    print(verdict("a million users", most, MEBIBYTES_AT_MOST, at_most=True, unit=" MiB"))


if __name__ == "__main__":
    main()
