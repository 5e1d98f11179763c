"""What answers instead when the engine cannot: a ladder of rungs, tried in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from llmkg_otel._bodies import in_thread, is_async, synchronous
from llmkg_otel.errors import error_type
from llmkg_otel.events import FallbackFailed, Observer
from llmkg_otel.recovery.failures import was_cancelled

if TYPE_CHECKING:
    from llmkg_otel.call import Call

__all__ = ["Ladder", "fall_back", "fall_back_sync"]

T = TypeVar("T")
Ladder = Mapping[str, Callable[[], Awaitable[T] | T]]
"""Rungs by name, in order. A name goes on the span and the metric: it is code's, never data's."""


async def fall_back(
    call: Call, failure: Exception, ladder: Ladder[T], observer: Observer, seconds: float
) -> T:
    """Return what the first rung that works gives, each within `seconds` and what is left of the call's time.

    A rung is tried once, under the call's permits, and past its circuit: it may be another engine, or
    none. When every rung fails, or no time is left, the first failure itself is raised.
    """
    for name, rung in ladder.items():
        if call.remaining() <= 0:
            break
        task = cast("asyncio.Task[object]", asyncio.current_task())
        cancelling, allowed = task.cancelling(), min(seconds, call.remaining())
        call.ends_at = time.monotonic() + allowed
        try:
            async with asyncio.timeout(allowed):
                answer = await (rung if is_async(rung) else in_thread(call, rung))()
        except (Exception, asyncio.CancelledError) as error:
            if was_cancelled(task, cancelling, error):
                raise
            call.cut_short = call.cut_short or call.ends_at <= time.monotonic()
            observer.on_event(FallbackFailed(call.operation, name, error_type(error)))
            continue
        call.fallback, call.failure = name, failure
        return answer
    try:
        raise failure
    finally:
        del failure  # it refers to this frame


def fall_back_sync(call: Call, failure: Exception, ladder: Ladder[T], observer: Observer) -> T:
    """Do the same in the calling thread; the deadline is looked at before each rung."""
    for name, rung in ladder.items():
        if call.remaining() <= 0:
            break
        try:
            answer = cast("T", synchronous(call.operation, rung()))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - no task is cancelled in here
            observer.on_event(FallbackFailed(call.operation, name, error_type(error)))
            continue
        call.fallback, call.failure = name, failure
        return answer
    try:
        raise failure
    finally:
        del failure  # it refers to this frame
