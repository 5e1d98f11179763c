"""What a container leaves this process: its memory limit, its working set and its CPU quota.

psutil sees the host; in a container the control group decides. Version 2 and version 1 are read, each
group up to the root, and the smallest limit holds. Source: Linux, admin-guide/cgroup-v2 and cgroup-v1;
the working set is usage less the file cache that the kernel can drop at once, as the kubelet computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ContainerMemory", "container_cpus", "container_memory"]

UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as the largest number of whole pages."""


@dataclass(frozen=True, slots=True)
class ContainerMemory:
    """The tightest limit, and what the group that has it uses, in bytes."""

    limit: float
    working_set: float


class _Files(NamedTuple):
    limit: str
    usage: str
    droppable: str


_MEMORY = {
    "": _Files("memory.max", "memory.current", "inactive_file"),
    "memory": _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def container_memory(root: Path = Path("/")) -> ContainerMemory | None:
    """Return the memory a container has, or None outside of one that limits it. Reads a few small files."""
    found = []
    for controller, files in _MEMORY.items():
        for group in _groups(root, controller):
            limit = _number(group / files.limit)
            usage = _number(group / files.usage)
            if limit is None or limit >= UNLIMITED or usage is None:
                continue
            droppable = _statistics(group / "memory.stat").get(files.droppable, 0)
            found.append(ContainerMemory(limit, max(0.0, usage - droppable)))
    return min(found, key=lambda memory: memory.limit, default=None)


def container_cpus(root: Path = Path("/")) -> float:
    """Return how many CPUs' worth of time the quota gives, infinite without one."""
    shares = [math.inf]
    for group in _groups(root, ""):
        quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
        if quota != "max":
            shares.append(float(quota) / float(period))
    for group in _groups(root, "cpu"):
        quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota_us is not None and period_us and quota_us > 0:
            shares.append(quota_us / period_us)
    return min(shares)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process's group and those above it, as far as they can be seen from here.

    Where /proc tells a path of the host that the container does not see, the mount's root is the group.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if controller not in names.split(","):
            continue
        for mount in {"": ("", "unified")}.get(controller, (controller, names)):
            top = root / "sys/fs/cgroup" / mount
            inner = top / path.strip("/")
            for group in (inner, *inner.parents):
                if group.is_dir():
                    yield group
                if group == top:
                    break


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _number(file: Path) -> float | None:
    try:
        return float(_text(file) or "")
    except ValueError:  # "max", or nothing
        return None


def _statistics(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in (_text(file) or "").splitlines())
    return {name: int(value) for name, value in pairs}
