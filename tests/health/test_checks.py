"""The layer's own checks, each against the real thing that it watches."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.engines import StubEngine

from llmkg_otel.config import (
    CircuitBreakerConfig,
    HealthCheckConfig,
    ResourceLimits,
    RetryConfig,
)
from llmkg_otel.doctor import Finding
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.health import checks
from llmkg_otel.health.status import HealthStatus
from llmkg_otel.health.storage import disk_check
from llmkg_otel.limiting.resources import ResourceUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llmkg_otel.health.status import ComponentHealth
    from llmkg_otel.system import ProductionSystem

    MakeSystem = Callable[..., ProductionSystem]

ONCE = {"failure_threshold": 1, "check_interval_seconds": 1000}
PASS, WARN, FAIL = HealthStatus.HEALTHY, HealthStatus.WARNING, HealthStatus.CRITICAL


async def found(system: ProductionSystem, name: str) -> ComponentHealth:
    """Run every check once and return what one found."""
    return {each.name: each for each in await system.health.run_once()}[name]


@pytest.fixture(autouse=True)
def _fresh_findings() -> Iterator[None]:
    checks._misfits.cache_clear()
    yield
    checks._misfits.cache_clear()


async def test_only_the_engine_is_essential(make_system: MakeSystem, tmp_path: Path) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "k.db") as engine:
        components = make_system(engine).health.components()
    assert [each.name for each in components if each.essential] == ["engine"]
    assert {each.name for each in components} >= {"storage", "resources", "event_loop", "telemetry"}


async def test_the_engine_is_checked_by_a_real_read_and_a_write(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    system = make_system(engine, health=HealthCheckConfig(**ONCE))
    assert (await found(system, "engine")).status is PASS
    await engine.aclose()
    health = await found(system, "engine")
    assert (health.status, health.message[:18]) == (FAIL, "EngineClosedError:")


async def test_storage_reads_the_free_space_of_the_engines_disk_and_leaves_nothing_there(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "k.db") as engine:
        system = make_system(engine, health=HealthCheckConfig(**ONCE))
        health = await found(system, "storage")
    assert health.data["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    left = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    assert left == [tmp_path / "k.db"]


@pytest.mark.parametrize(("min_free", "status"), [(0, PASS), (10**18, WARN)])
async def test_less_free_space_than_the_option_says_is_a_warning(
    make_system: MakeSystem, tmp_path: Path, min_free: int, status: HealthStatus
) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "k.db") as engine:
        system = make_system(engine, health=HealthCheckConfig(min_free_disk_bytes=min_free))
        health = await found(system, "storage")
    assert health.status is status
    assert (f"free in {tmp_path}, less than {min_free}" in health.message) == (status is WARN)


@pytest.mark.parametrize("name", ["gone", "a-file"])
async def test_a_directory_that_takes_no_file_is_a_failure(
    make_system: MakeSystem, tmp_path: Path, name: str
) -> None:
    (tmp_path / "a-file").write_text("")
    system = make_system(health=HealthCheckConfig(**ONCE))
    system.register_health_check("checkpoints", disk_check(tmp_path / name, 0), essential=False)
    health = await found(system, "checkpoints")
    assert (health.status, system.read_health_report().status) == (FAIL, WARN)
    assert health.message.startswith(("FileNotFoundError", "NotADirectoryError"))


async def test_an_engine_without_a_file_has_no_storage(make_system: MakeSystem) -> None:
    class Remote(StubEngine):
        path = "bolt://db.example"

    assert "storage" not in {each.name for each in make_system(Remote()).health.components()}


@pytest.mark.parametrize(
    ("memory", "cpu", "status", "message"),
    [
        (0.89, 0.5, PASS, ""),
        (0.9, 0.5, WARN, "memory at 90% of its limit"),
        (1.1, 0.9, WARN, "over the limit: cpu, memory"),
    ],
)
async def test_memory_warns_before_calls_are_refused(
    make_system: MakeSystem, memory: float, cpu: float, status: HealthStatus, message: str
) -> None:
    system = make_system(resources=ResourceLimits(max_memory_bytes=10**9, max_cpu_percent=80))
    system.resources.observe(ResourceUsage(memory * 1e9, cpu))
    health = await found(system, "resources")
    assert (health.status, health.message) == (status, message)


@pytest.mark.parametrize(
    ("lags", "status"), [((), PASS), ((0.0,) * 19 + (1.9,), PASS), ((0.1,) * 20, WARN), ((5.0,), WARN)]
)
async def test_a_loop_that_is_late_on_average_warns(
    make_system: MakeSystem, lags: tuple[float, ...], status: HealthStatus
) -> None:
    system = make_system()
    system.heartbeat.lags = lags
    health = await found(system, "event_loop")
    assert health.status is status
    assert health.data.get("max_lag_seconds") == (max(lags) if lags else None)


async def test_an_open_circuit_warns_and_names_it(make_system: MakeSystem) -> None:
    system = make_system(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1), retry=RetryConfig(max_retries=0)
    )

    def fails() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        system.execute_protected_operation_sync("search", fails)
    health = await found(system, "circuit_breakers")
    assert (health.status, health.message) == (WARN, "search open")
    system.circuit_breaker("search").force_close()
    assert (await found(system, "circuit_breakers")).status is PASS


async def test_an_export_that_failed_warns_with_the_exporters_words(make_system: MakeSystem) -> None:
    async with make_system() as system:
        assert (await found(system, "telemetry")).status is PASS
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").error("Failed to export traces")
        health = await found(system, "telemetry")
    assert (health.status, health.message) == (WARN, "Failed to export traces")


async def test_packages_that_do_not_fit_warn_and_are_looked_at_once(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def findings() -> list[Finding]:
        nonlocal looked
        looked += 1
        return [Finding("python", True, "3.11"), Finding("opentelemetry (beta)", False, "different releases")]

    monkeypatch.setattr(checks, "findings", findings)
    system = make_system()
    for _ in range(3):
        health = await found(system, "telemetry")
        assert (health.status, health.message) == (WARN, "opentelemetry (beta): different releases")
    assert looked == 1


async def test_fifty_slow_checks_sync_and_async_take_the_time_of_one(make_system: MakeSystem) -> None:
    """Benchmarks/probes.py has the number (0.11 s); one after the other they would take 5 s."""
    system = make_system()

    async def on_loop() -> None:
        await asyncio.sleep(0.1)

    for number in range(25):
        system.register_health_check(f"async-{number}", on_loop)
        system.register_health_check(f"sync-{number}", lambda: time.sleep(0.1))
    began = time.monotonic()
    statuses = {each.status for each in await system.health.run_once()}
    assert time.monotonic() - began < 1.5
    assert statuses == {PASS}


async def test_fifty_sync_checks_run_at_the_same_time(make_system: MakeSystem) -> None:
    system, barrier = make_system(), threading.Barrier(50)

    def check() -> None:
        barrier.wait(20)  # passes only when all fifty are here

    for number in range(50):
        system.register_health_check(f"component-{number}", check, timeout=20)
    assert {each.status for each in await system.health.run_once()} == {PASS}
