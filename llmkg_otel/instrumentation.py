"""Spans and metrics for engine operations with no code changed: the `opentelemetry_instrumentor`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.instrumentation.utils import unwrap
from opentelemetry.metrics import get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer
from wrapt import wrap_function_wrapper

from llmkg_otel.engine.profiles import PROFILES, Profile
from llmkg_otel.errors import error_type
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.instruments import histogram

__all__ = ["LLMKGInstrumentor"]

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


class LLMKGInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments the engines of `engine.profiles`; found by `opentelemetry-instrument`.

    `instrument(tracer_provider=..., meter_provider=...)` takes the global providers by default;
    `uninstrument()` leaves the classes as they were. Per operation: a CLIENT span named after it and
    `db.client.operation.duration`. Arguments and results are not recorded.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no requirement: the embedded engine is always there."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        meter = get_meter(
            semconv.METER_NAME,
            version("llmkg-otel"),
            kwargs.get("meter_provider"),
            semconv.SCHEMA_URL,
        )
        tracer = get_tracer(
            semconv.METER_NAME,
            version("llmkg-otel"),
            kwargs.get("tracer_provider"),
            semconv.SCHEMA_URL,
        )
        duration = histogram(meter, semconv.DB_OPERATION_DURATION)
        for profile in PROFILES:
            for method in profile.methods:
                wrapper = _observed(profile, method, tracer, duration)
                wrap_function_wrapper(profile.module, f"{profile.class_name}.{method}", wrapper)

    def _uninstrument(self, **_kwargs: Any) -> None:
        for profile in PROFILES:
            engine_class = getattr(importlib.import_module(profile.module), profile.class_name)
            for method in profile.methods:
                unwrap(engine_class, method)


def _observed(profile: Profile, method: str, tracer: Any, duration: Any) -> Wrapper:
    """Return a wrapper that gives each call of an async method its span and its duration."""
    attributes = {semconv.DB_SYSTEM: profile.system, semconv.DB_OPERATION: method}

    async def observed(
        wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        started = time.monotonic()
        recorded = attributes
        span_options = {"record_exception": False, "set_status_on_exception": False}
        with tracer.start_as_current_span(
            method, kind=SpanKind.CLIENT, attributes=attributes, **span_options
        ) as span:
            try:
                return await wrapped(*args, **kwargs)
            except BaseException as error:
                kind = error_type(error)
                span.set_status(Status(StatusCode.ERROR, kind))
                span.set_attribute(semconv.ERROR_TYPE, kind)
                recorded = {**attributes, semconv.ERROR_TYPE: kind}
                raise
            finally:
                duration.record(time.monotonic() - started, recorded)

    return observed
