"""The points of the last hour or so, per series: what rules look back on.

One ring per series, 16 bytes a point: 1,000 series with 1,000 points each hold 16 MB.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from threading import Lock
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.matchers import Matcher, match_all
from llmkg_otel.alerting.promql.values import (
    METRIC_NAME,
    Labels,
    Sample,
    Series,
    Vector,
    label_value,
    labels_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["SampleStore"]

_STALE_BITS = 0x7FF8_6C6C_6D6B_6700
_STALE: float = struct.unpack("<d", struct.pack("<Q", _STALE_BITS))[0]
"""A quiet NaN of our own: Prometheus' marker is a signalling one, which not every processor keeps."""


def _is_stale(value: float) -> bool:
    return value != value and struct.pack("<d", value) == struct.pack("<Q", _STALE_BITS)  # noqa: PLR0124


class _Ring:
    """One series' points: times in milliseconds, rising, and values beside them."""

    __slots__ = ("markers", "times", "values")

    def __init__(self) -> None:
        self.times = array("q")
        self.values = array("d")
        self.markers = 0

    def append(self, time: int, value: float, oldest: int, max_points: int) -> None:
        """Add a point unless one of this or a later time is there; drop what is too old or too much."""
        if self.times and time <= self.times[-1]:
            return
        self.times.append(time)
        self.values.append(value)
        self.markers += _is_stale(value)
        surplus = max(bisect_right(self.times, oldest), len(self.times) - max_points)
        if surplus > 0:
            self.markers -= sum(map(_is_stale, self.values[:surplus]))
            del self.times[:surplus]
            del self.values[:surplus]

    def newest(self, at: int, oldest: int) -> float | None:
        """Return the newest value in (oldest, at], None when there is none or it is a stale marker."""
        index = bisect_right(self.times, at) - 1
        if index < 0 or self.times[index] <= oldest:
            return None
        value = self.values[index]
        return None if _is_stale(value) else value

    def window(self, start: int, end: int) -> tuple[Sequence[int], Sequence[float]]:
        """Return the points in (start, end] that are no stale markers."""
        low, high = bisect_right(self.times, start), bisect_right(self.times, end)
        times, values = self.times[low:high], self.values[low:high]
        if self.markers == 0:
            return times, values
        kept = [index for index, value in enumerate(values) if not _is_stale(value)]
        return [times[index] for index in kept], [values[index] for index in kept]


class SampleStore:
    """Collected points of every series, bounded in age and number.

    `retention_seconds` (above 0) is how long a point is kept after the newest collection, and `max_points`
    (at least 1) how many a series keeps; a series without a point for that long is forgotten, an eighth
    of it later at most. Thread-safe: appended on one thread, read on another; what is read is a copy.
    """

    def __init__(self, retention_seconds: float, max_points: int) -> None:
        self.retention_seconds = retention_seconds
        self._retention = round(retention_seconds * 1000)
        self._max_points = max_points
        self._lock = Lock()
        self._by_name: dict[str, dict[Labels, _Ring]] = {}
        self._present: dict[str, set[Labels]] = {}
        self._forget_at: int | None = None

    def append(
        self,
        timestamp: float,
        samples: Iterable[tuple[str, Mapping[str, str], float]],
        *,
        source: str = "collection",
    ) -> None:
        """Add one collection: (name, labels, value) each, all at `timestamp` (seconds since the epoch).

        A series that the same `source` had in its last collection and has not in this one gets a staleness
        marker. A point that is not newer than its series' last one is left out, as is a repeated series.
        """
        now = round(timestamp * 1000)
        seen = set[Labels]()
        with self._lock:
            for name, labels, value in samples:
                key = labels_of({**labels, METRIC_NAME: name})
                if key not in seen:
                    seen.add(key)
                    self._add(name, key, now, value)
            for key in self._present.get(source, set()) - seen:
                self._add(label_value(key, METRIC_NAME), key, now, _STALE)
            self._present[source] = seen
            if self._forget_at is None or now >= self._forget_at:
                self._forget(now - self._retention)
                self._forget_at = now + self._retention // 8

    def _add(self, name: str, key: Labels, now: int, value: float) -> None:
        rings = self._by_name.setdefault(name, {})
        ring = rings.get(key)
        if ring is None:
            ring = rings[key] = _Ring()
        ring.append(now, value, now - self._retention, self._max_points)

    def _forget(self, oldest: int) -> None:
        for name, rings in list(self._by_name.items()):
            for key in [key for key, ring in rings.items() if ring.times[-1] <= oldest]:
                del rings[key]
            if not rings:
                del self._by_name[name]

    def instant(
        self, name: str | None, matchers: Sequence[Matcher], at: float, lookback: float = 300.0
    ) -> Vector:
        """Return each matching series' newest value in (at - lookback, at], seconds; stale ones are left out.

        `name` None reads every name that the matchers let through.
        """
        end = round(at * 1000)
        start = end - round(lookback * 1000)
        with self._lock:
            found = ((key, ring.newest(end, start)) for key, ring in self._matching(name, matchers))
            return [Sample(key, value) for key, value in found if value is not None]

    def range(
        self, name: str | None, matchers: Sequence[Matcher], start_exclusive: float, end: float
    ) -> list[Series]:
        """Return each matching series' points in (start_exclusive, end], seconds, without stale markers.

        Times in the result are milliseconds; a series without a point there is left out.
        """
        first, last = round(start_exclusive * 1000), round(end * 1000)
        with self._lock:
            found = ((key, *ring.window(first, last)) for key, ring in self._matching(name, matchers))
            return [Series(key, times, values) for key, times, values in found if times]

    def __len__(self) -> int:
        """How many series are kept."""
        with self._lock:
            return sum(map(len, self._by_name.values()))

    def _matching(self, name: str | None, matchers: Sequence[Matcher]) -> Iterable[tuple[Labels, _Ring]]:
        groups = self._by_name.values() if name is None else [self._by_name.get(name, {})]
        for rings in groups:
            for key, ring in rings.items():
                if match_all(key, matchers):
                    yield key, ring
