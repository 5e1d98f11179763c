"""One operation by name, with its policies compiled from the configuration."""

from __future__ import annotations

import logging
import reprlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from llmkg_otel._config_types import operation_name
from llmkg_otel.config import OperationConfig
from llmkg_otel.errors import ConfigurationError, InvalidInputError
from llmkg_otel.events import TimeLimitIgnored
from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.rates import rules_of
from llmkg_otel.recovery.breaker import CircuitBreaker
from llmkg_otel.recovery.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from llmkg_otel.call import Call
    from llmkg_otel.config import ProductionConfig
    from llmkg_otel.events import Observer
    from llmkg_otel.limiting.rates import RateLimits
    from llmkg_otel.limiting.shedding import LoadShedding
    from llmkg_otel.recovery.budget import RetryBudget
    from llmkg_otel.recovery.fleet import Fleet

    Share = Callable[[CircuitBreaker], Fleet]

__all__ = ["MAX_OPERATIONS", "OTHER", "Operation", "Operations"]

OTHER = "_OTHER"
"""The operation that stands for all names past the bound, in policies and in telemetry."""

MAX_OPERATIONS = 200
"""Operation names with policies and series of their own; all further ones share those of `_OTHER`."""

_log = logging.getLogger(__name__)


class Operation:
    """The policies of one operation. Reconfiguring keeps their state: counts, circuit, permits in use.

    `system` stands for the system whose it is; two may have operations of one name.
    `pools` are those a call needs a permit of, and `levels` the rate limits it has to pass; a call within
    another was admitted with it, and only meets what bounds its own operation: `pools_within`,
    `levels_within` (None: nothing). `abandoned` are the outcomes of threads whose calls have ended without
    them.
    """

    def __init__(
        self,
        name: str,
        config: OperationConfig,
        defaults: ProductionConfig,
        *,
        system: object,
        permits: PermitPool,
        rates: RateLimits,
        budget: RetryBudget,
        observer: Observer,
        share: Share | None,
        shedding: LoadShedding | None,
    ) -> None:
        self.name = name
        self.system = system
        self.breaker = CircuitBreaker(name, config.circuit_breaker or defaults.circuit_breaker, observer)
        self.breaker.fleet = share(self.breaker) if share is not None else None
        self.retry = Retry(
            name,
            config.retry or defaults.retry,
            idempotent=config.idempotent,
            budget=budget,
            observer=observer,
        )
        self.abandoned: set[Future[Any]] = set()
        self.levels = rates.levels(name, rules_of(config.rate_limit))
        self.bulkhead: PermitPool | None = None
        self.pools: tuple[PermitPool, ...] = (permits,)
        self._bulkhead: PermitPool | None = None  # kept while it is off: calls may still hold its permits
        self._permits = permits
        self._shedding = shedding
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
        self.criticality = config.criticality
        if self.levels.rules != (rules := rules_of(config.rate_limit)):
            self.levels = self._rates.levels(self.name, rules)
        self.levels_within = self.levels.within(self.name) if rules else None
        self._resize_bulkhead(config.max_concurrent, defaults.resources.max_queued_operations)

    def pools_within(self, call: Call) -> tuple[PermitPool, ...]:
        """Return the pools that a call within a call needs a permit of: what one around it has will do."""
        if (bulkhead := self.bulkhead) is None or call.is_within(self.system, self.name):
            return ()
        return (bulkhead,)

    def give_back(self, pools: tuple[PermitPool, ...], call: Call) -> None:
        """Return a call's permits: at once, or when the threads that it has left behind have ended."""
        left = call.give_up_threads() if call.threads else ()
        if not left:
            for pool in pools:
                pool.release()
            return
        for thread in left:
            self.abandoned.add(thread)
            thread.add_done_callback(self.abandoned.discard)
        if call.cut_short:
            seconds = time.monotonic() - call.started
            self._observer.on_event(TimeLimitIgnored(self.name, seconds, returned=False))
        _after(left, pools)

    def _resize_bulkhead(self, limit: int | None, max_queued: int) -> None:
        if limit is None:
            if self.bulkhead is not None:
                self.bulkhead.resize(sys.maxsize)  # who waits for it is let in
            self.bulkhead = None
        else:
            if self._bulkhead is None:
                self._bulkhead = PermitPool(
                    self.name, limit, max_queued, self._observer, shedding=self._shedding, adaptive=False
                )
            self._bulkhead.resize(limit)
            self.bulkhead = self._bulkhead
        self.pools = (self._permits,) if self.bulkhead is None else (self.bulkhead, self._permits)


def check_name(name: object) -> None:
    """Raise InvalidInputError for what cannot be an operation's name."""
    try:
        operation_name(name)
    except ValueError as wrong:
        raise InvalidInputError(f"operation {reprlib.repr(name)}: {wrong}") from None


def _release(pools: tuple[PermitPool, ...]) -> None:
    for pool in pools:
        pool.release()


def _after(threads: Sequence[Future[Any]], pools: tuple[PermitPool, ...]) -> None:
    """Release permits when all these threads have ended."""
    if threads:
        threads[0].add_done_callback(lambda _: _after(threads[1:], pools))
    else:
        _release(pools)


class Operations:
    """The operations by name, made when first asked for, `MAX_OPERATIONS` at most. Thread-safe.

    `share` gives each one's circuit to its fleet; None keeps circuits in this process.
    """

    def __init__(
        self,
        config: ProductionConfig,
        *,
        permits: PermitPool,
        rates: RateLimits,
        budget: RetryBudget,
        observer: Observer,
        share: Share | None = None,
        shedding: LoadShedding | None = None,
    ) -> None:
        self._config = config
        self._permits = permits
        self._rates = rates
        self._budget = budget
        self._observer = observer
        self._share = share
        self._shedding = shedding
        self._lock = threading.Lock()
        self._by_name: dict[str, Operation] = {}
        for name, operation_config in config.operations.items():
            self._add(name, operation_config)

    def __iter__(self) -> Iterator[Operation]:
        return iter(tuple(self._by_name.values()))

    def named(self, name: str) -> Operation:
        """Return the operation, with the default policies if nobody has configured it."""
        try:
            return self._by_name[name]
        except (KeyError, TypeError):
            pass  # made out here, where it is no error's context
        return self._add(name, OperationConfig())

    def existing(self, name: str) -> Operation:
        """Return an operation that there is already; raise InvalidInputError that names the others."""
        check_name(name)
        if (operation := self._by_name.get(name)) is None:
            known = ", ".join(sorted(self._by_name)) or "none yet"
            raise InvalidInputError(f"operation {name!r} is not known; known: {known}")
        return operation

    def configure(self, name: str, config: OperationConfig) -> None:
        """Give an operation its own policies from now on; raise ConfigurationError past the bound."""
        check_name(name)
        if not isinstance(config, OperationConfig):
            raise InvalidInputError(
                f"operation {name!r}: its configuration is an OperationConfig, not {config!r}"
            )
        configured = self._config.operations.get(name, OperationConfig()).fallbacks
        if "fallbacks" in config.model_fields_set and config.fallbacks != configured:
            raise ConfigurationError(
                f"operations.{name}.fallbacks = {config.fallbacks!r}: is read at the start, where it is"
                f" {configured!r}; set it in the configuration of the system"
            )
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
        check_name(name)
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
                    system=self,
                    permits=self._permits,
                    rates=self._rates,
                    budget=self._budget,
                    observer=self._observer,
                    share=self._share,
                    shedding=self._shedding,
                )
            return self._by_name[name]
