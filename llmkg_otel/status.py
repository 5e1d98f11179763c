"""The system's status as one dictionary: numbers from the collected metrics, states from the objects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.promql.histogram import bucket_quantile
from llmkg_otel.telemetry.semconv import BREAKER_OUTCOMES

if TYPE_CHECKING:
    from llmkg_otel.operation import Operation
    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.telemetry.collected import Samples

__all__ = ["breaker_status", "system_status"]

# Prometheus names of the contract's instruments, as the exporter gives them.
DURATION = "llmkg_operation_duration_seconds"
ATTEMPT = "llmkg_attempt_duration_seconds"
OPERATION = "llmkg_operation_name"


def system_status(system: ProductionSystem, samples: Samples) -> dict[str, Any]:
    """Return the eight sections of the seed document's system status, JSON-ready."""
    return {
        "health": _health(system),
        "resources": _resources(system, samples),
        "rate_limits": _rate_limits(samples),
        "error_recovery": {op.name: _recovery(op, samples) for op in system.operations},
        "system_metrics": _totals(system, samples),
        "shutdown": {"state": system.lifecycle.state, "operations": dict(system.calls.counts)},
        "performance": {op.name: _performance(op, samples) for op in system.operations},
        "alerts": system.alerts.describe(),
    }


def _health(system: ProductionSystem) -> dict[str, Any]:
    report = system.read_health_report()
    components = {
        each.name: {"status": each.status.value, "message": each.message, "essential": each.essential}
        for each in report.components
    }
    return {"status": report.status.value, "components": components}


def _resources(system: ProductionSystem, samples: Samples) -> dict[str, Any]:
    limit, usage = "llmkg_resource_limit", "llmkg_resource_usage"
    peak = system.resources.peak
    return {
        "memory_bytes": samples.total(usage, name="memory"),
        "max_memory_bytes": samples.total(limit, name="memory"),
        "peak_memory_bytes": peak.memory,
        "cpu_percent": 100 * samples.total(usage, name="cpu"),
        "max_cpu_percent": 100 * samples.total(limit, name="cpu"),
        "peak_cpu_percent": 100 * peak.cpu,
        "database_connections": samples.total(usage, name="connections"),
        "max_database_connections": samples.total(limit, name="connections"),
        "peak_database_connections": peak.connections,
        "operations_in_flight": samples.total("llmkg_operation_active"),
        "permits": {
            pool.name: {
                "limit": samples.total("llmkg_permit_limit", pool=pool.name),
                "in_use": samples.total("llmkg_permit_usage", pool=pool.name),
                "waiting": samples.total("llmkg_permit_pending_requests", pool=pool.name),
            }
            for pool in system.operations.pools()
        },
    }


def _rate_limits(samples: Samples) -> dict[str, Any]:
    decisions: dict[str, Any] = {}
    for sample in samples.named("llmkg_rate_limit_requests_total"):
        decisions.setdefault(sample.labels["policy"], {})[sample.labels["result"]] = sample.value
    states = samples.named("llmkg_rate_limit_storage_status")
    store = next((sample.labels["state"] for sample in states if sample.value), None)
    return decisions if store is None else {**decisions, "store": store}


def _recovery(op: Operation, samples: Samples) -> dict[str, Any]:
    counts = samples.named(f"{DURATION}_count", **{OPERATION: op.name})
    calls = sum(sample.value for sample in counts)
    failures = {
        sample.labels["error_type"]: sample.value for sample in counts if "error_type" in sample.labels
    }
    succeeded = calls - sum(failures.values())
    retried = samples.named("llmkg_retry_calls_total", name=op.name)
    fallbacks = {
        name: sample.value for sample in counts if (name := sample.labels.get("llmkg_fallback_name"))
    }
    return {
        "circuit_breaker": op.breaker.state,
        "consecutive_failures": op.breaker.consecutive_failures,
        "calls": calls,
        "succeeded": succeeded,
        "failed": failures,
        "success_rate": succeeded / calls if calls else None,
        "attempts": sum(n for outcome, n in _breaker_calls(op, samples).items() if outcome != "rejected"),
        "recovered": samples.total("llmkg_retry_calls_total", name=op.name, outcome="recovered"),
        "answered_by_fallback": fallbacks,
        "abandoned_threads": samples.total("llmkg_operation_abandoned", **{OPERATION: op.name}),
        "retries": {sample.labels["outcome"]: sample.value for sample in retried},
    }


def breaker_status(op: Operation, samples: Samples) -> dict[str, Any]:
    """Return the state of one operation's breaker, JSON-ready."""
    return {
        "name": op.name,
        "state": op.breaker.state,
        "consecutive_failures": op.breaker.consecutive_failures,
        "opened_by": op.breaker.opened_by,
        "retry_after_seconds": op.breaker.retry_after,
        "window": dict(op.breaker.rates),
        "calls": _breaker_calls(op, samples),
    }


def _breaker_calls(op: Operation, samples: Samples) -> dict[str, float]:
    return {
        outcome: samples.total("llmkg_circuit_breaker_calls_total", name=op.name, outcome=outcome)
        for outcome in BREAKER_OUTCOMES
    }


def _totals(system: ProductionSystem, samples: Samples) -> dict[str, Any]:
    calls = samples.total(f"{DURATION}_count")
    failed = sum(s.value for s in samples.named(f"{DURATION}_count") if "error_type" in s.labels)
    memory = samples.total("llmkg_resource_usage", name="memory")
    limit = samples.total("llmkg_resource_limit", name="memory")
    return {
        "uptime_seconds": system.uptime,
        "operations": calls,
        "failed_operations": failed,
        "memory_usage_percent": 100 * memory / limit if limit else None,  # nothing is collected after the end
        "retries_in_progress": samples.total("llmkg_retry_budget_usage"),
        "telemetry_errors": samples.total("llmkg_telemetry_hook_errors_total"),
    }


def _performance(op: Operation, samples: Samples) -> dict[str, Any]:
    calls, attempts = (
        samples.total(f"{metric}_count", **{OPERATION: op.name}) for metric in (DURATION, ATTEMPT)
    )
    timing = {"calls": calls} | _timing(DURATION, calls, op, samples)
    return timing | ({"attempt": _timing(ATTEMPT, attempts, op, samples)} if attempts else {})


def _timing(metric: str, count: float, op: Operation, samples: Samples) -> dict[str, Any]:
    seconds = samples.total(f"{metric}_sum", **{OPERATION: op.name})
    buckets: dict[float, float] = {}
    for sample in samples.named(f"{metric}_bucket", **{OPERATION: op.name}):
        bound = float(sample.labels["le"])
        buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return {
        "mean_seconds": seconds / count if count else None,
        **{f"p{q}_seconds": _quantile(q / 100, buckets) for q in (50, 95, 99)},
    }


def _quantile(q: float, buckets: dict[float, float]) -> float | None:
    value = bucket_quantile(q, sorted(buckets.items())) if buckets else math.nan
    return None if math.isnan(value) else value
