"""A decision that waits for the shared store, in a task or in a thread."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["Pending"]


@dataclass(frozen=True, slots=True)
class Pending:
    """What the store was asked, and until when (monotonic seconds) its answer may be waited for.

    `decide` is called then, answer or none: it admits by returning None, refuses by raising, or returns
    what else to wait for.
    """

    answer: Future[Any]
    deadline: float
    decide: Callable[[], Pending | None]

    async def settle(self) -> None:
        """Wait on the caller's loop, and decide. A caller that is cancelled loses what it was granted."""
        pending: Pending | None = self
        while pending is not None:
            seconds = pending.deadline - time.monotonic()
            if seconds > 0 and not pending.answer.done():
                await asyncio.wait({asyncio.wrap_future(pending.answer)}, timeout=seconds)
            pending = pending.decide()

    def settle_sync(self) -> None:
        """Do the same in the calling thread."""
        pending: Pending | None = self
        while pending is not None:
            wait({pending.answer}, max(0.0, pending.deadline - time.monotonic()))
            pending = pending.decide()
