"""An engine that takes so many calls a second, and three times as many: with load shedding and without.

    python benchmarks/overload.py [seconds]

The engine has 10 workers that take 50 ms a call, always or on average (lognormal with a sigma of 1; or 5 ms
but for one call in ten, which takes 0.5 s), and goes on with a call whose caller has left, as a remote one
would. Callers come at a steady rate, a tenth of them critical and three tenths sheddable, and leave after
0.5 s (2 s where times vary). Useful is an answer that its caller still waited for.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _measure import aligned, machine, verdict

from llmkg_otel import OperationConfig, ProductionConfig, ProductionSystem
from llmkg_otel.errors import LlmkgOtelError, error_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.limiting.waiting import Criticality

WORKERS = 10
SIGMA = 1.0


@dataclass(frozen=True)
class Shape:
    """How long the engine works on a call, on average and on one, and a caller waits, in seconds."""

    mean: float
    patience: float
    draw: Callable[[random.Random], float]

    @property
    def capacity(self) -> float:
        """Calls a second."""
        return WORKERS / self.mean


SHAPES = {
    "fixed": Shape(0.05, 0.5, lambda _: 0.05),
    "lognormal": Shape(0.05, 2.0, lambda draw: draw.lognormvariate(math.log(0.05) - SIGMA**2 / 2, SIGMA)),
    "bimodal": Shape(0.0545, 2.0, lambda draw: 0.5 if draw.random() < 0.1 else 0.005),
}


class Engine:
    """Workers that take calls in the order they came, whether or not somebody still waits."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self._draw = shape, random.Random(2)
        self._free = asyncio.Semaphore(WORKERS)
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self) -> None:
        call = asyncio.create_task(self._work())
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        await asyncio.shield(call)

    async def _work(self) -> None:
        async with self._free:
            await asyncio.sleep(self._shape.draw(self._draw))


class Load:
    """What became of the calls."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.by_criticality: Counter[tuple[str, bool]] = Counter()
        self.seconds: list[float] = []

    async def call(self, system: ProductionSystem, engine: Engine, criticality: Criticality) -> None:
        began = time.monotonic()
        outcome = "ok"
        try:
            await system.execute_protected_operation("ask", engine.ask, criticality=criticality)
        except LlmkgOtelError as error:
            outcome = error_type(error)
        self.outcomes[outcome] += 1
        if outcome in ("shed", "permit_timeout"):
            self.by_criticality[criticality, False] += 1
        else:
            self.by_criticality[criticality, True] += 1
            self.seconds.append(time.monotonic() - began)


async def run(mode: str, shape: Shape, load_factor: float, seconds: float) -> Load:
    """Make calls for so long, so many times the capacity, and wait for the last of them."""
    rate = load_factor * shape.capacity
    config = ProductionConfig(
        load_shedding={"mode": mode},
        rate_limiting={"enabled": False},
        resources={"max_cpu_percent": 100},
        operations={
            "ask": OperationConfig(
                timeout=shape.patience, retry={"max_retries": 0}, circuit_breaker={"enabled": False}
            )
        },
        alerting={"default_rules": False},
        monitoring={"log_level": "error"},
        shutdown={"lame_duck_seconds": 0},
    )
    load, draw = Load(), random.Random(1)
    async with ProductionSystem(None, config) as system:
        engine = Engine(shape)
        tasks: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        sent = 0
        while (now := time.monotonic() - began) < seconds:
            for _ in range(int(now * rate) - sent):
                kind: Criticality = draw.choices(("critical", "default", "sheddable"), (1, 6, 3))[0]
                task = asyncio.create_task(load.call(system, engine, kind))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
    return load


def p99(load: Load) -> float:
    """Return the 99th percentile of the times of calls that were let in, whatever became of them."""
    return sorted(load.seconds)[int(0.99 * (len(load.seconds) - 1))]


def row(name: str, load: Load, shape: Shape, seconds: float, unloaded: float) -> list[str]:
    refused = {kind for (kind, admitted), count in load.by_criticality.items() if not admitted and count}
    return [
        name,
        f"{load.outcomes['ok'] / seconds / shape.capacity:.2f}",
        f"{p99(load) * 1e3:.0f}",
        f"{p99(load) / unloaded:.2f}",
        str(sum(load.outcomes.values()) - load.outcomes["ok"]),
        ", ".join(sorted(refused)) or "none",
    ]


def compare(name: str, seconds: float) -> None:
    """Print the table of one shape, and how it compares with what is wanted."""
    shape = SHAPES[name]
    calm = asyncio.run(run("off", shape, 0.5, seconds / 2))
    shed = asyncio.run(run("on", shape, 3, seconds))
    unloaded = p99(calm)
    rows = [[name, "useful / capacity", "p99 ms", "p99 x", "not answered", "refused were"]]
    rows.append(row("half the capacity", calm, shape, seconds / 2, unloaded))
    rows.append(row("3 x capacity, shedding", shed, shape, seconds, unloaded))
    if name == "fixed":
        unshed = asyncio.run(run("off", shape, 3, seconds))
        rows.append(row("3 x capacity, none", unshed, shape, seconds, unloaded))
    print(aligned(rows), "\n")
    useful = shed.outcomes["ok"] / seconds / shape.capacity
    print(verdict("useful answers / capacity", useful, 0.9, at_most=False))
    print(verdict("p99 of calls let in / unloaded", p99(shed) / unloaded, 3, at_most=True))
    print(verdict("critical calls refused", shed.by_criticality["critical", False], 0, at_most=True), "\n")


def main() -> None:
    """Print the tables."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"{machine()}; {seconds:g} s each\n")
    for name in SHAPES:
        compare(name, seconds)


if __name__ == "__main__":
    main()
