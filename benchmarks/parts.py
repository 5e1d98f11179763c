"""Measure each part of the protected call alone: `python benchmarks/parts.py` (about 10 s).

Every part runs in the same loop, from which the empty loop's own time is taken away. Parts do not quite
add up to the whole: alone, each finds its data and code in the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import time
from typing import TYPE_CHECKING, Any

from _measure import Contestant, aligned, alternate, machine
from protected_call import (
    ATTRIBUTES,
    Sdk,
    configuration,
    histogram_of,
    logger_to,
    make_refusing,
    noop,
    noop_sync,
    ours,
    refused,
)

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
        breaker.succeeded(breaker.admit_sync(), first=True)

    def tracked() -> None:
        active.enter(call)
        active.leave(call)

    return {
        "Call made": lambda: Call("noop", 30.0, user_id="u"),
        "current call set and reset": lambda: current.leave(current.enter(call)),
        "tracked: enter and leave": tracked,
        "three rate limits": lambda: rates.check("noop", op.levels, "u", time.monotonic()),
        "resources": lambda: system.resources.check("noop"),
        "permit": permit,
        "breaker": circuit,
    }


async def timer(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        loop.call_later(10.0, print).cancel()


async def stdlib_timeout(count: int) -> None:
    for _ in range(count):
        async with asyncio.timeout(10.0):  # noqa: ASYNC100 - its own cost is what is asked for
            pass


async def awaited(count: int) -> None:
    for _ in range(count):
        await noop()


def wholes(system: ProductionSystem, op: Operation) -> dict[str, Contestant]:
    body: Any = noop  # run() is overloaded only where users meet it

    async def pipeline(count: int) -> None:
        for _ in range(count):
            await system._pipeline.run(op, Call("noop", 30.0, user_id="u"), body)

    def pipeline_sync() -> None:
        system._pipeline.run_sync(op, Call("noop", 30.0, user_id="u"), noop_sync)

    return {
        "Pipeline.run_sync, all of it": repeated(pipeline_sync),
        "Pipeline.run, all of it": pipeline,
        "execute_protected_operation": ours(system),
    }


async def garbage(contestant: Contestant, sdk: Sdk, calls: int = 200) -> float:
    """Return how many objects a call leaves for the cycle collector: 0 if reference counts free them all."""
    counted = 0
    gc.disable()
    for _ in range(2):  # the first time is warm-up
        await contestant(calls)
        sdk.processor.force_flush()
        await asyncio.sleep(0)
        counted = gc.collect()
    gc.enable()
    return counted / calls


async def measure(slices: int, calls: int) -> list[str]:
    sdk = Sdk.make()
    logger_to("llmkg_otel", logging.NullHandler())
    system = ProductionSystem(
        None, configuration(), tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider
    )
    async with system:
        await make_refusing(system)
        op = system.operations.named("noop")
        parts = {"empty loop": lambda: None} | telemetry_parts(system, sdk) | policy_parts(system, op)
        contestants = {name: repeated(part) for name, part in parts.items()}
        contestants |= {
            "a timer: call_later and cancel": timer,
            "asyncio.timeout": stdlib_timeout,
            "one coroutine awaited": awaited,
        }
        contestants |= wholes(system, op)
        measured = await alternate(contestants, slices=slices, calls=calls, between=sdk.processor.force_flush)
        left = {
            "ours": await garbage(ours(system), sdk),
            "ours, rate limited": await garbage(refused(system, "limited"), sdk),
            "ours, circuit open": await garbage(refused(system, "broken"), sdk),
        }
    empty = measured.pop("empty loop").p10
    rows = [["part", "p10 us"]]
    rows += [[name, f"{(times.p10 - empty) * 1e6:.2f}"] for name, times in measured.items()]
    cycles = [["", "objects left in cycles, a call"], *([name, f"{n:.1f}"] for name, n in left.items())]
    return [aligned(rows), "", aligned(cycles)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=200, help="slices of each part (200)")
    parser.add_argument("--calls", type=int, default=50, help="calls in a slice (50)")
    options = parser.parse_args()
    print(f"{machine()}; {options.slices} slices of {options.calls} calls each\n")
    print("\n".join(asyncio.run(measure(options.slices, options.calls))))


if __name__ == "__main__":
    main()
