"""Does what is installed fit together? OpenTelemetry's packages must be of one release."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import distributions, entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Finding", "findings", "version_skew"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    detail: str


def findings() -> list[Finding]:
    """Look at the Python version, OpenTelemetry's packages, and the auto-instrumentation entry point."""
    installed = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    instrumentors = [point.value for point in entry_points(group="opentelemetry_instrumentor")]
    ours = any(value.startswith("llmkg_otel.") for value in instrumentors)
    return [
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0]),
        *version_skew(installed),
        Finding("auto-instrumentation", ours, "entry point found" if ours else "entry point missing"),
    ]


def version_skew(installed: Mapping[str, str]) -> list[Finding]:
    """Compare the versions of OpenTelemetry's stable packages, and of its beta ones, among themselves.

    A skew makes auto-instrumentation go dark without an error. Only major and minor count.
    """
    ours = {name: v for name, v in installed.items() if name.startswith("opentelemetry-")}
    lines = {
        "opentelemetry (stable)": {name: v for name, v in ours.items() if not v.startswith("0.")},
        "opentelemetry (beta)": {name: v for name, v in ours.items() if v.startswith("0.")},
    }
    return [_one_release(subject, packages) for subject, packages in lines.items()]


def _one_release(subject: str, packages: Mapping[str, str]) -> Finding:
    releases: dict[str, list[str]] = {}
    for name, installed_version in sorted(packages.items()):
        releases.setdefault(".".join(installed_version.split(".")[:2]), []).append(name)
    releases = {release.split("b")[0]: names for release, names in releases.items()}
    if len(releases) == 1:
        return Finding(subject, True, f"{next(iter(releases))} ({len(packages)} packages)")
    told = "; ".join(f"{release}: {', '.join(names)}" for release, names in releases.items())
    return Finding(subject, False, f"different releases: {told or 'none installed'}")
