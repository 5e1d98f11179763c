"""The signals that end the process: the first begins a graceful shutdown, the second forces it."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

__all__ = ["shutdown_signals"]


@contextmanager
def shutdown_signals(
    on_first: Callable[[], object],
    on_second: Callable[[], object],
    at_once: Callable[[], object] = lambda: None,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[None]:
    """Call `on_first` at the first of these signals, `on_second` at each one after it, on the running loop.

    While the block runs it replaces the handlers that were there, also Python's KeyboardInterrupt; they
    are put back at its end. The callbacks run like those of `loop.call_soon`: they must not block, and a
    task they start must be kept by somebody. `at_once` runs before the first of them in the signal handler
    itself, so even while the loop is blocked: it must be safe between any two instructions. Raises
    RuntimeError outside the main thread, the only one in which Python handles signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "signals can be handled in the main thread only;"
            " run the loop there, or call shutdown() yourself when it is time"
        )
    loop = asyncio.get_running_loop()
    callbacks = iter((on_first,))

    def received(_signal: int, _frame: FrameType | None) -> None:
        callback = next(callbacks, on_second)
        if callback is on_first:
            at_once()
        loop.call_soon_threadsafe(callback)

    # Not loop.add_signal_handler: what it replaced cannot be put back.
    previous = {each: signal.signal(each, received) for each in signals}
    try:
        yield
    finally:
        for each, handler in previous.items():
            # None: installed by C code, which Python cannot do again.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
