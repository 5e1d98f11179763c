"""Live values: observable instruments that read the real objects when metrics are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.logs import dropped_records

if TYPE_CHECKING:
    from llmkg_otel.system import ProductionSystem
    from llmkg_otel.telemetry.semconv import Instrument

__all__ = ["observe"]

Read = Callable[[], Iterable[Observation]]


def observe(meter: Meter, system: ProductionSystem) -> None:
    """Create the observable instruments of one system. They fall silent once it is closed."""
    for instrument, read in _readings(system):
        create = (
            meter.create_observable_counter
            if instrument.kind == "ObservableCounter"
            else meter.create_observable_up_down_counter
        )
        create(
            instrument.name,
            callbacks=[_callback(system, read)],
            unit=instrument.unit,
            description=instrument.description,
        )


def _callback(system: ProductionSystem, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def collect(_options: CallbackOptions) -> Iterable[Observation]:
        return () if system.closed else list(read())

    return collect


def _readings(system: ProductionSystem) -> Iterator[tuple[Instrument, Read]]:
    yield semconv.OPERATION_ACTIVE, lambda: _by(semconv.OPERATION_NAME, _active(system))
    yield (
        semconv.OPERATION_ABANDONED,
        lambda: _by(semconv.OPERATION_NAME, {op.name: len(op.abandoned) for op in system.operations}),
    )
    yield from _recovery(system)
    yield from _limiting(system)
    yield from _life(system)


def _recovery(system: ProductionSystem) -> Iterator[tuple[Instrument, Read]]:
    def breaker_status() -> Iterable[Observation]:
        for op in system.operations:
            yield from _states(op.breaker.state, semconv.BREAKER_STATES, {"name": op.name})

    def breaker_calls() -> Iterable[Observation]:
        for op in system.operations:
            for outcome, count in op.breaker.calls.items():
                yield Observation(count, {"name": op.name, "outcome": outcome})

    def retry_calls() -> Iterable[Observation]:
        for op in system.operations:
            counts = dict.fromkeys(semconv.RETRY_OUTCOMES, 0) | op.retry.calls
            for outcome, count in (counts | {"first_try": op.breaker.first_tries}).items():
                yield Observation(count, {"name": op.name, "outcome": outcome})

    def storage_status() -> Iterable[Observation]:
        shared = system.shared_circuits
        return [] if shared is None else _states(shared.status, semconv.BREAKER_STORAGE_STATES, {})

    yield semconv.BREAKER_STATUS, breaker_status
    yield semconv.BREAKER_CALLS, breaker_calls
    yield semconv.BREAKER_STORAGE_STATUS, storage_status
    yield semconv.RETRY_CALLS, retry_calls
    yield semconv.RETRY_BUDGET_USAGE, lambda: [Observation(system.retry_budget.usage)]
    yield semconv.RETRY_BUDGET_LIMIT, lambda: [Observation(system.retry_budget.limit)]


def _limiting(system: ProductionSystem) -> Iterator[tuple[Instrument, Read]]:
    def rate_limits() -> Iterable[Observation]:
        for (policy, result), count in system.rate_limits.decisions.items():
            yield Observation(count, {"policy": policy, "result": result})

    def shedding() -> Iterable[Observation]:
        decisions = {} if system.load_shedding is None else system.load_shedding.requests
        for (decision, reason, criticality), count in decisions.items():
            yield Observation(count, {"decision": decision, "reason": reason, "criticality": criticality})

    def shedding_limit() -> Iterable[Observation]:
        return [] if system.load_shedding is None else [Observation(system.load_shedding.limit)]

    def store() -> Iterable[Observation]:
        if (state := system.rate_limits.store_state) is None:
            return ()
        return _states(state, semconv.RATE_LIMIT_STORE_STATES, {})

    yield from _pools(system)
    usage = system.resources
    yield semconv.LOAD_SHEDDING_REQUESTS, shedding
    yield semconv.LOAD_SHEDDING_LIMIT, shedding_limit
    yield semconv.RATE_LIMIT_REQUESTS, rate_limits
    yield semconv.RATE_LIMIT_STORAGE_STATUS, store
    yield semconv.PERMIT_LIMIT, lambda: _by("pool", {p.name: p.limit for p in system.operations.pools()})
    yield semconv.PERMIT_USAGE, lambda: _by("pool", {p.name: p.usage for p in system.operations.pools()})
    yield semconv.PERMIT_PENDING, lambda: _by("pool", {p.name: p.pending for p in system.operations.pools()})
    yield semconv.RESOURCE_LIMIT, lambda: _by("name", usage.limits)
    yield semconv.RESOURCE_USAGE, lambda: _by("name", asdict(usage.usage))


def _pools(system: ProductionSystem) -> Iterator[tuple[Instrument, Read]]:
    def counts() -> Iterable[Observation]:
        for pool in system.connection_pools:
            for state, count in (("idle", pool.idle), ("used", pool.used)):
                yield Observation(
                    count, {semconv.CONNECTION_POOL: pool.name, semconv.CONNECTION_STATE: state}
                )

    def limits() -> Iterable[Observation]:
        return _by(semconv.CONNECTION_POOL, {pool.name: pool.max_size for pool in system.connection_pools})

    def pending() -> Iterable[Observation]:
        return _by(semconv.CONNECTION_POOL, {pool.name: pool.pending for pool in system.connection_pools})

    yield semconv.CONNECTION_COUNT, counts
    yield semconv.CONNECTION_MAX, limits
    yield semconv.CONNECTION_PENDING, pending


def _life(system: ProductionSystem) -> Iterator[tuple[Instrument, Read]]:
    def health() -> Iterable[Observation]:
        for component in system.health.components():
            attributes = {"component": component.name}
            yield from _states(component.status.value, semconv.HEALTH_STATES, attributes)

    def trends() -> Iterable[Observation]:
        for component in system.health.components():
            yield from _states(component.trend.value, semconv.TRENDS, {"component": component.name})

    def ages() -> Iterable[Observation]:
        ages = {c.name: c.age for c in system.health.components() if c.age is not None}
        return _by("component", ages)

    def probes() -> Iterable[Observation]:
        for probe, result in system.probe_results().items():
            yield from _states("ok" if result.ok else "failing", semconv.PROBE_STATES, {"probe": probe})

    def alerts() -> Iterable[Observation]:
        for (alert, severity), state in system.alerts.states().items():
            yield from _states(state, semconv.ALERT_STATES, {"alert": alert, "severity": severity})

    yield semconv.HEALTH_STATUS, health
    yield semconv.HEALTH_TREND, trends
    yield semconv.HEALTH_CHECK_AGE, ages
    yield semconv.PROBE_STATUS, probes
    yield semconv.LIFECYCLE_STATUS, lambda: _states(system.lifecycle.state, semconv.LIFECYCLE_STATES, {})
    yield semconv.ALERT_STATUS, alerts
    yield semconv.LOGS_DROPPED, lambda: _by("destination", dropped_records())


def _active(system: ProductionSystem) -> Mapping[str, int]:
    """Count calls in flight per operation, zeros included so that a series does not vanish."""
    return {op.name: 0 for op in system.operations} | dict(system.calls.by_operation())


def _by(key: str, values: Mapping[str, float]) -> Iterable[Observation]:
    return [Observation(value, {key: name}) for name, value in values.items()]


def _states(current: str, states: Sequence[str], attributes: Mapping[str, str]) -> Iterable[Observation]:
    """Give one 0/1 point per state (the semantic conventions' pattern for status metrics)."""
    return [Observation(int(state == current), {**attributes, "state": state}) for state in states]
