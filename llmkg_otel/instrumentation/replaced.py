"""Classes of C code, which take no attributes: a subclass takes their place in a module."""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

__all__ = ["pickled_as", "replacement"]


def replacement(module: ModuleType, name: str, engine_class: type, methods: Mapping[str, Any]) -> type:
    """Return a subclass with these methods that passes for the class itself, as `module.name`.

    What C code makes counts as an instance, and instances are pickled under that name, which stands for the
    class itself where nothing is instrumented. Raises ConfigurationError if it takes no subclass.
    """

    def is_instance(cls: type, instance: object) -> bool:
        return isinstance(instance, engine_class) if cls is ours else type.__instancecheck__(cls, instance)

    def is_subclass(cls: type, other: type) -> bool:
        return issubclass(other, engine_class) if cls is ours else type.__subclasscheck__(cls, other)

    checks = {"__instancecheck__": is_instance, "__subclasscheck__": is_subclass}
    metaclass = type(f"{engine_class.__name__}Meta", (type(engine_class),), checks)
    about = {"__module__": module.__name__, "__qualname__": name, "__doc__": engine_class.__doc__}
    try:
        ours: type = metaclass(engine_class.__name__, (engine_class,), {**about, "__slots__": (), **methods})
    except TypeError as problem:
        raise ConfigurationError(
            f"instrument: {module.__name__}:{name} is a class of C code that takes no subclass"
            f" ({problem}); name a Python class that uses it"
        ) from None
    return ours


def pickled_as(ours: type, engine_class: type) -> Callable[[Any], Any]:
    """Return a reducer for instances of the class itself, which is not found any more under its name."""

    def swap(value: Any) -> Any:
        return ours if value is engine_class else value

    def reduce(instance: Any) -> Any:
        reduced = instance.__reduce_ex__(2)
        if isinstance(reduced, str):
            return reduced
        function, arguments, *rest = reduced
        # The picklers would ask that a class given to __newobj__ is the instance's own.
        function = _new if function is copyreg.__newobj__ else swap(function)  # type: ignore[attr-defined]
        return function, tuple(map(swap, arguments)), *rest

    return reduce


def _new(kind: type, *arguments: Any) -> Any:
    return kind.__new__(kind, *arguments)
