"""Wrappers put in the place of methods, and what was there put back."""

from __future__ import annotations

import copyreg
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from llmkg_otel.instrumentation.inherited import Inherited
from llmkg_otel.instrumentation.observed import Observed, Recorder
from llmkg_otel.instrumentation.replaced import pickled_as, replacement
from llmkg_otel.instrumentation.wrappers import stand_in

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
    _pickled: list[type] = field(default_factory=list)

    def add(
        self, profile: Profile, module: ModuleType, engine_class: type, methods: Mapping[str, Method]
    ) -> None:
        """Patch a class's methods, less those that another profile has patched.

        A class of C code takes no attributes: a subclass takes its place in the module, for whoever looks
        it up there from now on. Raises ConfigurationError if it cannot have subclasses either.
        """
        stand_ins = {}
        for name, how in methods.items():
            before = vars(engine_class).get(name, _MISSING)
            if self._is_ours(before):
                continue
            observed = Observed(profile, name, how, self.recorder, self._protect(profile, name, how))
            self._observed.append(observed)
            wrap = partial(stand_in, observed=observed)
            if before is _MISSING:
                stand_ins[name] = Inherited(engine_class, name, wrap, self._is_ours)
            else:
                stand_ins[name] = wrap(before)
        try:
            self._put(engine_class, stand_ins)
        except (TypeError, AttributeError):
            self._replace(module, engine_class, stand_ins)

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
        while self._pickled:
            copyreg.dispatch_table.pop(self._pickled.pop())

    def _protect(self, profile: Profile, name: str, how: Method) -> Protection | None:
        if self.protection is None or not profile.protect:
            return None
        self.protection.expect(profile, name, how)
        return self.protection

    def _put(self, owner: type, stand_ins: Mapping[str, Any]) -> None:
        for name, ours in stand_ins.items():
            before = vars(owner).get(name, _MISSING)
            setattr(owner, name, ours)
            self._done.append(_Patch(owner, name, before, ours))

    def _is_ours(self, value: object) -> bool:
        return any(patch.ours is value for patch in self._done)

    def _replace(self, module: ModuleType, engine_class: type, stand_ins: Mapping[str, Any]) -> None:
        names = [key for key, value in vars(module).items() if value is engine_class]
        where = engine_class.__name__ if engine_class.__name__ in names else names[0]
        ours = replacement(module, where, engine_class, stand_ins)
        for each in names:
            setattr(module, each, ours)
            self._done.append(_Patch(module, each, engine_class, ours))
        by_name = (module.__name__, where) == (engine_class.__module__, engine_class.__qualname__)
        if by_name and engine_class not in copyreg.dispatch_table:
            copyreg.pickle(engine_class, pickled_as(ours, engine_class))
            self._pickled.append(engine_class)
