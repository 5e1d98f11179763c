"""Threads that cannot keep the process alive."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Periodic", "in_daemon_thread", "run_in_daemon_thread"]

T = TypeVar("T")


def in_daemon_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Run `function` on a new daemon thread with the context copied, and return its future.

    A thread that hangs is left behind and does not keep the process alive, which those of
    ThreadPoolExecutor and anyio do. It cannot be cancelled. The future holds what was returned or
    raised; an exit, an interrupt or a StopIteration, which a future cannot carry to a loop, arrives as
    RuntimeError.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(function)
        except BaseException as error:  # noqa: BLE001 - the future tells who waits for it
            carried = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if carried else RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


async def run_in_daemon_thread(function: Callable[[], T], name: str) -> T:
    """Await `function`, run as `in_daemon_thread` does; cancelling leaves the thread to itself.

    What asyncio.to_thread starts, `asyncio.run` waits for at its end, however long it hangs.
    """
    return await asyncio.wrap_future(in_daemon_thread(function, name))


class Periodic:
    """Calls a function on a daemon thread, with so many seconds between the end of one call and the next.

    `start` and `stop` may be called from any thread, and again. `stop` waits for a call in progress.
    """

    def __init__(self, function: Callable[[], object], seconds: float, name: str) -> None:
        self._function = function
        self._seconds = seconds
        self._name = name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first call comes after the first pause."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; does nothing if it has not begun."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._function()
