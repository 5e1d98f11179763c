"""Measure each part of the protected call alone: `python benchmarks/parts.py` (about 10 s).

Every part runs in the same loop, from which the empty loop's own time is taken away. Parts do not quite
add up to the whole: alone, each finds its data and code in the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import TYPE_CHECKING, Any

from _measure import Contestant, aligned, alternate, machine
from protected_call import ATTRIBUTES, Sdk, configuration, histogram_of, noop

from llmkg_otel import ProductionSystem
from llmkg_otel import call as current
from llmkg_otel.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.operation import Operation


def repeated(part: Callable[[], object]) -> Contestant:
    async def calls(count: int) -> None:
        for _ in range(count):
            part()

    return calls


def telemetry_parts(system: ProductionSystem, sdk: Sdk) -> dict[str, Callable[[], object]]:
    tracer = sdk.tracer_provider.get_tracer("bench")
    histogram = histogram_of(sdk.meter_provider.get_meter("bench"))
    observer = system._observer

    def floor() -> None:
        with tracer.start_as_current_span("noop"):
            started = time.perf_counter()
            histogram.record(time.perf_counter() - started, ATTRIBUTES)

    def span() -> None:
        with tracer.start_as_current_span("noop"):
            pass

    call = Call("noop", 30.0, user_id="u")

    def observed() -> None:
        observer.call_started(call)
        observer.call_ended(call, None)

    return {
        "the floor: span and histogram": floor,
        "  start_as_current_span": span,
        "  histogram.record": lambda: histogram.record(0.001, ATTRIBUTES),
        "observer: the same, by hand": observed,
    }


def policy_parts(system: ProductionSystem, op: Operation) -> dict[str, Callable[[], object]]:
    rates, pool, breaker, active = system.rate_limits, op.pools[0], op.breaker, system.calls
    call = Call("noop", 30.0, user_id="u")

    def permit() -> None:
        pool.try_acquire()
        pool.release()

    def circuit() -> None:
        breaker.succeeded(breaker.admit(), first=True)

    def tracked() -> None:
        active.enter(call)
        active.leave(call)

    return {
        "Call made": lambda: Call("noop", 30.0, user_id="u"),
        "current call set and reset": lambda: current.leave(current.enter(call)),
        "tracked: enter and leave": tracked,
        "three rate limits": lambda: rates.check("noop", op.rate, "u", time.monotonic()),
        "resources": lambda: system.resources.check("noop"),
        "permit": permit,
        "breaker": circuit,
    }


def loop_parts(system: ProductionSystem, op: Operation) -> dict[str, Contestant]:
    """Parts that need the running task, and the wholes."""

    async def timer(count: int) -> None:
        task: Any = asyncio.current_task()
        call = Call("noop", 30.0)
        for _ in range(count):
            call.start_timer(task, 10.0)
            call.stop_timer(task)

    async def stdlib_timeout(count: int) -> None:
        for _ in range(count):
            async with asyncio.timeout(10.0):
                pass

    async def awaited(count: int) -> None:
        for _ in range(count):
            await noop()

    async def pipeline(count: int) -> None:
        for _ in range(count):
            await system._pipeline.run(op, Call("noop", 30.0, user_id="u"), noop)

    async def whole(count: int) -> None:
        for _ in range(count):
            await system.execute_protected_operation("noop", noop, user_id="u")

    return {
        "attempt timer": timer,
        "  asyncio.timeout instead": stdlib_timeout,
        "one coroutine awaited": awaited,
        "Pipeline.run, all of it": pipeline,
        "execute_protected_operation": whole,
    }


async def measure(slices: int, calls: int) -> str:
    sdk = Sdk.make()
    system = ProductionSystem(
        None, configuration(), tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
    )
    async with system:
        op = system._operation("noop")
        parts = {"empty loop": lambda: None} | telemetry_parts(system, sdk) | policy_parts(system, op)
        contestants = {name: repeated(part) for name, part in parts.items()} | loop_parts(system, op)
        measured = await alternate(
            contestants, slices=slices, calls=calls, between=sdk.processor.force_flush
        )
    empty = measured.pop("empty loop").p10
    rows = [["part", "p10 us", ""]]
    rows += [[name, f"{(times.p10 - empty) * 1e6:.2f}", ""] for name, times in measured.items()]
    return f"{machine()}; {slices} slices of {calls} calls each\n{aligned(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200, help="slices of each part (200)")
    parser.add_argument("--calls", type=int, default=50, help="calls in a slice (50)")
    options = parser.parse_args()
    print(asyncio.run(measure(options.slices, options.calls)))


if __name__ == "__main__":
    main()
