"""The Grafana dashboards, as code: `llmkg-otel dashboards build` writes what dashboards/ holds.

`BOARDS` is data and needs nothing; `write` needs the extra `dashboards`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.dashboards.alerts import ALERTS
from llmkg_otel.dashboards.health import HEALTH
from llmkg_otel.dashboards.overview import OVERVIEW
from llmkg_otel.dashboards.resilience import RESILIENCE
from llmkg_otel.dashboards.self_monitoring import SELF_MONITORING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BOARDS", "write"]

BOARDS = (OVERVIEW, RESILIENCE, HEALTH, ALERTS, SELF_MONITORING)


def write(directory: Path) -> list[Path]:
    """Write every dashboard as JSON into a directory, which is made if need be; return the files."""
    from llmkg_otel.dashboards.render import render  # noqa: PLC0415 - needs the dashboards extra

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for board in BOARDS:
        path = directory / f"{board.uid}.json"
        path.write_text(render(board), encoding="utf-8")
        written.append(path)
    return written
