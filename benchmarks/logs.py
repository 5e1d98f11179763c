"""Measure what a burst of log lines does to calls: `python benchmarks/logs.py` (about 20 s).

A thread logs 100,000 lines as fast as it can, with JSON lines on a stream that nobody reads, the ring of
recent records, and OTLP to a collector that never answers, all on. Meanwhile protected calls run on the
loop, 1 ms apart. Compared: their latency while another thread is as busy with plain Python, since one that
computes takes turns with the loop whatever it does. And: what the records have left in memory, what each
costs whoever logs it, and whether every record is accounted for. Last: whether redaction's time stays in
proportion to texts made to slow it down.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import statistics
import sys
import threading
import time
import timeit
from typing import TYPE_CHECKING, Any

import psutil
from _measure import machine
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from llmkg_otel import ProductionConfig, ProductionSystem, RateLimitConfig, ShutdownConfig
from llmkg_otel.server.serve import SWITCH_SECONDS
from llmkg_otel.telemetry.logs import CountingProcessor, JsonLogs, LogExport, dropped_records
from llmkg_otel.telemetry.secret_text import redact_text

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = 100_000
SEEDS = (
    *(
        "a",
        "=",
        "token=",
        "password=[",
        "password='",
        "token='\\",
        '\\"',
        "sk-",
        "://u:",
        "://u:1@",
        "https://a:b@",
    ),
    *(
        "Bearer ",
        "-----BEGIN PRIVATE KEY-----",
        "eyJaaaaa.",
        "authorization: null, ",
        "<password>",
        "--token ",
    ),
)
log = logging.getLogger("engine")


class Stuck(InMemoryLogRecordExporter):
    """A collector that never answers, until the end."""

    released = threading.Event()

    def export(self, batch: Any) -> Any:
        self.released.wait()
        return super().export(batch[:0])


class Unread:
    """A pipe that nobody reads."""

    def __init__(self) -> None:
        self.lines, self.released = 0, threading.Event()

    def write(self, text: str) -> int:
        self.released.wait()
        self.lines += text.count("\n")
        return len(text)

    def flush(self) -> None:
        """There is nothing to flush."""


def burst() -> None:
    for number in range(LINES):
        log.warning("asked %s for facts about %s, number %d", "bolt://kg:7687", "Ada Lovelace", number)


async def calls_beside(system: ProductionSystem, work: Callable[[], object]) -> tuple[list[float], float]:
    """Return the latencies of calls, in ms, while the work runs in a thread, and its CPU seconds."""
    cpu = 0.0

    def run() -> None:
        nonlocal cpu
        began = time.thread_time()
        work()
        cpu = time.thread_time() - began

    async def nothing() -> None:
        pass

    thread = threading.Thread(target=run)
    thread.start()
    latencies = []
    while thread.is_alive():
        began = time.perf_counter()
        await system.execute_protected_operation("op", nothing)
        latencies.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(0.001)
    thread.join()
    return latencies, cpu


def compute_until(deadline: list[float]) -> None:
    """Compute for as long as the burst took."""
    end = time.perf_counter() + deadline[0]
    while time.perf_counter() < end:
        sum(range(1000))


async def measure(out: Unread) -> None:
    config = ProductionConfig(
        shutdown=ShutdownConfig(lame_duck_seconds=0, flush_timeout_seconds=1),
        rate_limiting=RateLimitConfig(requests_per_second=1e6, burst_capacity=10**6),
    )
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(CountingProcessor(Stuck()))  # type: ignore[no-untyped-call]
    export = LogExport(logger_provider=provider)
    logging.getLogger().addHandler(export)
    process = psutil.Process()
    async with ProductionSystem(object(), config) as system:
        await calls_beside(system, burst)  # fills what is bounded
        memory, before = process.memory_info().rss, sum(dropped_records().values())
        began = time.perf_counter()
        beside_logs, cpu = await calls_beside(system, burst)
        took = [time.perf_counter() - began]
        grown = (process.memory_info().rss - memory) / 2**20
        dropped = sum(dropped_records().values()) - before
        beside_plain, _ = await calls_beside(system, lambda: compute_until(took))
        kept = len(system.telemetry.recent_logs.read(limit=LINES))
    logging.getLogger().removeHandler(export)
    Stuck.released.set()
    out.released.set()
    report(beside_logs, beside_plain, grown=grown, cpu=cpu, dropped=dropped, kept=kept)


def report(
    logs: list[float], plain: list[float], *, grown: float, cpu: float, dropped: int, kept: int
) -> None:
    print(f"{machine()}; {LINES} lines of one thread\n")
    for name, values in (("beside a burst of log lines", logs), ("beside plain computing", plain)):
        p99 = statistics.quantiles(values, n=100)[98]
        print(f"calls {name:28} p50 {statistics.median(values):6.2f} ms  p99 {p99:6.2f} ms  n {len(values)}")
    ratio = statistics.quantiles(logs, n=100)[98] / statistics.quantiles(plain, n=100)[98]
    print(f"a record costs whoever logs it {1e6 * cpu / LINES:.1f} us of CPU on all three ways")
    print(f"target: p99 beside logging at most twice that beside plain computing; measured {ratio:.2f}")
    print(f"target: grown by less than 5 MB; measured {grown:.1f} MB")
    print(f"target: two full queues drop and count every line, the ring keeps 10,000; {dropped}, {kept}")


def adversarial() -> None:
    """Print how redaction's time grows with texts made to slow it down: in proportion is 4."""
    worst = (0.0, 0.0, "")
    for seed in SEEDS:
        texts = (seed * (size // len(seed)) for size in (100_000, 400_000))
        once, four = (cost(functools.partial(redact_text, text)) for text in texts)
        if 1e3 * once > 1:  # what takes less is not measured well
            worst = max(worst, (four / once, 1e3 * once, seed))
    ratio, took, seed = worst
    print(
        f"target: redacting four times the text takes at most 8 times as long, not 16; measured {ratio:.1f}"
    )
    print(f"  ({seed!r} repeated, {took:.1f} ms for 100 kB)")


def cost(function: Callable[[], object]) -> float:
    """Return the least seconds of three runs."""
    return min(timeit.repeat(function, number=1, repeat=3))


def main() -> None:
    for name in ("TRACES", "METRICS", "LOGS"):
        os.environ[f"OTEL_{name}_EXPORTER"] = "none"
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    sys.setswitchinterval(SWITCH_SECONDS)  # as `llmkg-otel serve` does
    out: Any = Unread()
    with JsonLogs("info", out):
        asyncio.run(measure(out))
    adversarial()


if __name__ == "__main__":
    main()
