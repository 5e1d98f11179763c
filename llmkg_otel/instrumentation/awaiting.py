"""Methods that are no coroutine functions and yet return what is awaited: the call ends when that does."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import FailureReturnedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.instrumentation.observed import Observation

__all__ = ["ReturnedAwaitable", "follow", "is_awaitable", "returns_awaitable"]

_log = logging.getLogger(__name__)
_told: set[str] = set()


class ReturnedAwaitable(BaseException):
    """Ends a protected call whose result is still to come, so that it counts as no success."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


def returns_awaitable(function: Any) -> bool:
    """Guess whether a function that is no coroutine function returns awaitables: if one is behind it."""
    return inspect.iscoroutinefunction(inspect.unwrap(function))


def is_awaitable(result: object) -> bool:
    """Say whether a result is there to be awaited. Faster than `inspect.isawaitable`."""
    return hasattr(type(result), "__await__")


def follow(seen: Observation, result: Any, again: Callable[[], Any]) -> Any:
    """Return what a call's caller awaits, so that the call ends with it; `again` makes another attempt.

    A coroutine is awaited under the call's protection. A future is passed on, since its caller may do more
    with it than to await it; so is any other awaitable object, and of that the end is not seen.
    """
    if isinstance(result, Coroutine):
        seen.deferred = True
        rest = _awaited(seen, result, again)
        for name in ("__name__", "__qualname__"):  # what asyncio shows of a task
            setattr(rest, name, getattr(result, name, getattr(rest, name)))
        return rest
    if asyncio.isfuture(result):
        seen.deferred = True
        _end_with(seen, result)
    _tell_unprotected(seen, result)
    return result


async def _awaited(seen: Observation, result: Any, again: Callable[[], Any]) -> Any:
    """Await a coroutine, and where that fails and may be tried again, those of further calls."""
    pending, observed = [result], seen.observed

    async def body() -> Any:
        return observed.checked(await (pending.pop() if pending else again()))

    seen.deferred, guard = False, observed.protection
    try:
        with seen:
            outcome = await (body() if guard is None else guard.run(observed.protected_name, body))
            seen.count(outcome)
            return outcome
    except FailureReturnedError as failure:
        return failure.result
    finally:
        for unused in pending:  # a call that was refused
            unused.close()


def _end_with(seen: Observation, future: asyncio.Future[Any]) -> None:
    since = time.monotonic() - seen.busy

    def ended(done: asyncio.Future[Any]) -> None:
        seen.busy = time.monotonic() - since
        # `exception()` would take back the word of asyncio that nobody has asked for it.
        seen.end(asyncio.CancelledError() if done.cancelled() else getattr(done, "_exception", None))

    future.add_done_callback(ended)


def _tell_unprotected(seen: Observation, result: object) -> None:
    name = seen.observed.protected_name
    if seen.observed.protection is not None and name not in _told:
        _told.add(name)
        kind = type(result).__name__
        _log.warning('%s returns a %s: unprotected, unless its profile says kind: "async"', name, kind)
