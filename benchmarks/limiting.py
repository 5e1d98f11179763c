"""Measure the rate limits: `python benchmarks/limiting.py` (about 90 s).

in process  one decision through three levels (global, operation, user), one through a single token bucket,
            throttled-py's token bucket and the strategies of `limits`, each in memory; refused ones too
shared      a hit of `limits` on its RedisStorage (fixed window, its cheapest), and one decision of ours:
            exact, in a task and in a thread, and on leases, all on one redis-server started for this
processes   four processes and one limit of 1,000 a second, for 10 s, at twice and at 0.9 of it: how many
            calls are admitted, of what burst and rate allow, and round trips by the server's own count
stopped     the longest wait while the server is stopped (SIGSTOP), of 8 callers at a time
memory      what a process grows by for a million distinct users, by strategy, at worst (calls in two periods:
            both generations), a moving window by calls in its period; and for a dictionary of as many floats

throttled-py is left out where it is not installed (`uv pip install throttled-py`), and what is shared where
there is no redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
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
from llmkg_otel.limiting.plan import make_limiter
from llmkg_otel.limiting.rates import RateLimits, make_rate_limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from llmkg_otel.limiting.plan import Levels, Limiter

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
WORKER = Path(__file__).parent.parent / "tests" / "limiting" / "shared_worker.py"
PROCESSES, PER_SECOND, BURST = 4, 1000, 1000  # as the worker has them


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
def redis_server() -> Iterator[tuple[str, int]]:
    """Start a server on a spare port; give its URI and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        uri = f"redis://127.0.0.1:{port}"
        storage = storage_from_string(uri)
        while not storage.check():
            time.sleep(0.01)
        yield uri, process.pid
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
    with redis_server() as (uri, _):
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


def together(client: Any, uri: str, mode: str, seconds: float, offered: float) -> list[str]:
    """Run four processes; return a row: admitted, of how many possible, refused, round trips a decision."""
    client.flushall()
    client.config_resetstat()
    command = [sys.executable, str(WORKER), uri, mode, str(seconds), str(offered)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(PROCESSES)]
    for process in processes:
        process.stdout.readline()  # type: ignore[union-attr]
    start = f"{time.monotonic() + 0.2}\n"
    for process in processes:
        process.stdin.write(start)  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    told = [json.loads(process.communicate()[0]) for process in processes]
    admitted, refused, held = (sum(each[key] for each in told) for key in ("admitted", "refused", "held"))
    possible = min(seconds * PER_SECOND + BURST, admitted + refused)
    trips = client.info("commandstats")["cmdstat_evalsha"]["calls"] / (admitted + refused)
    longest = max(each["longest"] for each in told)
    numbers = (f"{admitted}", f"{admitted / possible:.3f}", f"{held}", f"{refused}")
    return [f"{mode}, {offered:g} x", *numbers, f"{trips:.4f}", f"{longest * 1e3:.0f}"]


async def longest_wait(uri: str, mode: str, pid: int) -> float:
    """Stop the server in the middle of many calls; return the longest time that one took, in seconds."""
    rates = make_rate_limits(RateLimitConfig(storage_uri=uri, storage_mode=mode, burst_capacity=A_LOT))
    await rates.start()
    call, waits = settled(rates, rates.levels("op", ())), list[float]()

    async def timed() -> None:
        began = time.monotonic()
        with contextlib.suppress(RateLimitedError):
            await call()
        waits.append(time.monotonic() - began)

    try:
        for number in range(600):  # 3 s: long enough for two attempts to reach the server again
            if number == 20:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.gather(*(timed() for _ in range(8)))
            await asyncio.sleep(0.005)
    finally:
        os.kill(pid, signal.SIGCONT)
        rates.close()
    return max(waits)


def processes(seconds: float) -> Iterator[str]:
    with redis_server() as (uri, pid):
        client: Any = storage_from_string(uri).storage  # type: ignore[union-attr]
        rows = [["four processes", "admitted", "of possible", "held", "refused", "trips", "longest ms"]]
        rows += [
            together(client, uri, mode, seconds, offered)
            for mode, offered in (("exact", 2), ("leases", 2), ("leases", 0.9))
        ]
        waits = {mode: asyncio.run(longest_wait(uri, mode, pid)) for mode in ("exact", "leases")}
    yield aligned(rows)
    yield ""
    yield verdict("exact: admitted / possible", float(rows[1][2]), 0.99, at_most=False)
    yield verdict("leases: admitted / possible", float(rows[2][2]), 0.97, at_most=False)
    yield verdict("leases below the limit: admitted / offered", float(rows[3][2]), 1.0, at_most=False)
    for row in rows[2:]:
        yield verdict(f"{row[0]}: round trips a decision", float(row[5]), 0.02, at_most=True)
    for mode, longest in waits.items():
        yield verdict(f"{mode}, server stopped: wait", longest * 1e3, 60, at_most=True, unit=" ms")


def grown(fill: Callable[..., object], *arguments: object) -> float:
    """Return by how many MiB the resident set of a new process grows."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(growth, fill, *arguments).result()


def growth(fill: Callable[..., object], *arguments: object) -> float:
    before = psutil.Process().memory_info().rss
    kept = fill(*arguments)
    gc.collect()
    after = psutil.Process().memory_info().rss
    del kept
    return (after - before) / 2**20


def called(strategy: str, users: int, calls: int, periods: int) -> Limiter:
    """Return a limiter after so many calls of each user in each period."""
    rule = RateLimitRule(requests_per_second=1, burst_capacity=3600, strategy=strategy)
    limiter = make_limiter(rule, "user")
    for period in range(periods):
        for call in range(calls):
            for user in range(users):
                limiter.take(3600.0 * (period + 1) + call, 1, hash(f"user {user}"))
    return limiter


def a_dictionary() -> dict[int, float]:
    return {hash(f"user {user}"): user + 0.5 for user in range(USERS)}


def memory() -> dict[str, float]:
    strategies = ("token_bucket", "fixed_window", "sliding_window")
    few = {name.replace("_", " "): grown(called, name, USERS, 1, 2) for name in strategies}
    few |= {f"moving window, {n} each": grown(called, "moving_window", USERS, n, 1) for n in (1, 3)}
    many = {"moving window, 30 each, 100,000 users": grown(called, "moving_window", USERS // 10, 30, 1)}
    return few | many | {"a dictionary": grown(a_dictionary)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=100, help="slices of each contestant (100)")
    parser.add_argument("--seconds", type=float, default=10, help="how long processes share a limit (10)")
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
        print()
        print("\n".join(processes(options.seconds)))
    for name, most in list(taken.items())[:5]:
        print(verdict(f"a million users, {name}", most, MEBIBYTES_AT_MOST, at_most=True, unit=" MiB"))


if __name__ == "__main__":
    main()
