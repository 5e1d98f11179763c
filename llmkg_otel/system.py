"""ProductionSystem: the only place where all parts meet."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack, overload

from llmkg_otel._forks import refuse_in_forks
from llmkg_otel._threads import run_in_daemon_thread
from llmkg_otel.alerting.watch import AlertWatch
from llmkg_otel.call import Call, CallOptions
from llmkg_otel.config import OperationConfig, ProductionConfig
from llmkg_otel.decorate import decorator
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.health.checks import register_own_checks
from llmkg_otel.health.heartbeat import Heartbeat, Watchdog
from llmkg_otel.health.monitor import Check, HealthMonitor
from llmkg_otel.health.probes import ProbeResult, Probes
from llmkg_otel.health.report import SystemHealthReport, aggregate
from llmkg_otel.limiting.pool import ConnectionPool, PoolSizes
from llmkg_otel.policies import Policies
from llmkg_otel.shutdown.budget import misfit, patience
from llmkg_otel.shutdown.checkpoint import Checkpoints
from llmkg_otel.shutdown.sequence import Lifecycle, Save, ShutdownSequence
from llmkg_otel.status import breaker_status, system_status
from llmkg_otel.telemetry.exports import ExportWatch
from llmkg_otel.telemetry.live import observe
from llmkg_otel.telemetry.observer import TelemetryObserver
from llmkg_otel.telemetry.quiet import quietly
from llmkg_otel.telemetry.setup import set_up_telemetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from llmkg_otel.operation import Operation
    from llmkg_otel.recovery.breaker import CircuitBreaker
    from llmkg_otel.recovery.fallback import Ladder
    from llmkg_otel.shutdown.report import ShutdownReport

__all__ = ["ProductionSystem", "create_production_system"]

STATUS_SECONDS = 15.0
"""How long a status may take to be read: longer than one reader of the metrics waits for another."""
_log = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T")
P = ParamSpec("P")


class ProductionSystem:
    """Production protection and telemetry around an engine, or around any callables.

    Belongs to one event loop: `async with system:` starts what runs in the background (health checks,
    resource samples, alert rules) and shuts down gracefully on exit. Calls may come from any task, and
    through `execute_protected_operation_sync` from any thread. `engine` may be any object: its `ping`
    becomes a health check and its `aclose` a clean-up handler, where it has them.

    Telemetry goes to the given providers, else to the global ones, else to new global ones made from
    the standard `OTEL_*` variables. One system at a time per meter provider: two would write the same
    series. Without a `config`, the file that `LLMKG_CONFIG` names and the environment are read.
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
        self.config = config = config or ProductionConfig.load()
        logging.getLogger("llmkg_otel").setLevel(config.monitoring.log_level.upper())
        self.telemetry = set_up_telemetry(tracer_provider, meter_provider, config.monitoring)
        meter = self.telemetry.meter()
        self._observer = observer = TelemetryObserver(self.telemetry.tracer(), meter)
        policies = Policies(config, observer)
        self._pipeline, self._attempts = policies.pipeline, policies.attempts
        self.calls, self.operations = policies.calls, policies.operations
        self.rate_limits, self.resources = policies.rate_limits, policies.resources
        self.load_shedding, self.retry_budget = policies.load_shedding, policies.retry_budget
        self.shared_circuits = policies.shared_circuits
        self.connection_pools: tuple[ConnectionPool[Any], ...] = ()
        self.lifecycle = Lifecycle(observer)
        self.health = HealthMonitor(config.health, observer)
        self.heartbeat = Heartbeat()
        self._watchdog = Watchdog(self.heartbeat, observer)
        self.exports = ExportWatch()
        self.probes = Probes(self.heartbeat, lambda: self.lifecycle.state, self.health.components)
        saved = config.checkpoint.directory is not None
        self.checkpoints = checkpoints = Checkpoints(config, engine, observer) if saved else None
        self._sequence = ShutdownSequence(
            config.shutdown,
            observer,
            self.lifecycle,
            self.calls,
            self._flush,
            save=Save(checkpoints.save_last, config.checkpoint.timeout_seconds) if checkpoints else None,
            patience=patience(config),
        )
        self.alerts = AlertWatch(
            config,
            self.telemetry.collected.collect,
            observer,
            observer.alerts_evaluated,
            no_data=self.telemetry.collected.no_data,
            on_told=observer.alert_told,
            failing_trace=observer.failing_trace,
            quietly=quietly,
        )
        if (close := getattr(engine, "aclose", None)) is not None:
            self._sequence.register("engine", close)  # first to register, so last to close
        register_own_checks(self)
        self._started_at = time.monotonic()
        self._version = version("llmkg-otel")  # here: it reads files
        observe(meter, self)
        refuse_in_forks(self)

    async def start(self) -> None:
        """Start the background work, check the components once, and be ready to serve.

        A failing component does not stop the start: readiness tells, and the checks go on.
        """
        if self.lifecycle.state != "starting":
            raise ConfigurationError(f"this system is {self.lifecycle.state}: it can be started only once")
        if warning := misfit(self.config):
            _log.warning(warning)
        for name, begin, end in self._parts():
            self._sequence.register(name, end)  # before it begins: a start that fails half-way is cleaned up
            if inspect.isawaitable(beginning := begin()):
                await beginning
        await self.health.run_once()
        if self.checkpoints is not None:
            self.checkpoints.start()
        if self.lifecycle.state == "starting":  # else a shutdown has begun meanwhile
            self.lifecycle.advance("serving")

    def _parts(self) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
        """Give what runs in the background, in the order of its start: name, begin, end."""
        yield "recent_logs", self.telemetry.start, self.telemetry.recent_logs.stop
        yield "resources", self.resources.start, self.resources.stop
        if (rates := self.rate_limits).store_state is not None:
            yield "rate_limits", rates.start, rates.close
        yield "alerts", self.alerts.start, self.alerts.stop
        if (shared := self.shared_circuits) is not None:
            yield "circuit_sharing", lambda: run_in_daemon_thread(shared.start, "llmkg-circuits"), shared.stop
        yield "exports", self.exports.start, self.exports.stop
        yield "heartbeat", self.heartbeat.start, self.heartbeat.stop
        yield "watchdog", self._watchdog.start, self._watchdog.stop
        yield "health", self.health.start, self.health.stop

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
        fallbacks: Ladder[T] | None = None,
        enrich_current_span: bool = False,
        **options: Unpack[CallOptions],
    ) -> T: ...

    @overload
    async def execute_protected_operation(
        self,
        operation_name: str,
        operation: Callable[[], T],
        *,
        fallbacks: Ladder[T] | None = None,
        enrich_current_span: bool = False,
        **options: Unpack[CallOptions],
    ) -> T: ...

    async def execute_protected_operation(
        self,
        operation_name: str,
        operation: Callable[[], Awaitable[T] | T],
        *,
        fallbacks: Ladder[T] | None = None,
        enrich_current_span: bool = False,
        **options: Unpack[CallOptions],
    ) -> T:
        """Run an operation under all policies and return what it returns.

        `operation` is a coroutine function without arguments, or a sync callable, which runs in a worker
        thread that keeps the caller's context. For the options see `CallOptions`.
        `fallbacks` are rungs by name, in order, each a callable like `operation`: the first that works
        answers when the engine fails or its circuit is open; a call that was refused by a limit, or is the
        caller's mistake, is not answered by them.
        `enrich_current_span` is for callers whose own span covers just this call (an MCP server's): it is
        enriched, and no second one opened.

        Raises RejectedError (the engine was not reached), OperationTimeoutError (it was, outcome unknown),
        or the operation's own exception, the same object. Emits one span, one `llmkg.operation.duration`.
        """
        op = self.operations.named(operation_name)
        call = _call(op, options, span_owner=not enrich_current_span)
        return await self._pipeline.run(op, call, operation, fallbacks)

    def execute_protected_operation_sync(
        self,
        operation_name: str,
        operation: Callable[[], T],
        *,
        fallbacks: Ladder[T] | None = None,
        enrich_current_span: bool = False,
        **options: Unpack[CallOptions],
    ) -> T:
        """Run a sync operation in the calling thread under the same policies; waits block the thread.

        A deadline cannot interrupt Python code: it is looked at before each attempt. Raises as
        `execute_protected_operation` does.
        """
        op = self.operations.named(operation_name)
        call = _call(op, options, span_owner=not enrich_current_span)
        return self._pipeline.run_sync(op, call, operation, fallbacks)

    def protected(
        self, operation_name: str, *, fallbacks: Mapping[str, Callable[..., Any]] | None = None
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Return a decorator that protects every call of a function, async or sync, its signature kept.

        `fallbacks` are functions that take the same arguments: see `execute_protected_operation`.
        """
        return decorator(self, operation_name, fallbacks or {})

    def configure_operation(self, operation_name: str, config: OperationConfig) -> None:
        """Give an operation its own policies from now on; its circuit, counts and permits in use stay."""
        self.operations.configure(operation_name, config)

    def circuit_breaker(self, operation_name: str) -> CircuitBreaker:
        """Return an operation's breaker, to force it open or closed, or to disable it."""
        return self.operations.named(operation_name).breaker

    def get_circuit_breaker_status(self, operation_name: str) -> dict[str, Any]:
        """Return one breaker's state, counts and times. JSON-ready; from any thread.

        Keys: state, consecutive_failures, opened_by, retry_after_seconds, window, calls (from the collected
        metrics). Raises InvalidInputError for an operation that nobody has called or configured.
        """
        return breaker_status(self.operations.existing(operation_name), self.telemetry.collected.collect())

    def blame_caller_for(self, *errors: type[Exception]) -> None:
        """Treat these exceptions as the caller's mistakes: never retried, never held against the engine."""
        for error in errors:
            _check_class(error)
        self._attempts.caller_errors += errors

    def add_connection_pool(
        self,
        name: str,
        connect: Callable[[], Awaitable[C] | C],
        *,
        close: Callable[[C], object],
        check: Callable[[C], Awaitable[bool] | bool] | None = None,
        **sizes: Unpack[PoolSizes],
    ) -> ConnectionPool[C]:
        """Return a new pool of connections (see ConnectionPool), measured, and closed with the system."""
        if any(pool.name == name for pool in self.connection_pools):
            raise ConfigurationError(f"connection pool {name!r} is there already")
        pool = ConnectionPool(name, connect, close=close, check=check, observer=self._observer, **sizes)
        self.connection_pools = (*self.connection_pools, pool)
        self._sequence.register(f"connection pool {name}", pool.aclose)
        return pool

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
        Raises TimeoutError when the metrics cannot be collected, since a callback of an instrument hangs.
        """
        reading = run_in_daemon_thread(self.read_status, "llmkg-status")
        return await asyncio.wait_for(reading, STATUS_SECONDS)

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
            aggregate(components), components, time.time(), self._version, self.lifecycle.state
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
        return await run_in_daemon_thread(functools.partial(self.telemetry.close, timeout), "llmkg-flush")


def _call(op: Operation, options: CallOptions, *, span_owner: bool = True) -> Call:
    return Call(op.name, op.timeout, op.criticality, span_owner, op.system, **options)


def _check_class(error: object) -> None:
    if not (isinstance(error, type) and issubclass(error, Exception)):
        raise ConfigurationError(f"{error!r}: should be a class of exceptions, below Exception")


def create_production_system(engine: Any, config: ProductionConfig | None = None) -> ProductionSystem:
    """Return a ProductionSystem around an engine; without a `config`, `ProductionConfig.load()` reads it."""
    return ProductionSystem(engine, config)
