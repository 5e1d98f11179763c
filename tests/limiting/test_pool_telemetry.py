"""A system's connection pools: measured by the database conventions, and closed with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmkg_otel.errors import ConfigurationError, OverloadedError
from llmkg_otel.telemetry.semconv import INSTRUMENTS

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.testing import CapturedTelemetry


async def test_a_pool_is_measured_and_closed_with_its_system(
    system: ProductionSystem, telemetry: CapturedTelemetry
) -> None:
    closed: list[object] = []
    async with system:
        pool = system.add_connection_pool(
            "graph", object, close=closed.append, max_size=1, acquire_timeout=0.01
        )
        async with pool.connection() as connection:
            with pytest.raises(OverloadedError):
                async with pool.connection():
                    pass
            names = {each.name for each in INSTRUMENTS if each.name.startswith("db.client.connection.")}
            lent = telemetry.metric("db.client.connection.count")
        async with pool.connection() as again:
            assert again is connection
        with pytest.raises(ConfigurationError, match="'graph' is there already"):
            system.add_connection_pool("graph", object, close=closed.append)
        emitted = telemetry.metrics()
        assert names == {name for name in emitted if name.startswith("db.client.connection.")}
    assert closed == [connection]
    of_graph = ("db.client.connection.pool.name", "graph")
    states = {dict(key)["db.client.connection.state"]: value for key, value in lent.items()}
    assert states == {"idle": 0, "used": 1}
    for name in names - {"db.client.connection.count"}:
        assert set(telemetry_points(emitted[name])) == {(of_graph,)}, name


def telemetry_points(metric: object) -> list[tuple[tuple[str, object], ...]]:
    points = metric.data.data_points  # type: ignore[attr-defined]
    return [tuple((point.attributes or {}).items()) for point in points]
