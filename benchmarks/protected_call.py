"""Measure what protecting one call costs: `python benchmarks/protected_call.py` (about 20 s).

floor  one `start_as_current_span` and one histogram record around a coroutine that does nothing
ours   `execute_protected_operation` with the default configuration and everything on: three levels of
       rate limits (so high that nothing is refused), permits, deadline, retry, breaker, span, histogram
naive  the same protection put together from the libraries as their documentation shows it: tenacity's
       decorator, pybreaker's `calling`, asyncio.timeout, three hits of `limits` (fixed windows in memory,
       its cheapest), span, histogram, counter, and two log lines to a QueueHandler, emptied untimed

All share one tracer provider (batch processor, exporter that drops) and one meter provider (Prometheus
reader). The batch processor is emptied between slices, so no export runs, and none is dropped, in one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import queue
import time
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, NamedTuple

import pybreaker
from _measure import Contestant, Times, aligned, alternate, machine, table, verdict
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from tenacity import retry, stop_after_attempt, wait_exponential_jitter

from llmkg_otel import OperationConfig, ProductionConfig, ProductionSystem
from llmkg_otel.errors import RejectedError
from llmkg_otel.telemetry.semconv import DURATION_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

PLENTY: dict[str, Any] = {"requests_per_second": 1e9, "burst_capacity": 10**9}
NEVER_AGAIN = {"requests_per_second": 1e-6, "burst_capacity": 1}
ATTRIBUTES = {"llmkg.operation.name": "noop"}
FLOOR, OURS, NAIVE = "floor", "ours", "naive"
OURS_AT_MOST = 1.3
NAIVE_AT_LEAST = 4.0


class Null(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - dropped
        return SpanExportResult.SUCCESS


class Sdk(NamedTuple):
    """What everybody writes to. The system gives the meter provider its Prometheus reader."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    processor: BatchSpanProcessor

    @classmethod
    def make(cls) -> Sdk:
        sdk = cls(TracerProvider(), MeterProvider(), BatchSpanProcessor(Null()))
        sdk.tracer_provider.add_span_processor(sdk.processor)
        return sdk


def configuration() -> ProductionConfig:
    """Return the defaults, but for limits that this loop would meet and a quick end."""
    return ProductionConfig(
        rate_limiting=PLENTY | {"per_user": PLENTY},
        resources={"max_cpu_percent": 100},
        shutdown={"lame_duck_seconds": 0},
        operations={
            "noop": OperationConfig(rate_limit=PLENTY),
            "limited": OperationConfig(rate_limit=NEVER_AGAIN),
            "broken": OperationConfig(
                rate_limit=PLENTY,
                retry={"max_retries": 0},
                circuit_breaker={"failure_threshold": 1, "recovery_timeout": 3600},
            ),
        },
    )


async def noop() -> int:
    return 1


def noop_sync() -> int:
    return 1


def histogram_of(meter: Meter) -> Any:
    return meter.create_histogram("bench.duration", "s", explicit_bucket_boundaries_advisory=DURATION_BUCKETS)


def floor(tracer: Tracer, meter: Meter) -> Contestant:
    histogram = histogram_of(meter)

    async def calls(count: int) -> None:
        for _ in range(count):
            with tracer.start_as_current_span("noop"):
                started = time.perf_counter()
                await noop()
                histogram.record(time.perf_counter() - started, ATTRIBUTES)

    return calls


def floor_sync(tracer: Tracer, meter: Meter) -> Contestant:
    histogram = histogram_of(meter)

    async def calls(count: int) -> None:
        for _ in range(count):
            with tracer.start_as_current_span("noop"):
                started = time.perf_counter()
                noop_sync()
                histogram.record(time.perf_counter() - started, ATTRIBUTES)

    return calls


def ours(system: ProductionSystem) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count):
            await system.execute_protected_operation("noop", noop, user_id="u")

    return calls


def ours_sync(system: ProductionSystem) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count):
            system.execute_protected_operation_sync("noop", noop_sync, user_id="u")

    return calls


def refused(system: ProductionSystem, operation: str) -> Contestant:
    """Return calls that each raise a RejectedError, which is caught."""

    async def calls(count: int) -> None:
        refusals = 0
        for _ in range(count):
            try:
                await system.execute_protected_operation(operation, noop, user_id="u")
            except RejectedError:
                refusals += 1
        if refusals != count:
            raise RuntimeError(f"{operation}: {count - refusals} of {count} calls were let in")

    return calls


async def make_refusing(system: ProductionSystem) -> None:
    """Spend the only token of "limited", and open the circuit of "broken"."""

    async def failing() -> None:
        raise OSError

    await system.execute_protected_operation("limited", noop, user_id="u")
    try:
        await system.execute_protected_operation("broken", failing, user_id="u")
    except OSError:
        return


def naive_call(tracer: Tracer, meter: Meter, log: logging.Logger) -> Callable[[], Awaitable[int]]:
    """Return the composition. Each library at its cheapest: fixed windows in memory, one storage."""
    histogram, counter = histogram_of(meter), meter.create_counter("bench.calls")
    breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)
    limiter, rule = FixedWindowRateLimiter(MemoryStorage()), RateLimitItemPerSecond(10**9)
    keys = (("global",), ("operation", "noop"), ("user", "u"))

    @retry(stop=stop_after_attempt(4), wait=wait_exponential_jitter(multiplier=0.1, max=5), reraise=True)
    async def attempt() -> int:
        with breaker.calling():
            async with asyncio.timeout(10):
                return await noop()

    async def call() -> int:
        started = time.perf_counter()
        log.info("%s started", "noop")
        with tracer.start_as_current_span("noop"):
            try:
                for key in keys:
                    if not limiter.hit(rule, *key):
                        raise PermissionError(key)
                return await attempt()
            finally:
                seconds = time.perf_counter() - started
                histogram.record(seconds, ATTRIBUTES)
                counter.add(1, ATTRIBUTES)
                log.info("%s ended after %.6f s", "noop", seconds)

    return call


def logger_to(name: str, handler: logging.Handler) -> logging.Logger:
    log = logging.getLogger(name)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    return log


def naive(tracer: Tracer, meter: Meter, log: logging.Logger) -> Contestant:
    call = naive_call(tracer, meter, log)

    async def calls(count: int) -> None:
        for _ in range(count):
            await call()

    return calls


async def measure(slices: int, calls: int) -> dict[str, dict[str, Times]]:
    """Return what three rounds measured; the first contestant of each is its floor."""
    sdk, lines = Sdk.make(), queue.SimpleQueue[logging.LogRecord]()
    logger_to("llmkg_otel", logging.NullHandler())  # refusals are logged once a second
    system = ProductionSystem(
        None, configuration(), tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
    )
    tracer, meter = sdk.tracer_provider.get_tracer("bench"), sdk.meter_provider.get_meter("bench")
    queued = logger_to("bench.queued", QueueHandler(lines))
    dropped = logger_to("bench.dropped", logging.NullHandler())

    def tidy() -> None:
        sdk.processor.force_flush()
        while not lines.empty():
            lines.get()

    rounds: dict[str, dict[str, Contestant]] = {
        "async": {
            FLOOR: floor(tracer, meter),
            OURS: ours(system),
            NAIVE: naive(tracer, meter, queued),
            "naive, log lines dropped": naive(tracer, meter, dropped),
        },
        "sync": {"floor, sync": floor_sync(tracer, meter), "ours, sync": ours_sync(system)},
        "refused": {
            FLOOR: floor(tracer, meter),
            "ours, rate limited": refused(system, "limited"),
            "ours, circuit open": refused(system, "broken"),
        },
    }
    async with system:
        await make_refusing(system)
        return {
            name: await alternate(round_, slices=slices, calls=calls, between=tidy)
            for name, round_ in rounds.items()
        }


def report(rounds: Mapping[str, Mapping[str, Times]]) -> Iterator[str]:
    for measured in rounds.values():
        yield aligned(table(measured, scale=1e6, unit="us"))
        yield ""
    of = rounds["async"]
    yield verdict("ours / floor, p10", of[OURS].p10 / of[FLOOR].p10, OURS_AT_MOST, at_most=True)
    yield verdict("naive / ours, p10", of[NAIVE].p10 / of[OURS].p10, NAIVE_AT_LEAST, at_most=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=200, help="slices of each contestant (200)")
    parser.add_argument("--calls", type=int, default=50, help="calls in a slice (50)")
    options = parser.parse_args()
    print(f"{machine()}; {options.slices} slices of {options.calls} calls each\n")
    print("\n".join(report(asyncio.run(measure(options.slices, options.calls)))))


if __name__ == "__main__":
    main()
