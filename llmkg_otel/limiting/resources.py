"""Memory, CPU and connections, sampled off the request path, and the refusal when they run out."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from llmkg_otel._threads import Periodic
from llmkg_otel.errors import ResourceExhaustedError
from llmkg_otel.limiting.cgroup import container_cpus, container_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.config import ResourceLimits

__all__ = ["ResourceUsage", "Resources"]

SAMPLE_SECONDS = 1.0
CPU_SMOOTHING = 0.3
"""Weight of the newest CPU sample in the running mean: about three seconds of memory."""
RELEASE_AT = 0.95
"""A resource that ran out is free again below this share of its limit, so that it does not flap."""


CONTAINER_SHARE = 0.9
"""Share of a container's memory at which new calls are refused: at all of it the kernel kills."""


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """One sample: memory in bytes, CPU as a fraction of what the process may use (0 to 1), connections.

    Memory is the process's resident set, or the container's working set where its limit is the smaller.
    Connections are those over TCP that this process has opened to others: to databases, models, stores.
    """

    memory: float = 0.0
    cpu: float = 0.0
    connections: float = 0.0


class Resources:
    """Samples once a second on a daemon thread; `check` only reads the last verdict.

    The limits are the configured ones, or a container's where that is smaller: nine tenths of its memory,
    and its CPU quota. `start` and `stop` may be called from any thread; before the first sample nothing
    is refused. `root` is where /proc and /sys are looked for.
    """

    def __init__(self, limits: ResourceLimits, root: Path = Path("/")) -> None:
        self._limits = limits
        self._root = root
        self._process = psutil.Process()
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.cpus = min(float(usable), container_cpus(root))
        self._max_memory = float(limits.max_memory_bytes)
        self._sampling = Periodic(lambda: self.observe(self._sample()), SAMPLE_SECONDS, "llmkg-resources")
        self._exhausted: frozenset[str] = frozenset()
        self.usage = ResourceUsage()
        self.peak = ResourceUsage()

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits, in the units of ResourceUsage."""
        return {
            "memory": self._max_memory,
            "cpu": self._limits.max_cpu_percent / 100,
            "connections": float(self._limits.max_database_connections),
        }

    @property
    def exhausted(self) -> frozenset[str]:
        """Which of memory, cpu and connections are over their limit now."""
        return self._exhausted

    def start(self) -> None:
        """Begin sampling."""
        self._process.cpu_percent()  # the first reading has nothing to compare with, and the start is no load
        self.observe(ResourceUsage(memory=self._memory()))
        self._sampling.start()

    def stop(self) -> None:
        """End sampling."""
        self._sampling.stop()

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
        names = [field.name for field in fields(ResourceUsage)]
        self.peak = ResourceUsage(*(max(getattr(self.peak, name), getattr(usage, name)) for name in names))
        limits = self.limits
        self._exhausted = frozenset(
            name
            for name in names
            if getattr(usage, name) > limits[name] * (RELEASE_AT if name in self._exhausted else 1.0)
        )

    def _sample(self) -> ResourceUsage:
        cpu = self._process.cpu_percent() / 100 / self.cpus
        smoothed = self.usage.cpu + CPU_SMOOTHING * (cpu - self.usage.cpu)
        return ResourceUsage(self._memory(), smoothed, self._connections())

    def _memory(self) -> float:
        """Return what is compared with the smaller limit, which can change while a container runs."""
        own, container = float(self._limits.max_memory_bytes), container_memory(self._root)
        if container is None or container.limit * CONTAINER_SHARE > own:
            self._max_memory = own
            return float(self._process.memory_info().rss)
        self._max_memory = container.limit * CONTAINER_SHARE
        return container.working_set

    def _connections(self) -> float:
        """Count what this process has opened: established, and not from a port that it listens on."""
        try:
            found = self._process.net_connections(kind="tcp")
        except psutil.Error:  # some systems keep it from ordinary users
            return 0.0
        listening = {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}
        established = (each for each in found if each.status == psutil.CONN_ESTABLISHED)
        return float(sum(each.laddr.port not in listening for each in established))

    def _limit_shown(self, name: str) -> str:
        if name == "memory":
            return f"{self._max_memory:.0f} bytes"
        if name == "cpu":
            return f"{self._limits.max_cpu_percent:g}% of {self.cpus:g} CPUs"
        return f"{self._limits.max_database_connections} connections"
