"""What a failure says: whose it is, whether the call may be repeated, and when: pure functions.

A TaskGroup inside an operation raises several failures as one: each of them has its say.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import EngineCancelledError, LlmkgOtelError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "any_is",
    "blames_engine",
    "every_is",
    "is_retryable",
    "retry_after_seconds",
    "was_cancelled",
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
    return any(_tells_of_engine(leaf) and not isinstance(leaf, caller_errors) for leaf in leaves(error))


def _tells_of_engine(error: BaseException) -> bool:
    """Say whether it is a failure, and none of this layer's that do not blame the engine."""
    return isinstance(error, Exception) and (not isinstance(error, LlmkgOtelError) or error.blames_engine)


def was_cancelled(task: asyncio.Task[Any], before: int, error: BaseException) -> bool:
    """Say whether somebody outside cancelled a task, which then raised this error; `before`: its count then.

    A TaskGroup that aborts while it waits for its tasks cancels its own task, and before Python 3.13 leaves
    that on the count. So a group, and what was raised from one, is believed only if each failure in it was
    raised while a cancellation was on its way out; if one was not, the group had its own reason, and what it
    left on the count is taken off.
    """
    if task.cancelling() <= before:
        return False
    if sys.version_info >= (3, 13) or isinstance(error, asyncio.CancelledError):
        return True
    groups = [each for each in _history(error, whole=True) if isinstance(each, BaseExceptionGroup)]
    if task.cancelling() - before > sum(_has_own_failure(group) for group in groups):
        return True
    while task.cancelling() > before:
        task.uncancel()
    return False


def _has_own_failure(group: BaseExceptionGroup[BaseException]) -> bool:
    """Say whether a failure in a group came of itself, not of a cancellation on its way out."""
    for leaf in leaves(group):
        history = _history(leaf, ends=_ended_a_cancellation)
        if not any(isinstance(each, asyncio.CancelledError) for each in history):
            return True
    return False


def _ended_a_cancellation(error: BaseException) -> bool:
    """Say whether it is a timeout, or an engine's own: the cancellation behind it was meant to become it."""
    return isinstance(error, TimeoutError | EngineCancelledError)


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
    that cancelled itself; so does what was raised from one of these, or while it was handled. Only an
    idempotent operation is repeated then. A connection that was never made says that nothing was sent.
    Errors of this layer that do not blame the engine are final: whoever refused said when to come back, and
    a wrong argument stays wrong. Of a group, each one has to allow it.
    """
    if not isinstance(error, Exception) or any(_is_final(leaf) for leaf in leaves(error)):
        return False
    return idempotent or not any(
        _leaves_outcome_unknown(each) for each in _history(error, ends=_was_not_sent)
    )


def _is_final(error: BaseException) -> bool:
    out_of_time = isinstance(error, OperationTimeoutError) and error.kind == "deadline"
    return out_of_time or not _tells_of_engine(error)


def _history(
    error: BaseException, *, ends: Callable[[BaseException], bool] = lambda _: False, whole: bool = False
) -> Iterator[BaseException]:
    """Give an error, what it was raised from or during the handling of, and so on; of groups, their members.

    What the caller was handling when it called is not part of it. What is behind an error that `ends` it is
    not looked at. `whole` gives groups too.
    """
    waiting: list[BaseException | None] = [error]
    handled = sys.exception()
    seen = {id(None)}  # an error can be made its own cause, by way of others
    if handled is not error:
        seen.add(id(handled))
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
        if whole or not isinstance(each, BaseExceptionGroup):
            yield each
        if not ends(each):
            waiting += (each.__cause__, each.__context__)


_LOST = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, EOFError)
_LOST_NAMES = frozenset(
    {
        "ChunkedEncodingError",
        "ClientPayloadError",
        "IncompleteRead",
        "ProtocolError",
        "ReadError",
        "RemoteProtocolError",
        "ServerDisconnectedError",
        "SessionExpired",
        "WriteError",
    }
)
"""What requests, urllib3, httpx, aiohttp and neo4j call a connection that was lost in the middle."""
_NOT_SENT = frozenset(
    {
        "ClientConnectorError",
        "ConnectError",
        "ConnectTimeout",
        "ConnectTimeoutError",
        "NewConnectionError",
        "PoolTimeout",
    }
)
"""What they call a connection that was never made: nothing was sent, whatever is behind it."""
_OUT_OF_TIME = ("Timeout", "TimeoutError", "TimeoutException")
"""How the names of timeouts end: client libraries have classes of their own."""


def _was_not_sent(error: BaseException) -> bool:
    return not _NOT_SENT.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _leaves_outcome_unknown(error: BaseException) -> bool:
    """Say whether it tells of a timeout, a connection lost in the middle, or an engine's cancellation."""
    if _was_not_sent(error):
        return False
    names = [kind.__name__ for kind in type(error).__mro__]
    return (
        isinstance(error, (EngineCancelledError, *_LOST))
        or any(name.endswith(_OUT_OF_TIME) for name in names)
        or not _LOST_NAMES.isdisjoint(names)
    )
