"""Wrappers put in the place of methods, and what was there put back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import ConfigurationError
from llmkg_otel.instrumentation.observed import Observed, Recorder
from llmkg_otel.instrumentation.wrappers import wrapper_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from llmkg_otel.engine.profiles import Method, Profile
    from llmkg_otel.instrumentation.protection import Protection

__all__ = ["Patches"]

_log = logging.getLogger(__name__)
_MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class _Patch:
    """`owner.name` was `before` (missing: inherited, or not there) and is `ours` now."""

    owner: Any
    name: str
    before: Any
    ours: Any

    def restore(self) -> bool:
        """Put back what was there; False if somebody has put something else in the place of ours."""
        if vars(self.owner).get(self.name, _MISSING) is not self.ours:
            return False
        if self.before is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)
        return True


@dataclass(slots=True)
class Patches:
    """All that one `instrument()` has replaced; `open` until it is restored."""

    recorder: Recorder
    protection: Protection | None = None
    open: bool = True
    _done: list[_Patch] = field(default_factory=list)
    _observed: list[Observed] = field(default_factory=list)

    def add(
        self, profile: Profile, module: ModuleType, engine_class: type, methods: Mapping[str, Method]
    ) -> None:
        """Patch a class's methods, less those that another profile has patched.

        A class of C code takes no attributes: a subclass takes its place in the module, for whoever looks
        it up there from now on. Raises ConfigurationError if it cannot have subclasses either.
        """
        wrappers = {}
        for name, how in methods.items():
            before = _static(engine_class, name)
            if any(patch.ours is before for patch in self._done):
                continue
            observed = Observed(profile, name, how, self.recorder, self._protect(profile, name, how))
            self._observed.append(observed)
            wrappers[name] = wrapper_of(before, observed)
        try:
            for name, ours in wrappers.items():
                before = vars(engine_class).get(name, _MISSING)
                setattr(engine_class, name, ours)
                self._done.append(_Patch(engine_class, name, before, ours))
        except (TypeError, AttributeError):
            self._replace(module, engine_class, wrappers)

    def restore(self) -> None:
        """Put back everything, the last first; what others have wrapped meanwhile stays, and does nothing."""
        self.open = False
        for observed in self._observed:
            observed.active = False
        for patch in reversed(self._done):
            if not patch.restore():
                _log.warning(
                    "%s.%s was replaced by others since it was instrumented: left to them, ours does nothing",
                    patch.owner.__name__,
                    patch.name,
                )
        self._done.clear()

    def _protect(self, profile: Profile, name: str, how: Method) -> Protection | None:
        if self.protection is None or not profile.protect:
            return None
        self.protection.expect(profile, name, how)
        return self.protection

    def _replace(self, module: ModuleType, engine_class: type, wrappers: Mapping[str, Any]) -> None:
        name = engine_class.__name__
        metaclass = type(f"{name}Meta", (type(engine_class),), {"__instancecheck__": _as(engine_class)})
        namespace = {"__module__": engine_class.__module__, "__doc__": engine_class.__doc__, **wrappers}
        try:
            ours = metaclass(name, (engine_class,), namespace)
        except TypeError as problem:
            raise ConfigurationError(
                f"instrument: {module.__name__}:{name} is a class of C code that takes no subclass"
                f" ({problem}); name a Python class that uses it"
            ) from None
        where = next(key for key, value in vars(module).items() if value is engine_class)
        setattr(module, where, ours)
        self._done.append(_Patch(module, where, engine_class, ours))


def _static(engine_class: type, name: str) -> Any:
    return next(vars(each)[name] for each in engine_class.__mro__ if name in vars(each))


def _as(engine_class: type) -> Any:
    """Let instances that C code makes itself count as those of the class in the module."""
    return lambda _ours, instance: isinstance(instance, engine_class)
