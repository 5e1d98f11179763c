"""The checks that the layer brings for its own parts; each reads the thing it is registered with."""

from __future__ import annotations

import functools
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from llmkg_otel.doctor import findings
from llmkg_otel.health.status import CheckResult, HealthStatus
from llmkg_otel.health.storage import disk_check

if TYPE_CHECKING:
    from llmkg_otel.health.heartbeat import Heartbeat
    from llmkg_otel.recovery.shared import SharedCircuits
    from llmkg_otel.shutdown.checkpoint import Checkpoints
    from llmkg_otel.system import ProductionSystem

__all__ = ["register_own_checks"]

MEMORY_WARN = 0.9
LAG_SECONDS = 0.1
"""What asyncio's debug mode calls a slow callback."""


def register_own_checks(system: ProductionSystem) -> None:
    """Register the layer's own components.

    The engine by its `ping` (a real read and an empty write), and the disk under its file by the `path` it
    has, if that is a Path; memory and CPU, the event loop, the stores of shared limits and circuits, the
    breakers, the telemetry pipeline, checkpoints, the alert rules. Only the engine is essential: the others
    say what is wrong with a system that still serves, and a disk that takes no writes fails the engine's
    `ping` as well. Caches and further directories are registered by who uses them.
    """
    if (ping := getattr(system.engine, "ping", None)) is not None:
        system.register_health_check("engine", ping)
    if isinstance(path := getattr(system.engine, "path", None), Path):
        disk = disk_check(path.parent, system.config.health.min_free_disk_bytes)
        system.register_health_check("storage", disk, essential=False)
    system.register_health_check("resources", lambda: _resources(system), essential=False)
    system.register_health_check("event_loop", lambda: _event_loop(system.heartbeat), essential=False)
    if system.rate_limits.store_state is not None:
        system.register_health_check("rate_limit_store", lambda: _rate_limit_store(system), essential=False)
    system.register_health_check("circuit_breakers", lambda: _breakers(system), essential=False)
    system.register_health_check("telemetry", lambda: _telemetry(system), essential=False)
    if (checkpoints := system.checkpoints) is not None:
        system.register_health_check("checkpoints", lambda: _checkpoints(checkpoints), essential=False)
    system.register_health_check("alert_rules", lambda: _alert_rules(system), essential=False)
    if (shared := system.shared_circuits) is not None:
        system.register_health_check("circuit_sharing", lambda: _circuit_sharing(shared), essential=False)


def _resources(system: ProductionSystem) -> CheckResult:
    usage = system.resources.usage
    data = {
        "memory_bytes": usage.memory,
        "cpu": round(usage.cpu, 3),
        "connections": usage.connections,
    }
    if exhausted := sorted(system.resources.exhausted):
        return CheckResult(HealthStatus.WARNING, f"over the limit: {', '.join(exhausted)}", data)
    share = usage.memory / system.resources.limits["memory"]
    if share >= MEMORY_WARN:
        return CheckResult(HealthStatus.WARNING, f"memory at {share:.0%} of its limit", data)
    return CheckResult(HealthStatus.HEALTHY, "", data)


def _event_loop(heartbeat: Heartbeat) -> CheckResult:
    if not (lags := heartbeat.lags):
        return CheckResult(HealthStatus.HEALTHY)
    mean = fmean(lags)
    data = {"mean_lag_seconds": round(mean, 4), "max_lag_seconds": round(max(lags), 4)}
    if mean >= LAG_SECONDS:
        return CheckResult(HealthStatus.WARNING, f"runs {mean:.2f} s late: something blocks it", data)
    return CheckResult(HealthStatus.HEALTHY, "", data)


def _rate_limit_store(system: ProductionSystem) -> CheckResult:
    if (state := system.rate_limits.store_state) == "primary":
        return CheckResult(HealthStatus.HEALTHY)
    return CheckResult(HealthStatus.WARNING, f"the store of the rate limits is down: {state}")


def _breakers(system: ProductionSystem) -> CheckResult:
    calm = ("closed", "disabled")
    troubled = [f"{op.name} {op.breaker.state}" for op in system.operations if op.breaker.state not in calm]
    if troubled:
        return CheckResult(HealthStatus.WARNING, ", ".join(troubled))
    return CheckResult(HealthStatus.HEALTHY)


def _circuit_sharing(shared: SharedCircuits) -> CheckResult:
    if shared.status == "fallback":
        return CheckResult(HealthStatus.WARNING, "the store is not reached: this process decides alone")
    if shared.status == "slow":
        return CheckResult(
            HealthStatus.WARNING, "the store answers late: a call asks for a probe, a later one is it"
        )
    return CheckResult(HealthStatus.HEALTHY)


def _telemetry(system: ProductionSystem) -> CheckResult:
    problems = [system.exports.problem, *_misfits()]
    if told := "; ".join(filter(None, problems)):
        return CheckResult(HealthStatus.WARNING, told)
    return CheckResult(HealthStatus.HEALTHY)


@functools.cache
def _misfits() -> tuple[str, ...]:
    """Say what is wrong with the packages of this process, which cannot change while it runs."""
    return tuple(f"{each.subject}: {each.detail}" for each in findings() if not each.ok)


def _checkpoints(checkpoints: Checkpoints) -> CheckResult:
    data = {"age_seconds": round(checkpoints.age, 1)}
    if problem := checkpoints.failing:
        return CheckResult(HealthStatus.WARNING, problem, data)
    return CheckResult(HealthStatus.HEALTHY, "", data)


def _alert_rules(system: ProductionSystem) -> CheckResult:
    if errors := system.alerts.errors():
        return CheckResult(HealthStatus.WARNING, "; ".join(errors))
    return CheckResult(HealthStatus.HEALTHY)
