"""A simulated engine behind the real permits and load shedding, on a clock that only the simulation moves."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from llmkg_otel.config import LoadSheddingConfig
from llmkg_otel.errors import OverloadedError
from llmkg_otel.limiting.permits import PermitPool
from llmkg_otel.limiting.shedding import LoadShedding

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.events import Event
    from llmkg_otel.limiting.adaptive import Began
    from llmkg_otel.limiting.waiting import Criticality

MOST_AT_ONCE, MOST_WAITING, LONGEST_WAIT = 1000, 1000, 1.0
KINDS: tuple[Criticality, ...] = ("critical", "default", "sheddable")
WEIGHTS = (1, 6, 3)


@dataclass(frozen=True)
class Shape:
    """How long the engine works on a call: on average (seconds), and one call, from a random source."""

    mean: float
    draw: Callable[[random.Random], float]


def lognormal(mean: float, sigma: float) -> Shape:
    return Shape(mean, lambda source: source.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))


SHAPES = {
    "fixed": Shape(0.05, lambda _: 0.05),
    "lognormal 0.6": lognormal(0.05, 0.6),
    "lognormal 1.0": lognormal(0.05, 1.0),
    "cache hits and slow calls": Shape(0.0545, lambda source: 0.5 if source.random() < 0.1 else 0.005),
    "slow": Shape(10.0, lambda _: 10.0),
    "slow lognormal": lognormal(10.0, 0.6),
}


@dataclass
class Simulation:
    """`workers` that take calls in the order they came; calls come at random, `load` times what they can do.

    `slower` says how many times as long a call takes that the engine begins at a time. After `run`,
    `limits` are those seen once in a mean service time; of calls that came after `warm` seconds, `worked`
    is the workers' time, `times` those in the engine, `outcomes` what became of them.
    """

    shape: Shape
    workers: int
    load: float
    seed: int
    mode: str = "on"
    slower: Callable[[float], float] = lambda _: 1.0
    failures: float = 0.0
    warm: float = 0.0
    now: float = 0.0
    worked: float = 0.0
    limits: list[tuple[float, int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        config = LoadSheddingConfig.model_validate({"mode": self.mode})
        self.shedding = LoadShedding(config, MOST_AT_ONCE, self, lambda: self.now)
        self.pool = PermitPool(
            "operations", MOST_AT_ONCE, MOST_WAITING, self, lambda: self.now, shedding=self.shedding
        )
        self._source = random.Random(self.seed)
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._free = self.workers
        self._queue: deque[Began] = deque()

    def on_event(self, event: Event) -> None:
        """Take the events of the pool, which say nothing that is not seen here."""

    def run(self, seconds: float) -> Simulation:
        self._at(0.0, self._arrive)
        self._at(self.warm, self._look)
        while self._agenda and self._agenda[0][0] <= seconds:
            self.now, _, happen, what = heapq.heappop(self._agenda)
            happen(*what)
        return self

    def share_worked(self) -> float:
        return self.worked / (self.now - self.warm) / self.workers

    def share_shed(self) -> float:
        return self.outcomes["shed"] / self.outcomes.total()

    def mean_limit(self, since: float = 0.0) -> float:
        seen = [limit for when, limit in self.limits if when >= since]
        return sum(seen) / len(seen)

    def _at(self, when: float, happen: Callable[..., None], *what: Any) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), happen, what))

    def _look(self) -> None:
        self.limits.append((self.now, self.shedding.limit))
        self._at(self.now + self.shape.mean, self._look)

    def _arrive(self) -> None:
        rate = self.load * self.workers / self.shape.mean
        self._at(self.now + self._source.expovariate(rate), self._arrive)
        kind = self._source.choices(KINDS, WEIGHTS)[0]
        if self.pool.try_acquire(kind):
            self._admitted()
            return
        try:
            waiter, patience = self.pool._enqueue("ask", LONGEST_WAIT, kind)
        except OverloadedError:
            self._count("shed")
            return
        waiter.add_done_callback(
            lambda done: self._count("shed") if done.cancelled() or done.exception() else self._admitted()
        )
        self._at(self.now + patience, self._lose_patience, waiter)

    def _lose_patience(self, waiter: Any) -> None:
        if not waiter.done() and self.pool._gave_up(waiter):
            self._count("shed")

    def _admitted(self) -> None:
        self._count("admitted")
        self._queue.append(self.shedding.begin(self.pool))
        self._work()

    def _work(self) -> None:
        if self._free and self._queue:
            self._free -= 1
            seconds = self.shape.draw(self._source) * self.slower(self.now)
            self._at(self.now + seconds, self._done, self._queue.popleft(), seconds)

    def _done(self, began: Began, seconds: float) -> None:
        self._free += 1
        self._work()
        if self.now >= self.warm:
            self.worked += min(seconds, self.now - self.warm)
            self.times.append(self.now - began.at)
        failed = self._source.random() < self.failures
        self.shedding.end(began, "ask", self.pool, counts=not failed)
        self.pool.release()

    def _count(self, outcome: str) -> None:
        if self.now >= self.warm:
            self.outcomes[outcome] += 1
