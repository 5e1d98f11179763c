"""The policies of one system, made from its configuration, and the pipeline that puts calls through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.attempt import Attempts
from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.rates import make_rate_limits
from llmkg_otel.limiting.resources import Resources
from llmkg_otel.limiting.shedding import LoadShedding
from llmkg_otel.operation import Operations
from llmkg_otel.pipeline import Pipeline
from llmkg_otel.recovery.budget import RetryBudget
from llmkg_otel.recovery.shared import SharedCircuits
from llmkg_otel.shutdown.calls import ActiveCalls

if TYPE_CHECKING:
    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.events import CallObserver

__all__ = ["Policies"]


class Policies:
    """What decides over calls. `load_shedding` and `shared_circuits` are None where they are off."""

    def __init__(self, config: ProductionConfig, observer: CallObserver) -> None:
        limits, shedding, sharing = config.resources, config.load_shedding, config.circuit_sharing
        most = limits.max_concurrent_operations
        self.calls = ActiveCalls()
        self.rate_limits = make_rate_limits(config.rate_limiting)
        self.resources = Resources(limits)
        self.load_shedding = None if shedding.mode == "off" else LoadShedding(shedding, most, observer)
        self.shared_circuits = None if sharing.storage_uri is None else SharedCircuits(sharing)
        permits = PermitPool(
            "operations", most, limits.max_queued_operations, observer, shedding=self.load_shedding
        )
        self.retry_budget = RetryBudget(lambda: permits.usage)
        self.operations = Operations(
            config,
            permits=permits,
            rates=self.rate_limits,
            budget=self.retry_budget,
            observer=observer,
            share=None if self.shared_circuits is None else self.shared_circuits.join,
            shedding=self.load_shedding,
        )
        self.attempts = Attempts(
            permits=permits,
            shedding=self.load_shedding,
            observer=observer,
            times_attempts=config.monitoring.enable_performance_tracking,
        )
        self.pipeline = Pipeline(
            calls=self.calls,
            rates=self.rate_limits,
            resources=self.resources,
            attempts=self.attempts,
            max_wait=limits.max_queue_wait_seconds,
            observer=observer,
        )
