"""Faults on purpose: an engine that fails as real ones do, by a plan that every run repeats."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from llmkg_otel.engine.protocol import EngineStats, Fact, Hit, KnowledgeEngine, Passage, SearchMode

__all__ = ["Fault", "FaultyEngine", "fault_for"]

T = TypeVar("T")

CYCLE = 60
OUTAGE = range(20, 27)
"""Seven failures in a row in every sixty calls of a method: five open a circuit at the default
threshold, and the other two meet its first probes, so that it opens again before it closes."""
FAIL_SHARE = 0.3
SLOW_SHARE = 0.1
SLOW_SECONDS = 0.2


class Fault(StrEnum):
    """What becomes of one call. `lost_answer` is done by the engine, but the caller hears of a failure."""

    NONE = "none"
    SLOW = "slow"
    FAILED = "failed"
    LOST_ANSWER = "lost_answer"


def fault_for(seed: int, method: str, number: int) -> Fault:
    """Return the fate of call `number` (from 0) of a method: always the same for the same arguments."""
    if number % CYCLE in OUTAGE:
        return Fault.FAILED
    draw = random.Random(f"{seed}:{method}:{number}").random()  # noqa: S311 - a plan, not a secret
    if draw < FAIL_SHARE:
        return Fault.LOST_ANSWER if draw < FAIL_SHARE / 2 else Fault.FAILED
    return Fault.SLOW if draw < FAIL_SHARE + SLOW_SHARE else Fault.NONE


class FaultyEngine:
    """Delegates to a real engine; while `faults` is switched on, by the plan of `fault_for`.

    A failure is a ConnectionError, as of an engine behind a network. A lost answer of a write is why
    writes must be upserts. Lifetime and concurrency are the real engine's; its optional methods
    (backup, native query) are not passed on. `sleep` waits out slow calls; with `slow` set each one is.
    """

    def __init__(
        self,
        engine: KnowledgeEngine,
        *,
        seed: int = 7,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._seed = seed
        self._sleep = sleep
        self._numbers: Counter[str] = Counter()
        self.faults = False
        self.slow = False

    def slow_down(self) -> None:
        """Make every call take 0.2 s longer from now on, so that a shutdown meets calls in flight."""
        self.slow = True

    def switch(self, on: bool) -> None:
        """Turn faults on, with the plan from its beginning, or off."""
        self._numbers.clear()
        self.faults = on

    @property
    def name(self) -> str:
        """The real engine's name."""
        return self._engine.name

    @property
    def capabilities(self) -> Collection[str]:
        """The real engine's capabilities."""
        return self._engine.capabilities

    async def store_facts(self, facts: Sequence[Fact]) -> list[str]:
        """Delegate, or fail."""
        return await self._meddle("store_facts", lambda: self._engine.store_facts(facts))

    async def store_passage(self, passage: Passage) -> str:
        """Delegate, or fail."""
        return await self._meddle("store_passage", lambda: self._engine.store_passage(passage))

    async def find_facts(
        self,
        subject: str | None = None,
        predicate: str | None = None,
        object: str | None = None,  # noqa: A002 - the third part of a triple has this name
        *,
        limit: int = 100,
        min_confidence: float = 0.0,
    ) -> list[Fact]:
        """Delegate, or fail."""
        return await self._meddle(
            "find_facts",
            lambda: self._engine.find_facts(
                subject, predicate, object, limit=limit, min_confidence=min_confidence
            ),
        )

    async def search(self, query: str, *, limit: int = 10, mode: SearchMode = "text") -> list[Hit]:
        """Delegate, or fail."""
        return await self._meddle("search", lambda: self._engine.search(query, limit=limit, mode=mode))

    async def neighbours(self, entity: str, *, max_hops: int = 1, limit: int = 100) -> list[Fact]:
        """Delegate, or fail."""
        return await self._meddle(
            "neighbours", lambda: self._engine.neighbours(entity, max_hops=max_hops, limit=limit)
        )

    async def stats(self) -> EngineStats:
        """Delegate, or fail."""
        return await self._meddle("stats", self._engine.stats)

    async def ping(self) -> None:
        """Delegate, or fail: health checks see the same engine as calls do."""
        await self._meddle("ping", self._engine.ping)

    async def aclose(self) -> None:
        """Close the real engine; this never fails on purpose."""
        await self._engine.aclose()

    async def _meddle(self, method: str, work: Callable[[], Awaitable[T]]) -> T:
        if self.slow:
            await self._sleep(SLOW_SECONDS)
        if not self.faults:
            return await work()
        number = self._numbers[method]
        self._numbers[method] += 1
        fault = fault_for(self._seed, method, number)
        if fault is Fault.SLOW:
            await self._sleep(SLOW_SECONDS)
        if fault is Fault.LOST_ANSWER:
            await work()
        if fault in (Fault.FAILED, Fault.LOST_ANSWER):
            raise ConnectionError(f"{method}: {fault} on purpose")
        return await work()
