"""Load shedding: how many calls are let in, and a count of those that were not."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from llmkg_otel.events import Observer, SheddingLimitChanged
from llmkg_otel.limiting.adaptive import AdaptiveLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.config import LoadSheddingConfig
    from llmkg_otel.limiting.adaptive import Began
    from llmkg_otel.limiting.permits import PermitPool
    from llmkg_otel.limiting.waiting import Criticality

__all__ = ["LoadShedding"]

TOLD_AT = 0.1
"""A limit that has moved by this share since it was last told of is told of again."""


class LoadShedding:
    """Sizes a pool of permits by how long calls take, and counts what is decided. Thread-safe.

    In mode "shadow" the limit is worked out and decisions are counted, but nothing is refused for it.
    Emits SheddingLimitChanged when the limit has moved by a tenth.
    """

    def __init__(
        self,
        config: LoadSheddingConfig,
        maximum: int,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._observer = observer
        self._lock = threading.Lock()
        self._limit = AdaptiveLimit(
            min(config.min_concurrent_operations, maximum), maximum, clock, may_relieve=config.mode == "on"
        )
        self._told = self._limit.limit
        self._counts: Counter[tuple[str, str, Criticality]] = Counter()

    @property
    def limit(self) -> int:
        """Calls that the engine takes well at once."""
        return self._limit.limit

    @property
    def requests(self) -> Mapping[tuple[str, str, Criticality], int]:
        """Decisions since the start: (decision, reason, criticality) -> count."""
        with self._lock:
            return dict(self._counts)

    def accepted(self, criticality: Criticality, usage: int) -> None:
        """Count a call that was let in as the `usage`-th at the same time."""
        shadowed = self.config.mode == "shadow" and usage > self._limit.limit
        key = ("would_shed", "limit", criticality) if shadowed else ("accepted", "none", criticality)
        with self._lock:
            self._counts[key] += 1

    def shed(self, reason: str, criticality: Criticality) -> None:
        """Count a call that was refused: the queue was full, it waited too long, or it made room."""
        with self._lock:
            self._counts["shed", reason, criticality] += 1

    def begin(self, pool: PermitPool) -> Began:
        """Take note of a call that begins in the engine; pair it with `end`."""
        with self._lock:
            return self._limit.begin(pool.usage)

    def end(self, began: Began, operation: str, pool: PermitPool, *, counts: bool) -> None:
        """Learn from a call that has ended, unless it counts for nothing, and resize the pool by it."""
        with self._lock:
            before = self._limit.permits
            self._limit.end(began, operation, counts=counts)
            permits, limit = self._limit.permits, self._limit.limit
            told, moved = self._told, abs(limit - self._told) > TOLD_AT * self._told
            if moved:
                self._told = limit
        if permits != before and self.config.mode == "on":
            pool.resize(permits)
        if moved:
            self._observer.on_event(SheddingLimitChanged(told, limit))
