"""The `opentelemetry_instrumentor`: what `opentelemetry-instrument` finds."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.metrics import get_meter
from opentelemetry.trace import get_tracer
from wrapt import register_post_import_hook

from llmkg_otel.config import ProductionConfig
from llmkg_otel.engine.profiles import PROFILES, Profile, target
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.instrumentation.observed import Recorder
from llmkg_otel.instrumentation.patches import Patches
from llmkg_otel.instrumentation.protection import Protection
from llmkg_otel.instrumentation.targets import check_module, named_class, operations_of, profile_of
from llmkg_otel.telemetry import semconv
from llmkg_otel.telemetry.instruments import histogram

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

__all__ = ["LLMKGInstrumentor", "recorder_of"]

_log = logging.getLogger(__name__)


class LLMKGInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments known engines, and those that the configuration names, once the program imports them.

    `instrument(tracer_provider=..., meter_provider=..., config=...)` takes the global providers and
    `ProductionConfig.load()` by default, and raises ConfigurationError for a class that is not there: at
    once if its module cannot be found, else when the program imports that. `uninstrument()` puts back the
    very attributes that were there. A method that others have wrapped meanwhile keeps their wrapper, with
    ours inside, which then does nothing.
    Per call: a CLIENT span, `db.client.operation.duration`, and with `protect` what a protected call emits.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no requirement: an engine that is not there is not instrumented."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        try:
            self._begin(**kwargs)
        except ConfigurationError as problem:
            if "config" not in kwargs:  # `opentelemetry-instrument` logs it, which may lead nowhere
                sys.stderr.write(f"llmkg-otel: {problem}\n")
            raise

    def _begin(self, **kwargs: Any) -> None:
        config = kwargs.get("config") or ProductionConfig.load()
        named = [profile_of(each) for each in config.instrument]
        own = [*config.instrumentation.profiles, *named]
        for profile in own:
            for each in profile.classes:
                check_module(target(each)[0])
        providers = {key: kwargs.get(key) for key in ("tracer_provider", "meter_provider")}
        self._protection = Protection(config, **providers) if config.protect else None
        self._patches = Patches(recorder_of(config, **providers), self._protection)
        try:
            for profile in own:
                self._expect(profile, own=True)
            for profile in PROFILES:
                self._expect(profile, own=False)
        except BaseException:
            self._uninstrument()
            raise

    def _expect(self, profile: Profile, *, own: bool) -> None:
        """Patch each class of a profile once its module is there."""
        patches = self._patches
        for position, each in enumerate(profile.classes):
            module_name, class_name = target(each)

            def imported(
                module: ModuleType, class_name: str = class_name, *, required: bool = position == 0
            ) -> None:
                if patches.open:
                    _patch(patches, profile, module, class_name, required=required, own=own)

            register_post_import_hook(imported, module_name)

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._patches.restore()
        if self._protection is not None:
            self._protection.stop()


def recorder_of(config: ProductionConfig, *, tracer_provider: Any, meter_provider: Any) -> Recorder:
    """Return what writes to these providers, or for None to the global ones."""
    scope = semconv.METER_NAME, version("llmkg-otel")
    tracer = get_tracer(*scope, tracer_provider, semconv.SCHEMA_URL)
    meter = get_meter(*scope, meter_provider, semconv.SCHEMA_URL)
    duration = histogram(meter, semconv.DB_OPERATION_DURATION)
    return Recorder(tracer, duration, capture_text=config.instrumentation.capture_text)


def _patch(
    patches: Patches, profile: Profile, module: ModuleType, class_name: str, *, required: bool, own: bool
) -> None:
    """Patch one class; what is missing is an error in a user's profile, and a warning in one of ours."""
    try:
        engine_class = named_class(module, class_name)
        methods, missing = operations_of(profile, engine_class, required=required)
        patches.add(profile, module, engine_class, methods)
    except ConfigurationError as problem:
        methods, missing = {}, problem
    if missing is not None and own:
        raise missing
    if missing is not None:
        _log.warning("this version of %s is not instrumented as it should be: %s", profile.name, missing)
