"""From names to classes and methods, and what to say when a name is wrong."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import pkgutil
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkg_otel.engine.profiles import NAME, PROFILES, Method, Profile, target
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

__all__ = ["check_module", "is_method", "named_class", "named_profile", "operations_of", "public_methods"]


def named_profile(text: str, others: Iterable[Profile]) -> Profile:
    """Return the profile, all its public methods, of a class as `LLMKG_INSTRUMENT` names it.

    Without a name ("name=pkg.module:Class") it is called after the class. Raises ConfigurationError, which
    says how to name it, if that cannot be, or if one of the `others` or of the known engines is called so.
    """
    name, _, named = text.rpartition("=")
    _, class_name = target(named)
    name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower().strip("_")
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(
            f"instrument: {named} gives {name!r}, which is no name (small ASCII letters, digits, _, a letter"
            f' first, 63 at most): name it yourself, as in LLMKG_INSTRUMENT="my_engine={named}"'
        )
    same = [each.classes for each in (*others, *PROFILES) if each.name == name]
    if same and not any(named in classes for classes in same):
        raise ConfigurationError(
            f"instrument: {named} and {same[0][0]} would both be {name}, and share its circuits and series:"
            f' name one of them yourself, as in LLMKG_INSTRUMENT="my_{name}={named}"'
        )
    return Profile(name=name, classes=(named,))


def check_module(name: str) -> None:
    """Raise ConfigurationError unless a module can be found; nothing is imported.

    `opentelemetry-instrument` comes before the program's own directory is on the path: it is looked at too.
    """
    if name.partition(".")[0] == "__main__":
        raise ConfigurationError("instrument: classes of __main__ cannot be instrumented; give them a module")
    if name in sys.modules:
        return
    try:
        _find(name)
    except ConfigurationError:
        raise
    except (ImportError, ValueError) as problem:  # of a finder, or a module in memory that has no spec
        raise ConfigurationError(f"instrument: module {name} cannot be looked up: {problem}") from None


def _find(name: str) -> None:
    first, *rest = name.split(".")
    spec, known = _top_level(first), first
    for part in rest:
        places = (spec.submodule_search_locations if spec is not None else None) or []
        inner = PathFinder.find_spec(f"{known}.{part}", list(places))
        if spec is not None and inner is None:
            there = [found.name for found in pkgutil.iter_modules(list(places))]
            raise ConfigurationError(f"instrument: there is no module {name}; {_told(known, part, there)}")
        spec, known = inner, f"{known}.{part}"
    if spec is None:
        there = [found.name for found in pkgutil.iter_modules([*sys.path, *_own_directories()])]
        near = difflib.get_close_matches(first, there, n=1)
        hint = f"did you mean {near[0]}?" if near else "nothing of that name is installed or on the path"
        raise ConfigurationError(f"instrument: there is no module {name}; {hint}")


def _top_level(name: str) -> ModuleSpec | None:
    return importlib.util.find_spec(name) or PathFinder.find_spec(name, _own_directories())


def _own_directories() -> list[str]:
    """Return what may be put on the path yet: where the program is, and where it was begun."""
    script = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "."
    return [str(Path(script).absolute().parent), str(Path.cwd())]


def named_class(module: ModuleType, name: str) -> type:
    """Return a module's class, or raise ConfigurationError that names the classes there are."""
    found = getattr(module, name, None)
    if inspect.isclass(found):
        return found
    there = [each for each, value in vars(module).items() if inspect.isclass(value) and each[0] != "_"]
    what = f"no class {name}" if found is None else f"a {type(found).__name__} {name}, and no class,"
    raise ConfigurationError(
        f"instrument: there is {what} in {module.__name__}; {_told(module.__name__, name, there)}"
    )


def operations_of(
    profile: Profile, engine_class: type, *, required: bool = True
) -> tuple[dict[str, Method], ConfigurationError | None]:
    """Return the methods to patch on a class, and the error that some are not there.

    Only a class that is `required` must have them all; of others, what they define themselves counts.
    """
    if not profile.methods:
        found = {name: Method() for name in public_methods(engine_class)}
        none = ConfigurationError(f"instrument: {engine_class.__name__} has no public methods")
        return found, None if found else none
    if not required:
        return {name: how for name, how in profile.methods.items() if name in vars(engine_class)}, None
    static = {name: inspect.getattr_static(engine_class, name, None) for name in profile.methods}
    missing = [name for name, value in static.items() if not is_method(value)]
    there = {name: how for name, how in profile.methods.items() if name not in missing}
    if not missing:
        return there, None
    told = _told(engine_class.__name__, missing[0], public_methods(engine_class))
    problem = f"instrument: {engine_class.__name__} has no method {', '.join(missing)}; {told}"
    return there, ConfigurationError(problem)


def public_methods(engine_class: type) -> list[str]:
    """Return the names of a class's public methods, inherited ones too; no properties or constructors."""
    names: dict[str, Any] = {}
    for each in reversed(engine_class.__mro__[:-1]):
        names |= vars(each)
    return [name for name, value in names.items() if not name.startswith("_") and is_method(value)]


def is_method(value: object) -> bool:
    """Say whether what a class holds is called on its instances: a function, or what is bound like one.

    Static and class methods and properties are not, nor are objects and classes that just can be called.
    """
    binds = inspect.isroutine(value) and hasattr(type(value), "__get__") and not inspect.ismethod(value)
    return binds and callable(value) and not isinstance(value, staticmethod | classmethod)


def _told(where: str, wrong: str, there: Iterable[str]) -> str:
    names = sorted(there)
    near = difflib.get_close_matches(wrong, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}{where} has: {', '.join(names[:30]) or 'none'}"
