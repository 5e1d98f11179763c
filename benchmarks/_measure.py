"""Alternating slices: how two things compare on a machine that does other work as well.

A slice is one short run of one contestant. All contestants take turns in one process, in an order that
rotates, so that a busy neighbour or a change of clock speed meets them alike. Compare low percentiles:
noise only ever adds time.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

Contestant = Callable[[int], Awaitable[None]]
"""Makes as many calls as it is told."""


class Times(NamedTuple):
    """Seconds a call of one contestant, over its slices."""

    minimum: float
    p10: float
    median: float

    def ratios(self, floor: Times) -> tuple[float, ...]:
        return tuple(mine / other for mine, other in zip(self, floor, strict=True))


async def alternate(
    contestants: Mapping[str, Contestant],
    *,
    slices: int,
    calls: int,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Times]:
    """Run `slices` slices of `calls` calls each; `between` tidies up before each slice, untimed."""
    for contestant in contestants.values():
        await contestant(calls)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(slices):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            between()
            await asyncio.sleep(0)  # lets the loop drop cancelled timers, as it does between real calls
            start = time.perf_counter()
            await contestants[name](calls)
            taken[name].append((time.perf_counter() - start) / calls)
    return {name: summary(values) for name, values in taken.items()}


def summary(values: Iterable[float]) -> Times:
    ordered = sorted(values)
    return Times(ordered[0], ordered[len(ordered) // 10], ordered[len(ordered) // 2])


def table(measured: Mapping[str, Times], *, scale: float, unit: str) -> list[list[str]]:
    """Return a row a contestant: times in `unit` (seconds times `scale`), and ratios to the first one."""
    floor = next(iter(measured.values()))
    rows = [["", f"min {unit}", f"p10 {unit}", f"median {unit}", "min x", "p10 x", "median x"]]
    for name, times in measured.items():
        ratios = times.ratios(floor)
        rows.append([name, *(f"{value * scale:.2f}" for value in times), *(f"{x:.2f}" for x in ratios)])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def verdict(what: str, value: float, target: float, *, at_most: bool, unit: str = "") -> str:
    """Return one line: what was to be reached, what was measured, and whether it was."""
    reached = "yes" if (value <= target if at_most else value >= target) else "no"
    bound = "at most" if at_most else "at least"
    return f"target: {what} {bound} {target:g}{unit}; measured {value:.2f}{unit}; reached: {reached}"


def machine() -> str:
    """Return the date, the CPU, and how busy the machine was before."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "?")
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} x {cpu}, load {os.getloadavg()[0]:.1f},"
        f" Python {platform.python_version()}"
    )


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().splitlines()
    except OSError:
        return []
