"""Measure what protecting one call costs: `python benchmarks/protected_call.py` (about 20 s).

floor  one `start_as_current_span` and one histogram record around a coroutine that does nothing
ours   `execute_protected_operation` with the default configuration and everything on: three levels of
       rate limits (so high that nothing is refused), permits, deadline, retry, breaker, span, histogram
naive  the same protection put together from the libraries as their documentation shows it

All share one tracer provider (batch processor, exporter that drops) and one meter provider (Prometheus
reader). The batch processor is emptied between slices, so no export runs, and none is dropped, in one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pybreaker
from _measure import Contestant, aligned, alternate, machine, table, verdict
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
    from collections.abc import Awaitable, Callable, Sequence

    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

PLENTY: dict[str, Any] = {"requests_per_second": 1e9, "burst_capacity": 10**9}
NEVER_AGAIN = {"requests_per_second": 1e-6, "burst_capacity": 1}
ATTRIBUTES = {"llmkg.operation.name": "noop"}
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


def naive(tracer: Tracer, meter: Meter) -> Contestant:
    """Log to a NullHandler: cheaper than any handler that writes."""
    log = logging.getLogger("bench.naive")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(logging.NullHandler())
    call = naive_call(tracer, meter, log)

    async def calls(count: int) -> None:
        for _ in range(count):
            await call()

    return calls


async def measure(slices: int, calls: int) -> str:
    sdk = Sdk.make()
    system = ProductionSystem(
        None, configuration(), tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
    )
    logging.getLogger("llmkg_otel").addHandler(logging.NullHandler())
    logging.getLogger("llmkg_otel").propagate = False
    tracer, meter = sdk.tracer_provider.get_tracer("bench"), sdk.meter_provider.get_meter("bench")
    async with system:
        await make_refusing(system)
        measured = await alternate(
            {
                "floor": floor(tracer, meter),
                "ours": ours(system),
                "naive": naive(tracer, meter),
                "floor, sync": floor_sync(tracer, meter),
                "ours, sync": ours_sync(system),
                "ours, rate limited": refused(system, "limited"),
                "ours, circuit open": refused(system, "broken"),
            },
            slices=slices,
            calls=calls,
            between=sdk.processor.force_flush,
        )
    floors = {name: "floor, sync" if name == "ours, sync" else "floor" for name in measured}
    floors |= {"floor": "", "floor, sync": "", "naive": "ours"}
    return "\n".join(
        [
            f"{machine()}; {slices} slices of {calls} calls each",
            aligned(table(measured, floors, 1e6, "us")),
            verdict(
                "ours against floor, p10",
                measured["ours"].p10 / measured["floor"].p10,
                OURS_AT_MOST,
                at_most=True,
            ),
            verdict(
                "naive against ours, p10",
                measured["naive"].p10 / measured["ours"].p10,
                NAIVE_AT_LEAST,
                at_most=False,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=200, help="slices of each contestant (200)")
    parser.add_argument("--calls", type=int, default=50, help="calls in a slice (50)")
    options = parser.parse_args()
    print(asyncio.run(measure(options.slices, options.calls)))


if __name__ == "__main__":
    main()
