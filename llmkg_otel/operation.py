"""One operation by name, with its policies compiled from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.token_bucket import TokenBucket
from llmkg_otel.recovery.breaker import CircuitBreaker
from llmkg_otel.recovery.retry import Retry

if TYPE_CHECKING:
    from llmkg_otel.config import OperationConfig, ProductionConfig
    from llmkg_otel.events import Observer
    from llmkg_otel.recovery.budget import RetryBudget

__all__ = ["OTHER", "Operation"]

OTHER = "_OTHER"
"""The operation that stands for all names past the bound, in policies and in telemetry."""


class Operation:
    """The policies of one operation. Reconfiguring keeps their state: counts, circuit, permits in use."""

    def __init__(
        self,
        name: str,
        config: OperationConfig,
        defaults: ProductionConfig,
        *,
        permits: PermitPool,
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
        self.rate: TokenBucket | None = None
        self.bulkhead: PermitPool | None = None
        self.pools: tuple[PermitPool, ...] = (permits,)
        self._permits = permits
        self._observer = observer
        self.configure(config, defaults)

    def configure(self, config: OperationConfig, defaults: ProductionConfig) -> None:
        """Apply a new configuration to calls that start from now on."""
        breaker = config.circuit_breaker or defaults.circuit_breaker
        self.breaker.configure(breaker)
        self.retry.configure(config.retry or defaults.retry, idempotent=config.idempotent)
        self.timeout = config.timeout or defaults.resources.operation_timeout_seconds
        self.attempt_timeout = breaker.timeout
        if config.rate_limit is None or not defaults.rate_limiting.enabled:
            self.rate = None
        elif self.rate is None or self.rate.rule != config.rate_limit:
            self.rate = TokenBucket(config.rate_limit)
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
