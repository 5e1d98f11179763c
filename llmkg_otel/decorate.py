"""The decorator that protects every call of a function."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from llmkg_otel._bodies import check_ladder, is_async
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.operation import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.system import ProductionSystem

__all__ = ["decorator"]

T = TypeVar("T")
P = ParamSpec("P")


def decorator(
    system: ProductionSystem, operation_name: str, fallbacks: Mapping[str, Callable[..., Any]]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return what `ProductionSystem.protected` returns."""
    check_name(operation_name)
    check_ladder(operation_name, fallbacks)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if isinstance(function, staticmethod | classmethod):  # below this decorator, or above it: the same
            kind = cast("Any", type(function))
            return cast("Callable[P, T]", kind(decorate(function.__func__)))
        _check(function, fallbacks)
        if is_async(cast("Callable[[], Any]", function)):

            @functools.wraps(function)
            async def protected(*args: P.args, **kwargs: P.kwargs) -> Any:
                body = functools.partial(function, *args, **kwargs)
                ladder = _with_arguments(fallbacks, *args, **kwargs)
                return await system.execute_protected_operation(operation_name, body, fallbacks=ladder)

            return cast("Callable[P, T]", protected)

        @functools.wraps(function)
        def protected_sync(*args: P.args, **kwargs: P.kwargs) -> T:
            body = functools.partial(function, *args, **kwargs)
            ladder = _with_arguments(fallbacks, *args, **kwargs)
            return cast("T", system.execute_protected_operation_sync(operation_name, body, fallbacks=ladder))

        return protected_sync

    return decorate


def _check(function: Any, fallbacks: Mapping[str, Callable[..., Any]]) -> None:
    """Raise ConfigurationError, before the first call, for a function that cannot be protected as it is."""
    name = getattr(function, "__qualname__", None) or repr(function)
    if not callable(function):
        raise ConfigurationError(f"{name} cannot be called: protect the function that it is made of")
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    for each in (function, called):
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise ConfigurationError(f"{name} is a generator: protect what consumes it")
    if is_async(function):
        return
    if is_async(inspect.unwrap(function)):
        raise ConfigurationError(
            f"{name} is a sync wrapper around a coroutine function: protect that function, below the wrapper"
        )
    for rung, fallback in fallbacks.items():
        if is_async(fallback):
            raise ConfigurationError(f"{name}: fallback {rung} is async, {name} is not")


def _with_arguments(
    fallbacks: Mapping[str, Callable[..., Any]], *args: Any, **kwargs: Any
) -> dict[str, Callable[[], Any]]:
    return {name: functools.partial(rung, *args, **kwargs) for name, rung in fallbacks.items()}
