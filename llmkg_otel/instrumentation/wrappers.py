"""The function that stands in for an engine's method: async, sync, or a generator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import FailureReturnedError
from llmkg_otel.instrumentation.iteration import aiterate, iterate, iterate_from_first
from llmkg_otel.instrumentation.observed import Observation

if TYPE_CHECKING:
    from llmkg_otel.instrumentation.observed import Observed

__all__ = ["wrapper_of"]

Function = Callable[..., Any]


def wrapper_of(before: Any, observed: Observed) -> Function:
    """Return what takes a method's place; `before` is what its class has there now."""
    function = before if inspect.isfunction(before) else _called_on_instance(before)
    kind = observed.how.kind
    if inspect.isgeneratorfunction(before):
        return _generator(function, observed)
    if inspect.isasyncgenfunction(before):
        return _async_generator(function, observed)
    if kind == "async" or (kind == "auto" and inspect.iscoroutinefunction(before)):
        return _async(function, observed)
    return _sync(function, observed)


def _called_on_instance(before: Any) -> Function:
    """Return a function for what is none: a method of C code, or what somebody else has wrapped."""

    @functools.wraps(before)
    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        return before.__get__(self, type(self))(*args, **kwargs)

    return function


def _async(function: Function, observed: Observed) -> Function:
    text_of = observed.text_of(function)

    @functools.wraps(function)
    async def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return await function(*args, **kwargs)

        async def body() -> Any:
            return observed.checked(await function(*args, **kwargs))

        try:
            with Observation(observed, text_of(args, kwargs)) as seen:
                guard = observed.protection
                result = await (body() if guard is None else guard.run(observed.protected_name, body))
                return _returned(seen, result)
        except FailureReturnedError as failure:
            return failure.result

    return told


def _sync(function: Function, observed: Observed) -> Function:
    text_of = observed.text_of(function)

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return function(*args, **kwargs)

        def body() -> Any:
            return observed.checked(function(*args, **kwargs))

        try:
            with Observation(observed, text_of(args, kwargs)) as seen:
                guard = observed.protection
                result = body() if guard is None else guard.run_sync(observed.protected_name, body)
                return _returned(seen, result)
        except FailureReturnedError as failure:
            return failure.result

    return told


def _generator(function: Function, observed: Observed) -> Function:
    text_of = observed.text_of(function)

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return function(*args, **kwargs)
        start = functools.partial(function, *args, **kwargs)
        return iterate_from_first(observed, text_of(args, kwargs), start)

    return told


def _async_generator(function: Function, observed: Observed) -> Function:
    text_of = observed.text_of(function)

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return function(*args, **kwargs)
        return aiterate(observed, text_of(args, kwargs), functools.partial(function, *args, **kwargs))

    return told


def _returned(seen: Observation, result: Any) -> Any:
    """Return what the caller gets: the result, with the work that is still to be done in it observed."""
    where = seen.observed.how.iterates
    if where is not None:
        if (source := getattr(result, where, None)) is not None and hasattr(source, "__next__"):
            setattr(result, where, iterate(seen, source))
    elif isinstance(result, GeneratorType):
        return iterate(seen, result)
    elif isinstance(result, CoroutineType):
        seen.deferred = True
        return _awaited(seen, result)
    else:
        seen.count(result)
    return result


async def _awaited(seen: Observation, rest: Any) -> Any:
    seen.deferred = False
    with seen:
        return await rest
