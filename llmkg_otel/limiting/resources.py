"""Memory and CPU of this process, sampled off the request path, and the refusal when they run out."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from llmkg_otel.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.config import ResourceLimits

__all__ = ["ResourceUsage", "Resources"]

SAMPLE_SECONDS = 1.0
CPU_SMOOTHING = 0.3
"""Weight of the newest CPU sample in the running mean: about three seconds of memory."""
RELEASE_AT = 0.95
"""A resource that ran out is free again below this share of its limit, so that it does not flap."""


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """One sample: resident memory in bytes, CPU as a fraction of what the process may use (0 to 1)."""

    memory: float = 0.0
    cpu: float = 0.0


class Resources:
    """Samples once a second on a daemon thread; `check` only reads the last verdict.

    `start` and `stop` may be called from any thread; before the first sample nothing is refused.
    """

    def __init__(self, limits: ResourceLimits) -> None:
        self._limits = limits
        self._process = psutil.Process()
        self._cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._exhausted: frozenset[str] = frozenset()
        self.usage = ResourceUsage()
        self.peak = ResourceUsage()

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits, in the units of ResourceUsage."""
        return {
            "memory": float(self._limits.max_memory_bytes),
            "cpu": self._limits.max_cpu_percent / 100,
        }

    @property
    def exhausted(self) -> frozenset[str]:
        """Which of memory and cpu are over their limit now."""
        return self._exhausted

    def start(self) -> None:
        """Begin sampling."""
        self._process.cpu_percent()  # the first reading has nothing to compare with, and the start is no load
        self.observe(ResourceUsage(memory=float(self._process.memory_info().rss)))
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="llmkg-resources", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self, operation: str) -> None:
        """Raise ResourceExhaustedError while a resource is over its limit."""
        exhausted = self._exhausted
        if not exhausted:
            return
        name = min(exhausted)
        raise ResourceExhaustedError(
            f"{operation}: {name} is over its limit",
            operation=operation,
            scope=name,
            limit=self._limit_shown(name),
            retry_after=SAMPLE_SECONDS,
        )

    def observe(self, usage: ResourceUsage) -> None:
        """Take a sample: keep it, the peaks, and what it means for the calls to come."""
        self.usage = usage
        self.peak = ResourceUsage(max(self.peak.memory, usage.memory), max(self.peak.cpu, usage.cpu))
        limits = self.limits
        self._exhausted = frozenset(
            name
            for name, value in (("memory", usage.memory), ("cpu", usage.cpu))
            if value > limits[name] * (RELEASE_AT if name in self._exhausted else 1.0)
        )

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.observe(self._sample())

    def _sample(self) -> ResourceUsage:
        cpu = self._process.cpu_percent() / 100 / self._cpus
        smoothed = self.usage.cpu + CPU_SMOOTHING * (cpu - self.usage.cpu)
        return ResourceUsage(float(self._process.memory_info().rss), smoothed)

    def _limit_shown(self, name: str) -> str:
        if name == "memory":
            return f"{self._limits.max_memory_bytes} bytes"
        return f"{self._limits.max_cpu_percent:g}% of {self._cpus} CPUs"
