"""What a protected call runs: a coroutine function on the loop, or a sync callable in a thread."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.call import Call

__all__ = ["check_ladder", "check_sync", "in_thread", "is_async", "synchronous"]

T = TypeVar("T")


def is_async(body: Callable[[], Awaitable[T] | T]) -> TypeGuard[Callable[[], Awaitable[T]]]:
    """Say whether calling it gives a coroutine; else it is sync, and might block the loop.

    Raises InvalidInputError for what cannot be called, such as a coroutine that somebody has made already.
    """
    function: Any = body
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)  # functions and bound methods: ten times cheaper than inspect
    if code is not None:
        return bool(code.co_flags & inspect.CO_COROUTINE)
    check_callable(function)
    return inspect.iscoroutinefunction(function.__call__)


def check_callable(function: object) -> None:
    """Raise InvalidInputError for what is no function to be called for each attempt."""
    if callable(function):
        return
    if inspect.iscoroutine(function):
        function.close()
    raise InvalidInputError(
        f"an operation of type {type(function).__name__}: should be a function without arguments, to be"
        " called for each attempt"
    )


def check_sync(operation: str, body: Callable[[], object]) -> None:
    """Raise InvalidInputError for what is not sync."""
    if is_async(body):
        raise InvalidInputError(f"{operation}: an async operation needs `await execute_protected_operation`")


def check_ladder(
    operation: str, ladder: Mapping[str, Callable[[], object]], *, is_sync: bool = False
) -> None:
    """Raise InvalidInputError for what can be no ladder, before there is a call that needs it."""
    if not isinstance(ladder, Mapping):
        raise InvalidInputError(
            f"{operation}: fallbacks of type {type(ladder).__name__}: should be functions by name"
        )
    for name, rung in ladder.items():
        check_callable(rung)
        if is_sync and is_async(rung):
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
    call.add_thread(thread)
    result, error = await asyncio.wrap_future(thread)
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame
    return await result if inspect.isawaitable(result) else result
