"""Providers: found, or set up from the standard `OTEL_*` variables; flushed under our deadline.

Nothing happens at import. A provider that the user or `opentelemetry-instrument` has set is never
replaced: the meter provider only gets one more metric reader, the one that /metrics, status and alerts
read. What is missing is set up for as long as the process lives: a system that closes flushes it, and
the next one uses it again.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import uuid
from concurrent.futures import wait
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._configuration import (
    _get_exporter_names,
    _get_id_generator,
    _get_sampler,
    _import_exporters,
    _import_id_generator,
    _import_sampler,
    _init_logging,
    _init_metrics,
    _init_tracing,
    _OTelSDKConfigurator,
)
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.config import MonitoringConfig
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.telemetry.collected import CollectedMetrics, LatestCallbacks
from llmkg_otel.telemetry.logs import CountingProcessor, LogExport, RedactedExports
from llmkg_otel.telemetry.recent_logs import RecentLogs
from llmkg_otel.telemetry.secret_text import redact_text
from llmkg_otel.telemetry.semconv import METER_NAME, SCHEMA_URL
from llmkg_otel.telemetry.variables import check_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Future

    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["Telemetry", "bound_exit", "set_up_telemetry"]

DEFAULTS = MonitoringConfig()
EXIT_SECONDS = 5.0
"""What the providers that were set up here get at exit in a process that has closed no system."""

_GLOBALS: dict[str, Callable[[], Any]] = {
    "traces": trace.get_tracer_provider,
    "metrics": metrics.get_meter_provider,
    "logs": _logs.get_logger_provider,
}
_UNSET = ("ProxyTracerProvider", "_ProxyMeterProvider", "ProxyLoggerProvider")
"""What the API answers with until a provider is set."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The providers a system writes to, what it reads back, and its part in exporting logs."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    collected: CollectedMetrics
    recent_logs: RecentLogs
    log_export: LogExport | None = None
    redacted_exports: RedactedExports | None = None

    def tracer(self) -> Tracer:
        """Return this layer's tracer."""
        return self.tracer_provider.get_tracer(METER_NAME, version("llmkg-otel"), SCHEMA_URL)

    def meter(self) -> Meter:
        """Return this layer's meter; of one provider's systems, the last is the one that is observed."""
        meter = self.meter_provider.get_meter(METER_NAME, version("llmkg-otel"), SCHEMA_URL)
        return cast("Meter", LatestCallbacks(meter))

    def start(self) -> None:
        """Listen for recent logs, and redact what OpenTelemetry's own handlers export, also the latest."""
        self.recent_logs.start()
        if self.redacted_exports is not None:
            self.redacted_exports.attach()

    def close(self, timeout: float) -> str | None:
        """Send what is buffered and let go, within `timeout` seconds; return what went wrong, if anything.

        Each provider gets a daemon thread: `force_flush(1000)` on a collector that accepts and never
        answers was measured to take 40 s and to return True.
        """
        began, _lasting.exit_seconds = time.monotonic(), 0.0  # until the flush has ended, nothing is left
        if self.log_export is not None:
            logging.getLogger().removeHandler(self.log_export)
        if self.redacted_exports is not None:
            self.redacted_exports.detach()
        providers = (self.tracer_provider, self.meter_provider, _logs.get_logger_provider())
        problem = _run_each([getattr(p, "force_flush", None) for p in providers], timeout)
        self.collected.detach()
        _lasting.exit_seconds = max(0.0, timeout - (time.monotonic() - began))
        return problem


class _Configurator(_OTelSDKConfigurator):
    """The SDK's own, for `OTEL_CONFIG_FILE`: it asks to be subclassed."""


class _Lasting:
    """The global providers that are shut down here, at the exit of the process.

    The shutdown gets what the last close left of its time. The SDK's own atexit hooks were measured to
    hold an exit for 15 s on a collector that accepts and never answers, 30 s after a flush that failed.
    The threads wait from the start: from Python 3.12 on, none may be started at exit.
    """

    def __init__(self) -> None:
        self.exit_seconds = EXIT_SECONDS
        self.exports_logs = False
        self._process = os.getpid()
        self._exiting = threading.Event()
        self._ends: dict[Any, Future[object]] = {}

    def add(self, provider: Any) -> None:
        if provider in self._ends or not hasattr(provider, "shutdown"):
            return
        self._process = os.getpid()
        atexit.unregister(provider.shutdown)
        if not self._ends:
            atexit.register(self._exit)
        self._ends[provider] = in_daemon_thread(
            lambda: self._exiting.wait() and provider.shutdown(), "llmkg-telemetry-exit"
        )

    def refuse_in_forks(self, needed: Collection[str]) -> None:
        """Raise ConfigurationError in a fork that would write to the providers that its parent has set up."""
        for signal in needed:
            if _GLOBALS[signal]() in self._ends and os.getpid() != self._process:
                raise ConfigurationError(
                    f"the global provider of {signal} was set up in process {self._process}, of which this"
                    " one is a fork: make the first system after the fork, or pass providers of this process"
                )

    def _exit(self) -> None:
        if os.getpid() != self._process:
            return  # a fork has none of the threads that would do it
        self._exiting.set()
        wait(self._ends.values(), self.exit_seconds)


_lasting = _Lasting()
_setting_up = threading.Lock()


def _run_each(steps: list[Callable[[], object] | None], timeout: float) -> str | None:
    """Run the providers' steps side by side; return what went wrong."""
    running = [in_daemon_thread(step, "llmkg-telemetry") for step in steps if step is not None]
    done, late = wait(running, timeout)
    problems = [repr(problem) for each in done if (problem := each.exception()) is not None]
    if late:
        problems.append(f"{len(late)} of {len(running)} telemetry providers did not finish in {timeout:g} s")
    return "; ".join(problems) or None


def set_up_telemetry(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    monitoring: MonitoringConfig = DEFAULTS,
) -> Telemetry:
    """Return the telemetry of a system: the given providers, else the global ones, else new global ones.

    With both given, no global provider is set. Raises ConfigurationError for an `OTEL_*` variable that cannot
    be followed, before anything is set.
    """
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if (tracer_provider is None or meter_provider is None) and not disabled:
        given = {"traces": tracer_provider, "metrics": meter_provider}
        needed = [signal for signal in _GLOBALS if given.get(signal) is None]
        _lasting.refuse_in_forks(needed)
        with _setting_up:
            if missing := [each for each in needed if type(_GLOBALS[each]()).__name__ in _UNSET]:
                _set_up(missing)
    tracer_provider = tracer_provider or trace.get_tracer_provider()
    meter_provider = meter_provider or metrics.get_meter_provider()
    collected = CollectedMetrics()
    collected.attach(meter_provider, "OTEL_SDK_DISABLED is true" if disabled else None)
    if collected.no_data is not None:
        level = logging.INFO if disabled else logging.WARNING
        _log.log(level, "%s: /metrics, status and alerts have no data", collected.no_data)
    redact = monitoring.redact_secrets
    log_export = LogExport(redact=redact) if _lasting.exports_logs else None
    if log_export is not None:
        logging.getLogger().addHandler(log_export)
    recent_logs = RecentLogs(monitoring.max_log_entries, redact=redact)
    redacted_exports = RedactedExports(redact=True) if redact else None
    if redacted_exports is not None:
        redacted_exports.attach()
    return Telemetry(tracer_provider, meter_provider, collected, recent_logs, log_export, redacted_exports)


def bound_exit() -> None:
    """Bound the global providers' shutdown at exit, whoever has set them: `opentelemetry-instrument` too.

    For programs, not for libraries; once the system is made. What is set up here is bounded anyway.
    """
    for get_provider in _GLOBALS.values():
        _lasting.add(get_provider())


def _set_up(signals: Collection[str]) -> None:
    """Set global providers as the SDK's configurator would, but for three things.

    Console exporters write to stderr, since stdout belongs to MCP's stdio transport; no Prometheus server
    is started; and the SDK adds no logging handler.
    """
    try:
        if os.environ.get("OTEL_CONFIG_FILE") and len(signals) == len(_GLOBALS):
            _Configurator().configure()  # type: ignore[no-untyped-call]
        else:
            check_signals(signals)
            _set_up_from_variables(signals)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever an exporter, which may be anybody's, makes of its variables
        given = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        problem = redact_text(f"{type(error).__name__}: {error}")
        raise ConfigurationError(f"OpenTelemetry cannot be set up from {given}: {problem}") from error
    finally:
        for signal in signals:
            _lasting.add(_GLOBALS[signal]())


def _set_up_from_variables(signals: Collection[str]) -> None:
    names = (_exporter_names(each) if each in signals else [] for each in _GLOBALS)
    spans, readers, logs = _import_exporters(*names)
    resource = Resource.create(_resource_defaults())
    consoles = (ConsoleSpanExporter, ConsoleMetricExporter, ConsoleLogRecordExporter)
    options: dict[Any, dict[str, Any]] = {each: {"out": sys.stderr} for each in consoles}
    if "traces" in signals:
        generator, sampler = _import_id_generator(_get_id_generator()), _import_sampler(_get_sampler())
        _init_tracing(spans, generator, sampler, resource, options)
    if "metrics" in signals:
        _init_metrics({name: _at_home(each, options) for name, each in readers.items()}, resource, options)
    if "logs" in signals:
        _init_logging(
            logs,
            resource,
            setup_logging_handler=False,
            exporter_args_map=options,
            export_log_record_processor=CountingProcessor,
        )
        _lasting.exports_logs = bool(logs)


def _at_home(kind: Any, options: dict[Any, dict[str, Any]]) -> Any:
    """Return a metric exporter's class, of which a fork exports nothing: its series would be its parent's."""
    if not issubclass(kind, MetricExporter):
        return kind
    home = os.getpid()

    def export(self: Any, *arguments: Any, **named: Any) -> Any:
        if os.getpid() != home:
            return MetricExportResult.SUCCESS
        return kind.export(self, *arguments, **named)

    own = type(kind.__name__, (kind,), {"export": export})
    options[own] = options.get(kind, {})
    return own


def _exporter_names(signal: Any) -> list[str]:
    names = _get_exporter_names(signal)
    if signal == "metrics" and "prometheus" in names:
        _log.warning(
            "OTEL_METRICS_EXPORTER: prometheus is left out, its server would take the operators' port;"
            " /metrics is served there, and get_prometheus_metrics() returns the same"
        )
        names = [name for name in names if name != "prometheus"]
    return names


def _resource_defaults() -> dict[str, str]:
    """Return what describes this process, less what the `OTEL_*` variables say already."""
    given = Resource.create().attributes
    defaults = {
        "service.name": "llmkg",
        "service.version": version("llmkg-otel"),
        "service.instance.id": str(uuid.uuid4()),
    }
    return {
        key: value
        for key, value in defaults.items()
        if key not in given or str(given[key]).startswith("unknown_service")
    }
