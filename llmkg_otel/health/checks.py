"""The checks that the layer brings for its own parts; each reads the thing it is registered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.health.status import CheckResult, HealthStatus

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem

__all__ = ["register_own_checks"]


def register_own_checks(system: ProductionSystem) -> None:
    """Register the engine (by its `ping`, essential), resources, the store, breakers, alert rules."""
    if (ping := getattr(system.engine, "ping", None)) is not None:
        system.register_health_check("engine", ping)
    system.register_health_check("resources", lambda: _resources(system), essential=False)
    if system.rate_limits.store_state is not None:
        system.register_health_check("rate_limit_store", lambda: _rate_limit_store(system), essential=False)
    system.register_health_check("circuit_breakers", lambda: _breakers(system), essential=False)
    system.register_health_check("alert_rules", lambda: _alert_rules(system), essential=False)


def _resources(system: ProductionSystem) -> CheckResult:
    usage = system.resources.usage
    data = {
        "memory_bytes": usage.memory,
        "cpu": round(usage.cpu, 3),
        "connections": usage.connections,
    }
    if exhausted := sorted(system.resources.exhausted):
        return CheckResult(HealthStatus.WARNING, f"over the limit: {', '.join(exhausted)}", data)
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


def _alert_rules(system: ProductionSystem) -> CheckResult:
    if errors := system.alerts.errors():
        return CheckResult(HealthStatus.WARNING, "; ".join(errors))
    return CheckResult(HealthStatus.HEALTHY)
