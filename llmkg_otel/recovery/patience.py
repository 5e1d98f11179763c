"""How much time says something of an engine that has not answered within it."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["LEAST_SECONDS", "Usual", "patience_seconds"]

SAMPLES = 20
SAMPLE_SECONDS = 1.0
"""Successes are looked at this often, so that the others pay nothing for it."""

OWN_SHARE = 0.5
"""Whoever waited for half of what an attempt may take was patient, whatever is usual."""

UNKNOWN_SHARE = 0.1
"""The same while no attempt has succeeded yet: timeouts are customarily set to several times what is usual.
A circuit that opens on this shuts nobody out who has been served."""

TIMES_USUAL = 3.0
LEAST_SECONDS = 0.05
"""Less than this may be this process's own doing: garbage collection, a busy loop."""


class Usual:
    """How long an operation takes when it succeeds: the second longest of the last 20 samples.

    One in ten may be an outlier. Not locked: its owner does that.
    """

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self.next_at = -math.inf

    def note(self, seconds: float, now: float) -> None:
        """Take a success of so many seconds for a sample, if it is time for one."""
        if now >= self.next_at and math.isfinite(seconds):
            self._samples.append(seconds)
            self.next_at = now + SAMPLE_SECONDS

    @property
    def seconds(self) -> float | None:
        """The usual time; None before the first success."""
        ordered = sorted(self._samples)
        return ordered[int(len(ordered) * 0.9)] if ordered else None


def patience_seconds(usual: float | None, allowed: float) -> float:
    """Return how long a caller who cuts a call short has to wait to have it count as the engine's failure.

    `allowed` is what an attempt may take by the configuration, `usual` what it takes when it succeeds (None:
    unknown), in seconds. A caller who always gives up early must open no circuit for others; but where all
    callers allow less than the attempt's timeout, a dead engine is known by nothing else than that it takes
    several times as long as usual.
    """
    enough = UNKNOWN_SHARE * allowed if usual is None else TIMES_USUAL * usual
    return min(OWN_SHARE * allowed, max(LEAST_SECONDS, enough))
