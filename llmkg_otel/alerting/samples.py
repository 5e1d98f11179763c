"""The points of the last hour or so, per series: what rules look back on.

One ring per series, 16 bytes a point: 1,000 series with 1,000 points each hold 16 MB.
"""

from __future__ import annotations

import logging
import struct
from array import array
from bisect import bisect_right
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING

from llmkg_otel.alerting.promql.evaluation import MAX_SAMPLES
from llmkg_otel.alerting.promql.matchers import Matcher, match_all
from llmkg_otel.alerting.promql.values import (
    METRIC_NAME,
    EvaluationError,
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


_STALE_BYTES = struct.pack("<d", _STALE)
_REMEMBERED_SELECTIONS = 1024  # of one metric name

_logger = logging.getLogger(__name__)


def _is_stale(value: float) -> bool:
    return value != value and struct.pack("<d", value) == _STALE_BYTES  # noqa: PLR0124


class _Ring:
    """One series' points: times in milliseconds, rising, and values beside them.

    `markers` counts the stale markers among them, `falls` the values below the one before.
    """

    __slots__ = ("falls", "markers", "times", "values")

    def __init__(self) -> None:
        self.times = array("q")
        self.values = array("d")
        self.markers = self.falls = 0

    def append(self, time: int, value: float, oldest: int, max_points: int) -> None:
        """Add a point unless one of this or a later time is there; drop what is too old or too much."""
        times, values = self.times, self.values
        if times:
            if time <= times[-1]:
                return
            self.falls += value < values[-1]
        times.append(time)
        values.append(value)
        self.markers += _is_stale(value)
        if times[0] <= oldest or len(times) > max_points:
            self._drop(max(bisect_right(times, oldest), len(times) - max_points))

    def _drop(self, surplus: int) -> None:
        self.markers -= sum(map(_is_stale, self.values[:surplus]))
        if self.falls:
            self.falls -= sum(after < before for before, after in pairwise(self.values[: surplus + 1]))
        del self.times[:surplus]
        del self.values[:surplus]

    def newest(self, at: int, oldest: int) -> int:
        """Return the index of the newest value in (oldest, at], -1 when there is none or it is a marker."""
        times = self.times
        index = len(times) - 1 if times[-1] <= at else bisect_right(times, at) - 1
        return -1 if index < 0 or times[index] <= oldest or _is_stale(self.values[index]) else index

    def window(self, labels: Labels, start: int, end: int) -> Series | None:
        """Return the points in (start, end] that are no stale markers, None when there are none."""
        times = self.times
        low = bisect_right(times, start)
        high = len(times) if times[-1] <= end else bisect_right(times, end)
        if low >= high:
            return None
        if self.markers == 0:
            return Series(labels, times[low:high], self.values[low:high], self.falls == 0)
        kept = [index for index in range(low, high) if not _is_stale(self.values[index])]
        return (
            Series(labels, [times[index] for index in kept], [self.values[index] for index in kept])
            if kept
            else None
        )


_Selected = list[tuple[Labels, _Ring]]


class SampleStore:
    """Collected points of every series, bounded in age and number.

    `retention_seconds` (above 0) is how long a point is kept after the newest collection, and `max_points`
    (at least 1) how many a series keeps; a series without a point for that long is forgotten, an eighth
    of it later at most. New series beyond `max_series` are left out, with one warning. Thread-safe:
    appended on one thread, read on another; what is read is a copy.
    """

    def __init__(self, retention_seconds: float, max_points: int, max_series: int = 100_000) -> None:
        self.retention_seconds = retention_seconds
        self._retention = round(retention_seconds * 1000)
        self._max_points = max_points
        self._max_series = max_series
        self._count = 0
        self._is_full = False
        self._lock = Lock()
        self._by_name: dict[str, dict[Labels, _Ring]] = {}
        self._selections: dict[str | None, dict[tuple[Matcher, ...], _Selected]] = {}
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

    def move(self, seconds: float) -> None:
        """Date every point so many seconds later: the clock was set by them."""
        by = round(seconds * 1000)
        with self._lock:
            for rings in self._by_name.values():
                for ring in rings.values():
                    ring.times = array("q", [time + by for time in ring.times])
            self._forget_at = None

    def _add(self, name: str, key: Labels, now: int, value: float) -> None:
        rings = self._by_name.get(name)
        ring = None if rings is None else rings.get(key)
        if ring is None:
            if self._count >= self._max_series:
                self._refuse()
                return
            self._count += 1
            ring = self._by_name.setdefault(name, {})[key] = _Ring()
            self._changed(name)
        ring.append(now, value, now - self._retention, self._max_points)

    def _refuse(self) -> None:
        if not self._is_full:
            self._is_full = True
            _logger.warning("Samples for alerts: %d series are kept, others are left out", self._max_series)

    def _changed(self, name: str) -> None:
        self._selections.pop(name, None)
        self._selections.pop(None, None)

    def _forget(self, oldest: int) -> None:
        for name, rings in list(self._by_name.items()):
            gone = [key for key, ring in rings.items() if ring.times[-1] <= oldest]
            for key in gone:
                del rings[key]
            if gone:
                self._count -= len(gone)
                self._is_full = False
                self._changed(name)
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
            return [
                Sample(labels, ring.values[index])
                for labels, ring in self._selected(name, matchers)
                if (index := ring.newest(end, start)) >= 0
            ]

    def timestamps(
        self, name: str | None, matchers: Sequence[Matcher], at: float, lookback: float = 300.0
    ) -> Vector:
        """Return the times, in seconds, of the values that `instant` gives."""
        end = round(at * 1000)
        start = end - round(lookback * 1000)
        with self._lock:
            return [
                Sample(labels, ring.times[index] / 1000)
                for labels, ring in self._selected(name, matchers)
                if (index := ring.newest(end, start)) >= 0
            ]

    def range(
        self, name: str | None, matchers: Sequence[Matcher], start_exclusive: float, end: float
    ) -> list[Series]:
        """Return each matching series' points in (start_exclusive, end], seconds, without stale markers.

        Times in the result are milliseconds; a series without a point there is left out. Raises
        EvaluationError when there are more points than one expression may read.
        """
        first, last = round(start_exclusive * 1000), round(end * 1000)
        found, points = [], 0
        with self._lock:
            for labels, ring in self._selected(name, matchers):
                series = ring.window(labels, first, last)
                if series is not None:
                    found.append(series)
                    points += len(series.times)
                    if points > MAX_SAMPLES:
                        raise EvaluationError(f"a selector would read more than {MAX_SAMPLES:,} samples")
        return found

    def __len__(self) -> int:
        """How many series are kept."""
        with self._lock:
            return sum(map(len, self._by_name.values()))

    def _selected(self, name: str | None, matchers: Sequence[Matcher]) -> _Selected:
        """Return the series that match; remembered until the name's series change."""
        key = tuple(matchers)
        known = self._selections.setdefault(name, {})
        selected = known.get(key)
        if selected is None:
            if len(known) >= _REMEMBERED_SELECTIONS:
                known.clear()
            selected = known[key] = self._select(name, key)
        return selected

    def _select(self, name: str | None, matchers: Sequence[Matcher]) -> _Selected:
        groups = self._by_name.values() if name is None else [self._by_name.get(name, {})]
        return [item for rings in groups for item in rings.items() if match_all(item[0], matchers)]
