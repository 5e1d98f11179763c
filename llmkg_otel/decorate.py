"""The decorator that protects every call of a function."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from llmkg_otel.errors import ConfigurationError

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

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{function.__qualname__} is a generator: protect what consumes it")
        if inspect.iscoroutinefunction(function):

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


def _with_arguments(
    fallbacks: Mapping[str, Callable[..., Any]], *args: Any, **kwargs: Any
) -> dict[str, Callable[[], Any]]:
    return {name: functools.partial(rung, *args, **kwargs) for name, rung in fallbacks.items()}
