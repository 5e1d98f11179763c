"""Containers: faked trees of each kind, and a real child in a real control group where the machine allows."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmkg_otel.config import ResourceLimits
from llmkg_otel.errors import ResourceExhaustedError
from llmkg_otel.limiting.cgroup import ContainerMemory, container_cpus, container_memory
from llmkg_otel.limiting.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

MEBI = 1 << 20
NO_LIMIT = "9223372036854771712\n"
V2 = "0::/kubepods/pod1\n"
V1 = "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/x\n"


def tree(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def memory_v2(folder: str, limit: str, usage: int = 0, inactive: int = 0) -> dict[str, str]:
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{usage}\n",
        f"{folder}memory.stat": f"anon 5\ninactive_file {inactive}\n",
    }


def memory_v1(folder: str, limit: str, usage: int = 0, inactive: int = 0) -> dict[str, str]:
    return {
        f"memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}memory.usage_in_bytes": f"{usage}\n",
        f"memory/{folder}memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (V2, {}, None),
        (V2, memory_v2("kubepods/pod1/", "max", 7), None),
        (V2, memory_v2("kubepods/pod1/", "1000", 700, 200), ContainerMemory(1000, 500)),
        (V2, memory_v2("kubepods/pod1/", "1000", 100, 200), ContainerMemory(1000, 0)),
        (
            V2,  # a pod's limit below its container's
            memory_v2("kubepods/pod1/", "1000", 300) | memory_v2("kubepods/", "900", 800, 50),
            ContainerMemory(900, 750),
        ),
        (V2, memory_v2("", "1000", 700, 200), ContainerMemory(1000, 500)),  # the host's path, not seen here
        ("0::/\n", memory_v2("", "1000", 700, 200), ContainerMemory(1000, 500)),
        (V1, memory_v1("docker/abc/", NO_LIMIT, 7), None),
        (V1, memory_v1("docker/abc/", "1000", 700, 200), ContainerMemory(1000, 500)),
        (V1, memory_v1("", "1000", 700, 200), ContainerMemory(1000, 500)),
        (V1, memory_v1("", "1000", 700) | memory_v2("unified/x/", "600", 400), ContainerMemory(600, 400)),
        ("", memory_v2("", "1000"), None),
    ],
)
def test_the_smallest_memory_limit_of_either_version_holds_with_its_working_set(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: ContainerMemory | None
) -> None:
    assert container_memory(tree(tmp_path, cgroup, files)) == expected


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (V2, {}, math.inf),
        (V2, {"kubepods/pod1/cpu.max": "max 100000\n"}, math.inf),
        (V2, {"kubepods/pod1/cpu.max": "50000 100000\n"}, 0.5),
        (V2, {"kubepods/pod1/cpu.max": "300000 100000\n", "kubepods/cpu.max": "150000 100000\n"}, 1.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "25000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 0.25),
    ],
)
def test_a_quota_is_so_many_cpus(tmp_path: Path, cgroup: str, files: dict[str, str], expected: float) -> None:
    assert container_cpus(tree(tmp_path, cgroup, files)) == expected


def test_a_host_without_control_groups_limits_nothing(tmp_path: Path) -> None:
    assert (container_memory(tmp_path), container_cpus(tmp_path)) == (None, math.inf)


def sampled(root: Path, max_memory: int) -> Resources:
    resources = Resources(ResourceLimits(max_memory_bytes=max_memory), root)
    resources.observe(resources._sample())
    return resources


def test_a_container_with_less_than_is_configured_is_the_limit_and_its_working_set_the_use(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path, V2, memory_v2("", "1000", 950, 20) | {"cpu.max": "50000 100000"})
    resources = sampled(root, 2_000_000_000)
    assert (resources.limits["memory"], resources.usage.memory, resources.cpus) == (900, 930, 0.5)
    with pytest.raises(ResourceExhaustedError) as caught:
        resources.check("search")
    assert caught.value.limit == "900 bytes"
    tree(tmp_path, V2, memory_v2("", "2000", 950, 20))  # resized while it runs
    resources.observe(resources._sample())
    assert (resources.limits["memory"], resources.exhausted) == (1800, frozenset())


def test_a_container_with_more_than_is_configured_changes_nothing(tmp_path: Path) -> None:
    resources = sampled(tree(tmp_path, V2, memory_v2("", str(10**15), 7)), 10**12)
    assert resources.limits["memory"] == 10**12
    assert resources.usage.memory > MEBI


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a control group of 200 MiB under this process's own; it is empty again when it is removed."""
    for top, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        made = Path("/sys/fs/cgroup") / top / f"llmkg-test-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            (made / file).write_text(str(200 * MEBI))
            yield made
        except OSError:
            continue
        finally:
            made.rmdir()
        return
    pytest.skip("this machine lets nobody make a control group")


CHILD = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from llmkg_otel.config import ResourceLimits
from llmkg_otel.limiting.resources import Resources
resources, held = Resources(ResourceLimits(max_memory_bytes=10**12)), []
while "memory" not in resources.exhausted and len(held) < 50:
    held.append(b"x" * (4 << 20))
    resources.observe(resources._sample())
print(int(resources.limits["memory"]), int(resources.usage.memory), len(held))
"""


def test_a_real_child_in_a_real_control_group_refuses_before_the_kernel_kills(group: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(group)], check=True, capture_output=True, text=True, timeout=30
    )
    limit, used, blocks = map(int, child.stdout.split())
    assert limit == int(0.9 * 200 * MEBI)
    assert limit < used < 200 * MEBI
    assert 10 < blocks < 50
