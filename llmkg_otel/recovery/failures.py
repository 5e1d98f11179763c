"""What a failure says: whose it is, whether the call may be repeated, and when: pure functions.

A TaskGroup inside an operation raises several failures as one: each of them has its say.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import EngineCancelledError, LlmkgOtelError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "any_is",
    "blames_engine",
    "every_is",
    "is_retryable",
    "retry_after_seconds",
    "tells_of_cancellation",
]

_FOR_EVER = 1e9

Classes = tuple[type[Exception], ...]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Give the failures in a group, however deep; what is no group is its own only one."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
        else:
            yield each


def every_is(error: BaseException, classes: Classes) -> bool:
    """Say whether an error is of these classes; of a group, each one in it."""
    return isinstance(error, classes) or all(isinstance(leaf, classes) for leaf in leaves(error))


def any_is(error: BaseException, classes: Classes) -> bool:
    """Say whether an error is of these classes; of a group, any one in it."""
    return isinstance(error, classes) or any(isinstance(leaf, classes) for leaf in leaves(error))


def blames_engine(error: BaseException, caller_errors: Classes) -> bool:
    """Say whether a failure is the engine's, one of a group at least; `caller_errors` and refusals are not.

    Cancellation and exits are not failures.
    """
    if not isinstance(error, Exception):
        return False
    return any(
        isinstance(leaf, Exception)
        and not isinstance(leaf, caller_errors)
        and (not isinstance(leaf, LlmkgOtelError) or leaf.blames_engine)
        for leaf in leaves(error)
    )


def tells_of_cancellation(error: BaseException) -> bool:
    """Say whether an error was raised while a cancellation was on its way out; of a group, each one in it."""
    return all(
        any(isinstance(each, asyncio.CancelledError) for each in _history(leaf, context=True))
        for leaf in leaves(error)
    )


def retry_after_seconds(error: BaseException) -> float:
    """Return how long the failed service asked to be left alone (its `retry_after`, s), else 0.

    A number of seconds or a timedelta; anything else is no wish. Of several wishes the longest counts.
    """
    return max(_wish(leaf) for leaf in leaves(error))


def _wish(error: BaseException) -> float:
    try:
        after: Any = getattr(error, "retry_after", None)
    except Exception:  # noqa: BLE001 - a property that raises must not take the place of the engine's error
        return 0.0
    if isinstance(after, timedelta):
        after = after.total_seconds()
    is_number = isinstance(after, int | float) and not isinstance(after, bool)
    return float(min(after, _FOR_EVER)) if is_number and after > 0 else 0.0  # NaN is no wish either


def is_retryable(error: BaseException, *, idempotent: bool) -> bool:
    """Say whether the same call may succeed, and may be repeated, after this failure.

    Cancellation and exits are not failures. A timeout, of Python's class or one of a library's own
    (`httpx.ReadTimeout`), and a connection lost in the middle leave the outcome unknown, as does an engine
    that cancelled itself; so does what was raised from one of these. Only an idempotent operation is
    repeated then. Errors of this layer that do not blame the engine are final: whoever refused said when to
    come back, and a wrong argument stays wrong. Of a group, each one has to allow it.
    """
    return isinstance(error, Exception) and all(
        _repeats(leaf, idempotent=idempotent) for leaf in leaves(error)
    )


def _repeats(error: BaseException, *, idempotent: bool) -> bool:
    if not isinstance(error, Exception) or (isinstance(error, LlmkgOtelError) and not error.blames_engine):
        return False
    if isinstance(error, OperationTimeoutError) and error.kind == "deadline":
        return False
    return idempotent or not any(_leaves_outcome_unknown(cause) for cause in _history(error))


def _history(error: BaseException, *, context: bool = False) -> Iterator[BaseException]:
    """Give an error and what it was raised from, in turn: the members of groups, for a group.

    With `context`, also what was being handled when it was raised.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()  # an error can be made its own cause, by way of others
    while waiting:
        if (nearest := waiting.pop()) is None:
            continue
        for each in leaves(nearest):
            if id(each) not in seen:
                seen.add(id(each))
                yield each
                waiting += (each.__cause__, each.__context__ if context else None)


def _leaves_outcome_unknown(error: BaseException) -> bool:
    lost = (EngineCancelledError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    return isinstance(error, lost) or _ran_out_of_time(error)


def _ran_out_of_time(error: BaseException) -> bool:
    """Say whether it tells of a timeout; client libraries have classes of their own, by such names."""
    names = ("Timeout", "TimeoutError", "TimeoutException")
    return any(kind.__name__.endswith(names) for kind in type(error).__mro__)
