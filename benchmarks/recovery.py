"""Measure error recovery: `python benchmarks/recovery.py` (about 15 s).

decision   what a breaker adds to a call that succeeds (ours: door and `succeeded`; pybreaker: `calling`),
           and what its refusal costs, raised and caught
threads    the same decision, eight threads at once that do nothing else: each one is timed
whole      a protected call that succeeds: ours as `protected_call.py` has it, rate limits and permits
           included, against retry, breaker, attempt timeout and total deadline put together from other
           libraries as their documentation shows them, in the same span and the same histogram

The other libraries are the dependency group `bench`; one that is missing is told as such.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import statistics
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pybreaker
from _measure import Contestant, aligned, alternate, machine, table, verdict
from protected_call import (
    ATTRIBUTES,
    FLOOR,
    OURS,
    Sdk,
    configuration,
    floor,
    histogram_of,
    logger_to,
    noop,
    ours,
)
from tenacity import retry, stop_after_attempt, wait_exponential_jitter

from llmkg_otel import ProductionSystem
from llmkg_otel.config import CircuitBreakerConfig
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.recovery.breaker import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    from llmkg_otel.events import Event

    Call = Callable[[], Awaitable[int]]

RATES: dict[str, Any] = {"failure_rate_threshold": 0.5, "slow_call_rate_threshold": 0.5}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ours, default": {},
    "ours, window of calls": RATES,
    "ours, window of time": RATES | {"sliding_window_seconds": 60},
}
THREADS = 8
DECISION_AT_MOST, DECISION_P99_AT_MOST, REFUSAL_AT_MOST = 3.0, 50.0, 15.0
OTHERS_AT_LEAST = 2.0


class Deaf:
    def on_event(self, event: Event) -> None:
        """Take no note."""


class Counter:
    """The least that a count for all threads costs: a lock."""

    def __init__(self) -> None:
        self.door = self._lock = threading.Lock()
        self._count = 0

    def succeeded(self, _ticket: object, *, first: bool, started: float) -> None:
        with self._lock:
            self._count += first and started > 0


def breaker_with(**options: Any) -> CircuitBreaker:
    """Return a breaker that has seen a failure in a hundred calls, as a healthy service has them."""
    breaker = CircuitBreaker("noop", CircuitBreakerConfig(**options), Deaf())
    for number in range(100):
        ticket = breaker.admit_sync()
        if number == 0:
            breaker.failed(ticket, OSError())
        else:
            breaker.succeeded(ticket, first=True, started=time.monotonic())
    return breaker


def decided(breaker: CircuitBreaker) -> Contestant:
    async def calls(count: int) -> None:
        started = time.monotonic()
        for _ in range(count):
            ticket = breaker.door or breaker.admit_sync()  # as the pipeline does
            breaker.succeeded(ticket, first=True, started=started)

    return calls


def refused(breaker: CircuitBreaker) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count):
            try:
                breaker.door or breaker.admit_sync()
            except CircuitOpenError:
                continue
            raise RuntimeError("the circuit is not open")

    return calls


def pybreaker_decided(breaker: pybreaker.CircuitBreaker) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count):
            with suppress(pybreaker.CircuitBreakerError), breaker.calling():
                pass

    return calls


async def decisions(slices: int) -> list[str]:
    closed: dict[str, Contestant] = {"pybreaker, calling": pybreaker_decided(pybreaker.CircuitBreaker())}
    closed |= {name: decided(breaker_with(**options)) for name, options in CONFIGURATIONS.items()}
    theirs, mine = pybreaker.CircuitBreaker(), breaker_with()
    theirs.open()
    for _ in range(5):
        mine.failed(mine.admit_sync(), OSError())
    measured = await alternate(closed, slices=slices, calls=100)
    refusals = await alternate(
        {"pybreaker, refused": pybreaker_decided(theirs), "ours, refused": refused(mine)},
        slices=slices,
        calls=100,
    )
    lines = [aligned(table(each, scale=1e6, unit="us")) + "\n" for each in (measured, refusals)]
    dearest = max(measured[name].median for name in CONFIGURATIONS)
    lines.append(
        verdict("decision, closed, median", dearest * 1e6, DECISION_AT_MOST, at_most=True, unit=" us")
    )
    refusal = refusals["ours, refused"].median
    lines.append(verdict("refusal, open, median", refusal * 1e6, REFUSAL_AT_MOST, at_most=True, unit=" us"))
    return lines


def timed_in_threads(breaker: Any, calls: int) -> list[float]:
    """Return the seconds of every decision of all threads; the clock's own are within."""
    start, taken = threading.Barrier(THREADS), [[0.0] * calls for _ in range(THREADS)]

    def work(mine: list[float]) -> None:
        clock = time.perf_counter
        start.wait()
        started = time.monotonic()
        for number in range(calls):
            before = clock()
            ticket = breaker.door or breaker.admit_sync()
            breaker.succeeded(ticket, first=True, started=started)
            mine[number] = clock() - before

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seconds for mine in taken for seconds in mine]


def in_threads(rounds: int, calls: int = 10_000) -> list[str]:
    """Take the percentiles of each round, in which all threads make `calls`, and their median over rounds.

    So many calls last longer than the interpreter lets one thread run (5 ms): the threads do meet.
    """
    breakers: dict[str, Any] = {"a lock and a count": Counter()}
    breakers |= {name: breaker_with(**options) for name, options in CONFIGURATIONS.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in breakers}
    for _ in range(rounds):
        for name, breaker in breakers.items():
            seconds = sorted(timed_in_threads(breaker, calls))
            taken[name].append([seconds[int(len(seconds) * share)] * 1e6 for share in (0.5, 0.99, 0.999)])
    rows = [[f"{THREADS} threads, median of {rounds} rounds", "p50 us", "p99 us", "p99.9 us", "worst p99 us"]]
    p99s = []
    for name, percentiles in taken.items():
        p50, p99, p999 = (statistics.median(column) for column in zip(*percentiles, strict=True))
        worst = max(p99 for _, p99, _ in percentiles)
        rows.append([name, *(f"{value:.1f}" for value in (p50, p99, p999, worst))])
        p99s.append(p99)
    told = verdict(
        f"decision, {THREADS} threads, p99", max(p99s), DECISION_P99_AT_MOST, at_most=True, unit=" us"
    )
    return [aligned(rows) + "\n", told]


def with_telemetry(call: Call, tracer: Tracer, meter: Meter) -> Contestant:
    """Put what others protect into the same span and the same histogram as the floor."""
    histogram = histogram_of(meter)

    async def calls(count: int) -> None:
        for _ in range(count):
            with tracer.start_as_current_span("noop"):
                started = time.perf_counter()
                try:
                    await call()
                finally:
                    histogram.record(time.perf_counter() - started, ATTRIBUTES)

    return calls


def tenacity_pybreaker() -> Call:
    breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)

    @retry(stop=stop_after_attempt(4), wait=wait_exponential_jitter(multiplier=0.1, max=5), reraise=True)
    async def attempt() -> int:
        with breaker.calling():
            async with asyncio.timeout(10):
                return await noop()

    async def call() -> int:
        async with asyncio.timeout(30):
            return await attempt()

    return call


def stamina_purgatory() -> Call:
    import stamina  # noqa: PLC0415 - it may be missing
    from purgatory import AsyncCircuitBreakerFactory  # noqa: PLC0415

    breakers = AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)

    @stamina.retry(on=Exception, attempts=4, timeout=30, wait_initial=0.1, wait_max=5)
    async def attempt() -> int:
        async with await breakers.get_breaker("noop"), asyncio.timeout(10):
            return await noop()

    async def call() -> int:
        async with asyncio.timeout(30):
            return await attempt()

    return call


def hyx() -> Call:
    from hyx.circuitbreaker import consecutive_breaker  # noqa: PLC0415 - it may be missing
    from hyx.retry import retry  # noqa: PLC0415
    from hyx.retry.backoffs import expo  # noqa: PLC0415
    from hyx.timeout import timeout  # noqa: PLC0415

    breaker = consecutive_breaker(failure_threshold=5, recovery_time_secs=60)

    @timeout(30)
    @retry(on=Exception, attempts=4, backoff=expo(min_delay_secs=0.1, max_delay_secs=5))
    @breaker
    @timeout(10)
    async def call() -> int:
        return await noop()

    return call


OTHERS: dict[str, tuple[tuple[str, ...], Callable[[], Call]]] = {
    "tenacity + pybreaker": ((), tenacity_pybreaker),
    "stamina + purgatory": (("stamina", "purgatory"), stamina_purgatory),
    "hyx": (("hyx",), hyx),
}


async def wholes(slices: int) -> list[str]:
    sdk = Sdk.make()
    logger_to("llmkg_otel", logging.NullHandler())
    system = ProductionSystem(
        None, configuration(), tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
    )
    tracer, meter = sdk.tracer_provider.get_tracer("bench"), sdk.meter_provider.get_meter("bench")
    contestants: dict[str, Contestant] = {OURS: ours(system), FLOOR: floor(tracer, meter)}
    missing = []
    for name, (modules, compose) in OTHERS.items():
        if all(importlib.util.find_spec(module) for module in modules):
            contestants[name] = with_telemetry(compose(), tracer, meter)
        else:
            missing.append(f"{name}: not installed (uv sync --group bench)")
    async with system:
        measured = await alternate(contestants, slices=slices, calls=50, between=sdk.processor.force_flush)
    ratios = {name: measured[name].p10 / measured[OURS].p10 for name in OTHERS if name in measured}
    return [
        aligned(table(measured, scale=1e6, unit="us")),
        *missing,
        "",
        *(verdict(f"{name} / ours, p10", x, OTHERS_AT_LEAST, at_most=False) for name, x in ratios.items()),
    ]


def report(slices: int) -> Iterator[str]:
    yield from asyncio.run(decisions(slices))
    yield ""
    yield from in_threads(max(1, slices // 20))
    yield ""
    yield from asyncio.run(wholes(slices))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=200, help="slices of each contestant (200)")
    options = parser.parse_args()
    print(f"{machine()}; {options.slices} slices each\n")
    print("\n".join(report(options.slices)))


if __name__ == "__main__":
    main()
