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
from llmkg_otel.instrumentation.targets import check_module, named_class, named_profile, operations_of
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
    `ProductionConfig.load()` by default. With a `config` it raises ConfigurationError for what is wrong with
    a class that is named. Without one, and for classes of modules that are imported later, that is told on
    stderr and in the log, the class is left out, and the program goes on. `uninstrument()` puts back the
    very attributes that were there. A method that others have wrapped meanwhile keeps their wrapper, with
    ours inside, which then does nothing.
    Per call: a CLIENT span, `db.client.operation.duration`, and with `protect` what a protected call emits.
    """

    _patches: Patches | None = None
    _protection: Protection | None = None
    _strict = False

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no requirement: an engine that is not there is not instrumented."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        config = kwargs.get("config")
        self._strict = config is not None
        try:
            self._begin(
                config or ProductionConfig.load(),
                {key: kwargs.get(key) for key in ("tracer_provider", "meter_provider")},
            )
        except ConfigurationError as problem:
            if self._strict:
                self._uninstrument()
                raise
            _tell(problem)  # raised, it would keep `opentelemetry-instrument` from other instrumentors
        finally:
            self._strict = False

    def _begin(self, config: ProductionConfig, providers: dict[str, Any]) -> None:
        self._protection = Protection(config, **providers) if config.protect else None
        self._patches = Patches(recorder_of(config, **providers), self._protection)
        own = list(config.instrumentation.profiles)
        for text in dict.fromkeys(config.instrument):
            try:
                own.append(named_profile(text, own))
            except ConfigurationError as problem:
                self._problem(problem)
        for profile in own:
            self._look_for(profile)
            self._expect(self._patches, profile, own=True)
        for profile in PROFILES:
            self._expect(self._patches, profile, own=False)

    def _look_for(self, profile: Profile) -> None:
        """Tell of modules that cannot be found now; one that can be later is still instrumented."""
        for each in profile.classes:
            try:
                check_module(target(each)[0])
            except ConfigurationError as problem:
                self._problem(problem)

    def _expect(self, patches: Patches, profile: Profile, *, own: bool) -> None:
        """Patch each class of a profile once its module is there."""
        for position, each in enumerate(profile.classes):
            module_name, class_name = target(each)

            def imported(
                module: ModuleType, class_name: str = class_name, *, required: bool = position == 0
            ) -> None:
                if not patches.open:
                    return
                missing = _patch(patches, profile, module, class_name, required=required)
                if missing is not None and own:
                    self._problem(missing)
                elif missing is not None:
                    name = profile.name
                    _log.warning("this version of %s is not instrumented as it should be: %s", name, missing)

            register_post_import_hook(imported, module_name)

    def _problem(self, problem: ConfigurationError) -> None:
        if self._strict:
            raise problem
        _tell(problem)

    def _uninstrument(self, **_kwargs: Any) -> None:
        if self._patches is not None:
            self._patches.restore()
        if self._protection is not None:
            self._protection.stop()


def _tell(problem: ConfigurationError) -> None:
    """Say what is wrong where a person sees it; the log of a program just begun may lead nowhere."""
    sys.stderr.write(f"llmkg-otel: {problem}\n")
    if _log.hasHandlers():
        _log.warning("%s", problem)


def recorder_of(config: ProductionConfig, *, tracer_provider: Any, meter_provider: Any) -> Recorder:
    """Return what writes to these providers, or for None to the global ones."""
    scope = semconv.METER_NAME, version("llmkg-otel")
    tracer = get_tracer(*scope, tracer_provider, semconv.SCHEMA_URL)
    meter = get_meter(*scope, meter_provider, semconv.SCHEMA_URL)
    duration = histogram(meter, semconv.DB_OPERATION_DURATION)
    return Recorder(tracer, duration, capture_text=config.instrumentation.capture_text)


def _patch(
    patches: Patches, profile: Profile, module: ModuleType, class_name: str, *, required: bool
) -> ConfigurationError | None:
    """Patch one class and return what is wrong with it: this runs in the program's own import of it."""
    try:
        engine_class = named_class(module, class_name)
        methods, missing = operations_of(profile, engine_class, required=required)
        patches.add(profile, module, engine_class, methods)
    except ConfigurationError as problem:
        return problem
    except Exception as problem:  # noqa: BLE001
        return ConfigurationError(f"instrument: {module.__name__}:{class_name} cannot be: {problem!r}")
    return missing
