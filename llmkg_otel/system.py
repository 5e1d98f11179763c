"""ProductionSystem: the only place where all parts meet."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

from llmkg_otel._threads import run_in_daemon_thread
from llmkg_otel.alerting.watch import AlertWatch
from llmkg_otel.call import Call
from llmkg_otel.config import OperationConfig, ProductionConfig
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.health.checks import register_own_checks
from llmkg_otel.health.monitor import Check, HealthMonitor
from llmkg_otel.health.probes import Heartbeat, ProbeResult, Probes
from llmkg_otel.health.report import SystemHealthReport, aggregate
from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.rates import make_rate_limits
from llmkg_otel.limiting.resources import Resources
from llmkg_otel.operation import Operations
from llmkg_otel.pipeline import Pipeline
from llmkg_otel.recovery.budget import RetryBudget
from llmkg_otel.shutdown.calls import ActiveCalls
from llmkg_otel.shutdown.sequence import Lifecycle, ShutdownSequence
from llmkg_otel.status import system_status
from llmkg_otel.telemetry.live import observe
from llmkg_otel.telemetry.observer import TelemetryObserver
from llmkg_otel.telemetry.setup import set_up_telemetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from llmkg_otel.shutdown.report import ShutdownReport

__all__ = ["ProductionSystem", "create_production_system"]

T = TypeVar("T")
P = ParamSpec("P")


class ProductionSystem:
    """Production protection and telemetry around an engine, or around any callables.

    Belongs to one event loop: `async with system:` starts what runs in the background (health checks,
    resource samples, alert rules) and shuts down gracefully on exit. Calls may come from any task, and
    through `execute_protected_operation_sync` from any thread. `engine` may be any object: its `ping`
    becomes a health check and its `aclose` a clean-up handler, where it has them.

    Telemetry goes to the given providers, else to the global ones, else to new global ones made from
    the standard `OTEL_*` variables. One system per meter provider: two would write the same series.
    """

    def __init__(
        self,
        engine: Any,
        config: ProductionConfig | None = None,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.engine = engine
        self.config = config = config or ProductionConfig()
        logging.getLogger("llmkg_otel").setLevel(config.monitoring.log_level.upper())
        self.telemetry = set_up_telemetry(tracer_provider, meter_provider)
        meter = self.telemetry.meter()
        self._observer = observer = TelemetryObserver(self.telemetry.tracer(), meter)
        self.calls = ActiveCalls()
        self.retry_budget = RetryBudget(lambda: len(self.calls))
        self.rate_limits = make_rate_limits(config.rate_limiting)
        self.resources = Resources(config.resources)
        limits = config.resources
        permits = PermitPool(
            "operations", limits.max_concurrent_operations, limits.max_queued_operations, observer
        )
        self._pipeline = Pipeline(
            calls=self.calls,
            rates=self.rate_limits,
            resources=self.resources,
            max_wait=limits.max_queue_wait_seconds,
            observer=observer,
        )
        self.operations = Operations(
            config, permits=permits, rates=self.rate_limits, budget=self.retry_budget, observer=observer
        )
        self.lifecycle = Lifecycle(observer)
        self.health = HealthMonitor(config.health, observer)
        self._heartbeat = Heartbeat()
        self.probes = Probes(self._heartbeat, lambda: self.lifecycle.state, self.health.components)
        self._sequence = ShutdownSequence(config.shutdown, observer, self.lifecycle, self.calls, self._flush)
        self.alerts = AlertWatch(
            config, self.telemetry.collected.collect, observer, observer.alerts_evaluated
        )
        if (close := getattr(engine, "aclose", None)) is not None:
            self._sequence.register("engine", close)  # first to register, so last to close
        register_own_checks(self)
        self._started_at = time.monotonic()
        observe(meter, self)

    async def start(self) -> None:
        """Start the background work, check the components once, and be ready to serve.

        A failing component does not stop the start: readiness tells, and the checks go on.
        """
        if self.lifecycle.state != "starting":
            raise ConfigurationError(f"this system is {self.lifecycle.state}: it can be started only once")
        # Each one's end is registered before it begins: a start that fails half-way is cleaned up too.
        self._sequence.register("resources", self.resources.stop)
        self.resources.start()
        self._sequence.register("rate_limits", self.rate_limits.close)
        await self.rate_limits.start()
        self._sequence.register("alerts", self.alerts.stop)
        self.alerts.start()
        self._sequence.register("heartbeat", self._heartbeat.stop)
        await self._heartbeat.start()
        self._sequence.register("health", self.health.stop)
        await self.health.start()
        await self.health.run_once()
        if self.lifecycle.state == "starting":  # else a shutdown has begun meanwhile
            self.lifecycle.advance("serving")

    async def shutdown(self) -> ShutdownReport:
        """Shut down gracefully: lame duck, drain, clean up, flush. Calling it again gives the same report."""
        return await self._sequence.run()

    def force_shutdown(self) -> None:
        """Cut every wait of a shutdown short, of a running one or of the one to come. On the loop."""
        self._sequence.force()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:  # also a cancellation: `async with` does not call __aexit__ then
            self.force_shutdown()
            await self.shutdown()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.shutdown()

    # Two overloads, since a checker cannot tell T from Awaitable[T] in one union.
    @overload
    async def execute_protected_operation(
        self,
        operation_name: str,
        operation: Callable[[], Awaitable[T]],
        *,
        user_id: str | None = None,
        correlation_id: str | None = None,
        cost: int = 1,
        enrich_current_span: bool = False,
    ) -> T: ...

    @overload
    async def execute_protected_operation(
        self,
        operation_name: str,
        operation: Callable[[], T],
        *,
        user_id: str | None = None,
        correlation_id: str | None = None,
        cost: int = 1,
        enrich_current_span: bool = False,
    ) -> T: ...

    async def execute_protected_operation(
        self,
        operation_name: str,
        operation: Callable[[], Awaitable[T] | T],
        *,
        user_id: str | None = None,
        correlation_id: str | None = None,
        cost: int = 1,
        enrich_current_span: bool = False,
    ) -> T:
        """Run an operation under all policies and return what it returns.

        `operation` is a coroutine function without arguments, or a sync callable, which runs in a worker
        thread that keeps the caller's context. `user_id` is who the per-user rate limit counts; it never
        reaches telemetry. `correlation_id` goes on spans and logs. `cost` is how many calls this one counts
        as for the rate limits: 1 or more, and at most each rule's burst, else it is an InvalidInputError.
        `enrich_current_span` is for callers whose own span covers just this call (an MCP server's): it is
        enriched, and no second one opened.

        Raises RejectedError (the engine was not reached), OperationTimeoutError (it was, outcome unknown),
        or the operation's own exception, the same object. Emits one span, one `llmkg.operation.duration`.
        """
        op = self.operations.named(operation_name)
        owner = not enrich_current_span
        call = Call(op.name, op.timeout, user_id, correlation_id, cost=cost, span_owner=owner)
        return await self._pipeline.run(op, call, operation)

    def execute_protected_operation_sync(
        self,
        operation_name: str,
        operation: Callable[[], T],
        *,
        user_id: str | None = None,
        correlation_id: str | None = None,
        cost: int = 1,
    ) -> T:
        """Run a sync operation in the calling thread under the same policies; waits block the thread.

        A deadline cannot interrupt Python code: it is looked at before each attempt. Raises as
        `execute_protected_operation` does.
        """
        op = self.operations.named(operation_name)
        call = Call(op.name, op.timeout, user_id, correlation_id, cost=cost)
        return self._pipeline.run_sync(op, call, operation)

    def protected(self, operation_name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Return a decorator that protects every call of a function, async or sync, its signature kept."""

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise ConfigurationError(f"{function.__qualname__} is a generator: protect what consumes it")
            if inspect.iscoroutinefunction(function):

                @functools.wraps(function)
                async def protected(*args: P.args, **kwargs: P.kwargs) -> Any:
                    body = functools.partial(function, *args, **kwargs)
                    return await self.execute_protected_operation(operation_name, body)

                return cast("Callable[P, T]", protected)

            @functools.wraps(function)
            def protected_sync(*args: P.args, **kwargs: P.kwargs) -> T:
                body = functools.partial(function, *args, **kwargs)
                return self.execute_protected_operation_sync(operation_name, body)

            return protected_sync

        return decorate

    def configure_operation(self, operation_name: str, config: OperationConfig) -> None:
        """Give an operation its own policies from now on; its circuit, counts and permits in use stay."""
        self.operations.configure(operation_name, config)

    def blame_caller_for(self, *errors: type[Exception]) -> None:
        """Treat these exceptions as the caller's mistakes: never retried, never held against the engine."""
        self._pipeline.caller_errors += errors

    def register_health_check(
        self,
        name: str,
        check: Check,
        *,
        essential: bool = True,
        interval: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Add a component's check, sync or async: see HealthMonitor.register. Seconds; None: the default."""
        self.health.register(name, check, essential=essential, interval=interval, timeout=timeout)

    def register_shutdown_handler(
        self, name: str, handler: Callable[[], object], timeout: float | None = None
    ) -> None:
        """Add a clean-up handler; the last registered runs first. See ShutdownSequence.register."""
        self._sequence.register(name, handler, timeout)

    async def get_system_status(self) -> dict[str, Any]:
        """Return the state of every part, its numbers read from the collected metrics. JSON-ready.

        Keys: health, resources, rate_limits, error_recovery, system_metrics, shutdown, performance, alerts.
        """
        return await run_in_daemon_thread(self.read_status, "llmkg-status")

    def read_status(self) -> dict[str, Any]:
        """Do what `get_system_status` does, in the calling thread."""
        return system_status(self, self.telemetry.collected.collect())

    async def get_health_report(self) -> SystemHealthReport:
        """Return every component's status, from the last run of its check."""
        return self.read_health_report()

    def read_health_report(self) -> SystemHealthReport:
        """Do what `get_health_report` does, from any thread."""
        components = self.health.components()
        return SystemHealthReport(
            aggregate(components), components, time.time(), version("llmkg-otel"), self.lifecycle.state
        )

    def get_prometheus_metrics(self) -> str:
        """Return the metrics as Prometheus text: what /metrics serves."""
        return self.telemetry.collected.expose()[1].decode()

    @property
    def closed(self) -> bool:
        """Whether the shutdown is over."""
        return self.lifecycle.state == "stopped"

    @property
    def uptime(self) -> float:
        """Seconds since this system was made."""
        return time.monotonic() - self._started_at

    def probe_results(self) -> Mapping[str, ProbeResult]:
        """Return what each probe would answer now."""
        probes = self.probes
        return {
            "liveness": probes.liveness(),
            "readiness": probes.readiness(),
            "startup": probes.startup(),
        }

    async def _flush(self, timeout: float) -> str | None:  # noqa: ASYNC109 - the sequence gives the deadline
        self._observer.shutdown_counted(self.calls.counts)
        return await run_in_daemon_thread(functools.partial(self.telemetry.close, timeout), "llmkg-flush")


def create_production_system(engine: Any, config: ProductionConfig | None = None) -> ProductionSystem:
    """Return a ProductionSystem around an engine; None for the configuration reads the environment."""
    return ProductionSystem(engine, config)
