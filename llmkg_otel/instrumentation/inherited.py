"""What stands in for a method that a class only inherits: whatever comes next, looked up call by call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkg_otel.instrumentation.targets import is_method

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Inherited"]


class Inherited:
    """A class's attribute that answers as `super()` does, with calls observed.

    So another class may come between (cooperative inheritance), and the base may be patched later, by others
    or by us. `wrap` makes the stand-in for a method; one that `is_ours` already is left alone.
    """

    def __init__(
        self, owner: type, name: str, wrap: Callable[[Any], Any], is_ours: Callable[[object], bool]
    ) -> None:
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._is_ours = is_ours
        self._made: dict[int, tuple[Any, Any]] = {}

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        owner = owner or type(instance)
        before = self._next(owner)
        if (made := self._made.get(id(before))) is None:  # the tuple keeps it alive, and so its id its own
            wanted = is_method(before) and not self._is_ours(before)
            made = self._made[id(before)] = before, self._wrap(before) if wanted else before
        bind = getattr(type(made[1]), "__get__", None)
        return made[1] if bind is None else bind(made[1], instance, owner)

    def __call__(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the method as a function that was taken from its class's attributes."""
        return self.__get__(instance)(*args, **kwargs)

    def _next(self, owner: type) -> Any:
        mro = iter(owner.__mro__)
        for each in mro:
            if each is self._owner:
                break
        for each in mro:
            if self._name in each.__dict__:
                return each.__dict__[self._name]
        raise AttributeError(f"type object {owner.__name__!r} has no attribute {self._name!r}")
