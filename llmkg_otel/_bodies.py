"""What a protected call runs: a coroutine function on the loop, or a sync callable in a thread."""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llmkg_otel.call import Call

__all__ = ["check_sync", "in_thread", "is_async", "synchronous"]

T = TypeVar("T")


def is_async(body: Callable[[], Awaitable[T] | T]) -> TypeGuard[Callable[[], Awaitable[T]]]:
    """Say whether calling it gives a coroutine; else it is sync, and might block the loop."""
    function: Any = body
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)  # functions and bound methods: ten times cheaper than inspect
    if code is not None:
        return bool(code.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - not a test for callable


def check_sync(
    operation: str, body: Callable[[], object], ladder: Mapping[str, Callable[[], object]]
) -> None:
    """Raise InvalidInputError for what is not sync: a rung too, before there is a call that needs it."""
    if is_async(body):
        raise InvalidInputError(f"{operation}: an async operation needs `await execute_protected_operation`")
    for name, rung in ladder.items():
        if is_async(rung):
            raise InvalidInputError(f"{operation}: fallback {name} is async, its operation is not")


def in_thread(call: Call, body: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    """Return what runs a sync body in a thread, to be awaited on the loop."""
    return partial(_in_thread, call, body)


def synchronous(operation: str, result: T) -> T:
    """Return what a sync operation returned; raise InvalidInputError if its work has yet to be awaited."""
    if not inspect.isawaitable(result):
        return result
    if inspect.iscoroutine(result):
        result.close()
    raise InvalidInputError(f"{operation}: it returned an awaitable: `await execute_protected_operation`")


async def _in_thread(call: Call, body: Callable[[], Any]) -> Any:
    """Run a sync callable in a worker thread, with the caller's context; await what it returns, if need be.

    A cancelled or timed-out call leaves its thread to finish: Python has no way to stop it. Until then
    the call's permits stay taken, and it is not retried: a hung engine would get ever more threads.
    """

    def outcome() -> tuple[Any, BaseException | None]:
        try:
            return body(), None
        except BaseException as error:  # noqa: BLE001 - a future would not carry every one as it is
            return None, error

    thread = in_daemon_thread(outcome, "llmkg-operation")
    at: Call | None = call
    while at is not None:  # the calls around it hold the permits, and must not retry either
        at.threads = (*at.threads, thread)
        at = at.parent
    result, error = await asyncio.wrap_future(thread)
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame
    return await result if inspect.isawaitable(result) else result
