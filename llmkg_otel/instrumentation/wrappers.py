"""What stands in for an engine's method: of the same kind, with the same signature and attributes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any

from wrapt import BoundFunctionWrapper, FunctionWrapper

from llmkg_otel.errors import FailureReturnedError
from llmkg_otel.instrumentation.awaiting import ReturnedAwaitable, follow, is_awaitable, returns_awaitable
from llmkg_otel.instrumentation.iteration import aiterate, iterate, iterate_from_first
from llmkg_otel.instrumentation.observed import Observation

if TYPE_CHECKING:
    from llmkg_otel.instrumentation.observed import Observed, TextOf

__all__ = ["stand_in"]

Function = Callable[..., Any]
Call = Callable[[Function, tuple[Any, ...], Mapping[str, Any]], Any]
"""Makes one observed call of a function with these arguments, and returns what that returned."""


def stand_in(before: Any, observed: Observed) -> Any:
    """Return what takes a method's place; `before` is what its class, or one above it, has there now.

    A function for a function, so that it is still bound, compared and pickled as one. For what is none (a
    method of C code, one of `functools.lru_cache`, what others have wrapped) a proxy: it keeps attributes.
    """
    plain = type(before) is FunctionType
    call = _call_of(before, observed, bound=not plain)
    if not plain:
        return _Proxy(before, _proxied(observed, call))
    told = _function(before, observed, call)
    functools.update_wrapper(told, before)
    told.__defaults__, told.__kwdefaults__ = before.__defaults__, before.__kwdefaults__  # to be looked at
    if not vars(before).keys() & {"__wrapped__", "__signature__"}:  # else it goes by these
        told.__signature__ = inspect.signature(before)
    return told


class _BoundProxy(BoundFunctionWrapper):  # type: ignore[type-arg]
    """A proxy on an instance, pickled as what it stands for: that is found again by its name."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


class _Proxy(FunctionWrapper):  # type: ignore[type-arg]
    __bound_function_wrapper__ = _BoundProxy


def _call_of(before: Any, observed: Observed, *, bound: bool) -> Call:
    """Return what makes a method's calls; `bound` says that their arguments come without the instance."""
    text_of = observed.text_of(before, skip=int(bound))
    if inspect.isgeneratorfunction(before):
        return _iterated(observed, text_of, iterate_from_first)
    if inspect.isasyncgenfunction(before):
        return _iterated(observed, text_of, aiterate)
    kind = observed.how.kind
    if kind == "async" or (kind == "auto" and inspect.iscoroutinefunction(before)):
        return _async(observed, text_of)
    return _Sync(observed, text_of, awaitable=None if kind == "auto" and returns_awaitable(before) else False)


# Each of these asks by itself whether a call goes untold, and then calls the method: a recursive one gets one
# frame more per level, of the thousand that Python allows.


def _function(before: FunctionType, observed: Observed, call: Call) -> Any:
    """Return a function of the same kind that makes the call."""
    if inspect.iscoroutinefunction(before):
        return _coroutine_function(before, observed, call)
    if inspect.isgeneratorfunction(before):
        return _generator_function(before, observed, call)
    if inspect.isasyncgenfunction(before):
        return _async_generator_function(before, observed, call)
    if inspect.iscoroutinefunction(call):
        call = _when_awaited(observed, call)
        return lambda *args, **kwargs: call(before, args, kwargs)

    def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return before(*args, **kwargs)
        return call(before, args, kwargs)

    return told


def _proxied(observed: Observed, call: Call) -> Callable[..., Any]:
    """Return what a proxy calls with what it stands for, the instance, and the arguments."""
    if inspect.iscoroutinefunction(call):
        call = _when_awaited(observed, call)
        return lambda wrapped, _instance, args, kwargs: call(wrapped, args, kwargs)

    def told(wrapped: Function, _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if observed.quiet():
            return wrapped(*args, **kwargs)
        return call(wrapped, args, kwargs)

    return told


def _when_awaited(observed: Observed, call: Call) -> Call:
    async def told(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if observed.quiet():
            return await function(*args, **kwargs)
        return await call(function, args, kwargs)

    return told


def _coroutine_function(before: Function, observed: Observed, call: Call) -> Function:
    async def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return await before(*args, **kwargs)
        return await call(before, args, kwargs)

    return told


def _generator_function(before: Function, observed: Observed, call: Call) -> Function:
    def told(*args: Any, **kwargs: Any) -> Any:
        if observed.quiet():
            return (yield from before(*args, **kwargs))
        return (yield from call(before, args, kwargs))

    return told


def _async_generator_function(before: Function, observed: Observed, call: Call) -> Function:
    async def told(*args: Any, **kwargs: Any) -> Any:
        source = before(*args, **kwargs) if observed.quiet() else call(before, args, kwargs)
        step = source.asend(None)
        while True:
            try:
                item = await step
            except StopAsyncIteration:
                return
            try:
                step = source.asend((yield item))
            except GeneratorExit:
                await source.aclose()
                raise
            except BaseException as thrown:  # noqa: BLE001 - the source decides what becomes of it
                step = source.athrow(thrown)

    return told


def _iterated(observed: Observed, text_of: TextOf, iterated: Callable[..., Any]) -> Call:
    def call(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        start = functools.partial(function, *args, **kwargs)
        return iterated(observed, text_of(args, kwargs), start)

    return call


def _async(observed: Observed, text_of: TextOf) -> Call:
    async def call(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        async def body() -> Any:
            return observed.checked(await function(*args, **kwargs))

        guard = observed.protection
        try:
            with Observation(observed, text_of(args, kwargs)) as seen:
                if guard is None:
                    return _returned(seen, observed.checked(await function(*args, **kwargs)))
                return _returned(seen, await guard.run(observed.protected_name, body))
        except FailureReturnedError as failure:
            return failure.result

    return call


class _Sync:
    """Calls a function that is none of the others.

    What it returns may be `awaitable` all the same (None: that is a guess), which only a call can tell. Then
    it is protected while that is awaited, and not before. The first call that shows it unforeseen has gone
    through the policies by then: that one ends without a result, and is no success.
    """

    def __init__(self, observed: Observed, text_of: TextOf, *, awaitable: bool | None) -> None:
        self._observed = observed
        self._text_of = text_of
        self._awaitable = awaitable

    def __call__(self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        observed = self._observed

        def body() -> Any:
            return observed.checked(function(*args, **kwargs))

        try:
            with Observation(observed, self._text_of(args, kwargs)) as seen:
                result = self._result(seen, body)
                if not is_awaitable(result):
                    self._awaitable = self._awaitable or False
                    return _returned(seen, result)
                self._awaitable = True
                return follow(seen, result, body)
        except FailureReturnedError as failure:
            return failure.result
        except ReturnedAwaitable as early:
            self._awaitable = True
            return follow(Observation(observed, self._text_of(args, kwargs)), early.result, body)

    def _result(self, seen: Observation, body: Callable[[], Any]) -> Any:
        guard = self._observed.protection
        if guard is None or self._awaitable is not False:
            return body()

        def settled() -> Any:
            if is_awaitable(result := body()):
                raise ReturnedAwaitable(result)
            return result

        try:
            return guard.run_sync(self._observed.protected_name, settled)
        except ReturnedAwaitable:
            seen.deferred = True  # for ever: another observation goes on with the call
            raise


def _returned(seen: Observation, result: Any) -> Any:
    """Return what the caller gets: the result, with the work that is still to be done in it observed."""
    where = seen.observed.how.iterates
    if where is not None:
        if (source := getattr(result, where, None)) is not None and hasattr(source, "__next__"):
            setattr(result, where, iterate(seen, source))
    elif isinstance(result, GeneratorType):
        return iterate(seen, result)
    else:
        seen.count(result)
    return result
