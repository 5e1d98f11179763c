"""An engine that only lives and dies."""

from __future__ import annotations


class StubEngine:
    """Answers pings, and notes that it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def ping(self) -> None:
        """Answer."""

    async def aclose(self) -> None:
        self.closed += 1
