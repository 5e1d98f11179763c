"""The real Collector, with its real configurations. These tests come last: it may still be building."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.collector import Collector, collector_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


NEED_IT = ("tests/collector/", "tests/dashboards/test_data.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move to the end whatever needs the Collector."""
    items.sort(key=lambda item: item.nodeid.startswith(NEED_IT))


@pytest.fixture(scope="session")
def binary() -> str:
    return collector_binary()


@pytest.fixture
def collect(binary: str, tmp_path: Path) -> Iterator[Callable[..., Collector]]:
    """Start Collectors: `collect("agent.yaml", COLLECTOR_UPSTREAM=...)`."""
    started: list[Collector] = []

    def start(*configurations: str, **environment: str) -> Collector:
        collector = Collector(binary, tmp_path / f"collector-{len(started)}", configurations, environment)
        collector.start()
        started.append(collector)
        return collector

    yield start
    for collector in started:
        collector.close()
