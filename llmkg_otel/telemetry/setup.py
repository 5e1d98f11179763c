"""Providers: found, or set up once from the standard `OTEL_*` variables; flushed under our deadline.

Nothing happens at import, and a provider that the user or `opentelemetry-instrument` has set is never
replaced: it only gets one more metric reader, the one that /metrics, status and alerts read.
"""

from __future__ import annotations

import logging
import os
import uuid
from concurrent.futures import wait
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opentelemetry import _logs, metrics, trace
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.resources import Resource

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.telemetry.collected import CollectedMetrics
from llmkg_otel.telemetry.semconv import METER_NAME, SCHEMA_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["Telemetry", "set_up_telemetry"]

_log = logging.getLogger(__name__)


class _Configurator(_OTelSDKConfigurator):
    """The SDK's own reading of `OTEL_*`: exporters, samplers, limits, resource."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The providers a system writes to. `owned` ones were set up here and are shut down here."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    collected: CollectedMetrics
    owned: tuple[Any, ...] = ()
    handlers: tuple[logging.Handler, ...] = field(default=())

    def tracer(self) -> Tracer:
        """Return this layer's tracer."""
        return self.tracer_provider.get_tracer(METER_NAME, version("llmkg-otel"), SCHEMA_URL)

    def meter(self) -> Meter:
        """Return this layer's meter."""
        return self.meter_provider.get_meter(METER_NAME, version("llmkg-otel"), SCHEMA_URL)

    def close(self, timeout: float) -> str | None:
        """Send what is buffered and let go, within `timeout` seconds; return what went wrong, if anything.

        Each provider gets a daemon thread: `force_flush(1000)` on a collector that accepts and never
        answers was measured to take 40 s and to return True.
        """
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
        providers = self.owned or (self.tracer_provider, self.meter_provider, _logs.get_logger_provider())
        step = "shutdown" if self.owned else "force_flush"
        problem = _run_each([getattr(p, step, None) for p in providers], timeout)
        if isinstance(self.meter_provider, SdkMeterProvider) and not self.owned:
            self.meter_provider.remove_metric_reader(self.collected.reader)
        return problem


def _run_each(steps: list[Callable[[], object] | None], timeout: float) -> str | None:
    """Run the providers' steps side by side; return what went wrong."""
    running = [in_daemon_thread(step, "llmkg-telemetry") for step in steps if step is not None]
    done, late = wait(running, timeout)
    problems = [repr(problem) for each in done if (problem := each.exception()) is not None]
    if late:
        problems.append(f"{len(late)} of {len(running)} telemetry providers did not finish in {timeout:g} s")
    return "; ".join(problems) or None


def set_up_telemetry(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Telemetry:
    """Return the telemetry of a system: the given providers, else the global ones, else new global ones."""
    owned: tuple[Any, ...] = ()
    handlers: tuple[logging.Handler, ...] = ()
    if tracer_provider is None and meter_provider is None and not _globals_are_set():
        owned, handlers = _configure_globals()
    tracer_provider = tracer_provider or trace.get_tracer_provider()
    meter_provider = meter_provider or metrics.get_meter_provider()
    collected = CollectedMetrics()
    if isinstance(meter_provider, SdkMeterProvider):
        meter_provider.add_metric_reader(collected.reader)
    else:
        _log.warning(
            "the global meter provider is %s, not the SDK's: /metrics, status and alerts stay empty",
            type(meter_provider).__name__,
        )
    return Telemetry(tracer_provider, meter_provider, collected, owned, handlers)


def _globals_are_set() -> bool:
    """Say whether somebody has set a global provider: until then the API answers with a proxy."""
    return not (
        isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        and type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
    )


def _configure_globals() -> tuple[tuple[Any, ...], tuple[logging.Handler, ...]]:
    configure: Callable[..., None] = _Configurator().configure  # type: ignore[no-untyped-call]
    configure(resource_attributes=_resource_defaults())
    owned = (trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider())
    if os.environ.get("OTEL_LOGS_EXPORTER", "none").strip().lower() in ("", "none"):
        return owned, ()
    handler = LoggingHandler()
    # Exporters log their failures: those must not feed the exporter.
    handler.addFilter(lambda record: not record.name.startswith("opentelemetry"))
    logging.getLogger().addHandler(handler)
    return owned, (handler,)


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
