"""A check of a place on disk: whether there is room, and whether we may write."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from typing import TYPE_CHECKING

from llmkg_otel.health.status import CheckResult, HealthStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["disk_check"]

PROBE = b"llmkg-otel was here\n"


def disk_check(directory: Path, min_free_bytes: int) -> Callable[[], CheckResult]:
    """Return a check of a directory, for `register_health_check`; register one for each place you write to.

    It writes and removes a small file without a name: what fails there (read-only, no such directory, disk
    or quota full) is raised and so a failure. Less than `min_free_bytes` that this user may still take is
    a warning. Sync: it runs on a thread of its own, and a mount that hangs costs that thread only.
    """
    return partial(_check_disk, directory, min_free_bytes)


def _check_disk(directory: Path, min_free_bytes: int) -> CheckResult:
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(PROBE)
    free = shutil.disk_usage(directory).free
    if free < min_free_bytes:
        message = f"{free} bytes are free in {directory}, less than {min_free_bytes}"
        return CheckResult(HealthStatus.WARNING, message, {"free_bytes": free})
    return CheckResult(HealthStatus.HEALTHY, "", {"free_bytes": free})
