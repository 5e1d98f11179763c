"""One operation by name, with its policies compiled from the configuration."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from llmkg_otel.config import OperationConfig
from llmkg_otel.errors import ConfigurationError, InvalidInputError
from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.rates import rules_of
from llmkg_otel.recovery.breaker import CircuitBreaker
from llmkg_otel.recovery.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.events import Observer
    from llmkg_otel.limiting.rates import RateLimits
    from llmkg_otel.recovery.budget import RetryBudget

__all__ = ["MAX_OPERATIONS", "OTHER", "Operation", "Operations"]

OTHER = "_OTHER"
"""The operation that stands for all names past the bound, in policies and in telemetry."""

MAX_OPERATIONS = 200
"""Operation names with policies and series of their own; all further ones share those of `_OTHER`."""

_log = logging.getLogger(__name__)


class Operation:
    """The policies of one operation. Reconfiguring keeps their state: counts, circuit, permits in use."""

    def __init__(
        self,
        name: str,
        config: OperationConfig,
        defaults: ProductionConfig,
        *,
        permits: PermitPool,
        rates: RateLimits,
        budget: RetryBudget,
        observer: Observer,
    ) -> None:
        self.name = name
        self.breaker = CircuitBreaker(name, config.circuit_breaker or defaults.circuit_breaker, observer)
        self.retry = Retry(
            name,
            config.retry or defaults.retry,
            idempotent=config.idempotent,
            budget=budget,
            observer=observer,
        )
        self.levels = rates.levels(name, rules_of(config.rate_limit))
        self.bulkhead: PermitPool | None = None
        self.pools: tuple[PermitPool, ...] = (permits,)
        self._permits = permits
        self._rates = rates
        self._observer = observer
        self.configure(config, defaults)

    def configure(self, config: OperationConfig, defaults: ProductionConfig) -> None:
        """Apply a new configuration to calls that start from now on."""
        breaker = config.circuit_breaker or defaults.circuit_breaker
        self.breaker.configure(breaker)
        self.retry.configure(config.retry or defaults.retry, idempotent=config.idempotent)
        self.timeout = config.timeout or defaults.resources.operation_timeout_seconds
        self.attempt_timeout = breaker.timeout
        if self.levels.rules != (rules := rules_of(config.rate_limit)):
            self.levels = self._rates.levels(self.name, rules)
        self._resize_bulkhead(config.max_concurrent, defaults.resources.max_queued_operations)

    def _resize_bulkhead(self, limit: int | None, max_queued: int) -> None:
        if limit is None:
            self.bulkhead = None
            self.pools = (self._permits,)
        elif self.bulkhead is None:
            self.bulkhead = PermitPool(self.name, limit, max_queued, self._observer)
            self.pools = (self.bulkhead, self._permits)
        else:
            self.bulkhead.resize(limit)


class Operations:
    """The operations by name, made when first asked for, `MAX_OPERATIONS` at most. Thread-safe."""

    def __init__(
        self,
        config: ProductionConfig,
        *,
        permits: PermitPool,
        rates: RateLimits,
        budget: RetryBudget,
        observer: Observer,
    ) -> None:
        self._config = config
        self._permits = permits
        self._rates = rates
        self._budget = budget
        self._observer = observer
        self._lock = threading.Lock()
        self._by_name: dict[str, Operation] = {}
        for name, operation_config in config.operations.items():
            self._add(name, operation_config)

    def __iter__(self) -> Iterator[Operation]:
        return iter(tuple(self._by_name.values()))

    def named(self, name: str) -> Operation:
        """Return the operation, with the default policies if nobody has configured it."""
        return self._by_name.get(name) or self._add(name, OperationConfig())

    def configure(self, name: str, config: OperationConfig) -> None:
        """Give an operation its own policies from now on; raise ConfigurationError past the bound."""
        operation = self._add(name, config)
        if operation.name != name:
            raise ConfigurationError(
                f"operation {name!r}: {MAX_OPERATIONS} operations exist already, it shares those of {OTHER}"
            )
        operation.configure(config, self._config)

    def pools(self) -> tuple[PermitPool, ...]:
        """Return the common pool, and the bulkheads of operations that have one."""
        return (self._permits, *(op.bulkhead for op in self if op.bulkhead is not None))

    def _add(self, name: str, config: OperationConfig) -> Operation:
        if not name:
            raise InvalidInputError("an operation's name is empty")
        with self._lock:
            if len(self._by_name) >= MAX_OPERATIONS and name not in self._by_name:
                name = OTHER
                if OTHER not in self._by_name:
                    _log.warning("more than %d operation names: the others are %s", MAX_OPERATIONS, OTHER)
            if name not in self._by_name:
                self._by_name[name] = Operation(
                    name,
                    config,
                    self._config,
                    permits=self._permits,
                    rates=self._rates,
                    budget=self._budget,
                    observer=self._observer,
                )
            return self._by_name[name]
