"""The calls in flight: who is in, who may enter, and what became of them in a shutdown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from llmkg_otel.errors import ShuttingDownError
from llmkg_otel.shutdown.report import CancelledCall

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.call import Call

__all__ = ["ActiveCalls"]


class ActiveCalls:
    """Every protected call enters and leaves here. Thread-safe; a set operation each on the hot path.

    After `stop_accepting` newcomers get ShuttingDownError, and `counts` says what became of the calls
    that met the shutdown: drained (ended by themselves), cancelled, refused.
    """

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._counts: Counter[str] = Counter(drained=0, cancelled=0, refused=0)
        self._cancelled: set[Call] = set()
        self._idle: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def accepting(self) -> bool:
        """Whether newcomers are let in."""
        return not self._closed

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of the calls that met the shutdown: drained, cancelled, refused."""
        with self._lock:
            return dict(self._counts)

    def by_operation(self) -> Mapping[str, int]:
        """Return how many calls of each operation are in flight."""
        return Counter(call.operation for call in tuple(self._calls))

    def enter(self, call: Call) -> None:
        """Let a call in, or raise ShuttingDownError. A call made inside another one is always let in."""
        self._calls.add(call)
        if self._closed and not call.nested:
            self._refuse(call)

    def leave(self, call: Call) -> None:
        """Let a call out; called exactly once for each call that entered."""
        self._calls.discard(call)
        if self._closed:
            self._left_while_draining(call)

    def stop_accepting(self) -> None:
        """Refuse newcomers from now on."""
        with self._lock:
            self._closed = True

    async def wait_idle(self, timeout: float) -> bool:  # noqa: ASYNC109 - the drain's protocol
        """Wait until no call is in flight; False if some still are after `timeout` seconds."""
        idle = asyncio.Event()
        self._idle = (asyncio.get_running_loop(), idle)
        if not self._calls:
            return True
        try:
            async with asyncio.timeout(timeout):
                await idle.wait()
        except TimeoutError:
            return not self._calls
        finally:
            self._idle = None
        return True

    def cancel_remaining(self) -> list[CancelledCall]:
        """Cancel the tasks of the calls still in flight; return each call's name and age in seconds.

        A call in a thread cannot be cancelled: it is listed, and its thread runs on.
        """
        now = time.monotonic()
        with self._lock:
            remaining = list(self._calls)
            self._cancelled.update(remaining)
            self._counts["cancelled"] += len(remaining)
        for call in remaining:
            if call.task is not None:
                call.task.get_loop().call_soon_threadsafe(call.task.cancel)
        return [CancelledCall(call.operation, now - call.started) for call in remaining]

    def _refuse(self, call: Call) -> None:
        self._calls.discard(call)
        with self._lock:
            self._counts["refused"] += 1
        self._wake_if_idle()
        raise ShuttingDownError(
            f"{call.operation}: this instance is shutting down and takes no new calls",
            operation=call.operation,
            scope="lifecycle",
            retry_after=1.0,
        )

    def _left_while_draining(self, call: Call) -> None:
        with self._lock:
            self._counts["drained"] += call not in self._cancelled
            self._cancelled.discard(call)
        self._wake_if_idle()

    def _wake_if_idle(self) -> None:
        waiter = self._idle
        if waiter is not None and not self._calls:
            loop, idle = waiter
            loop.call_soon_threadsafe(idle.set)
