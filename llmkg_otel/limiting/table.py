"""Floats and times by 64-bit keys, in less memory than a dictionary: what limits keep of each user."""

from __future__ import annotations

from array import array

__all__ = ["CallTable", "FloatTable"]

FEW = 1 << 15
"""Keys up to here are in the dictionary: four times the memory, and several times as fast."""
_SHARDS = 1 << 14


class FloatTable(dict[int, float]):
    """A float for each key, 0.0 for those without. Read with `table[key]`, write with `put`. Not locked.

    The first `FEW` keys are the dictionary's; the others take 16 bytes each and a fifth around it: a
    dictionary of a million takes 98 MB, this 24 (`python benchmarks/limiting.py`). Keys are signed 64-bit
    integers, evenly spread: hashes. A shard is two arrays side by side, the keys' bytes and the floats,
    so a look-up is one search through bytes in C, and growth moves one shard at most.
    """

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        super().__init__()
        self._shards: list[tuple[bytearray, array[float]] | None] | None = None

    def __missing__(self, key: int) -> float:
        if self._shards is None or (shard := self._shards[key & (_SHARDS - 1)]) is None:
            return 0.0
        at = _find(shard[0], key)
        return shard[1][at >> 3] if at >= 0 else 0.0

    def put(self, key: int, value: float) -> None:
        """Keep a key's float."""
        if len(self) < FEW or key in self:
            self[key] = value
            return
        if self._shards is None:
            self._shards = [None] * _SHARDS
        shard = self._shards[key & (_SHARDS - 1)]
        if shard is None:
            shard = self._shards[key & (_SHARDS - 1)] = (bytearray(), array("d"))
        keys, floats = shard
        if (at := _find(keys, key)) >= 0:
            floats[at >> 3] = value
        else:
            keys += key.to_bytes(8, "little", signed=True)
            floats.append(value)

    def size(self) -> int:
        """Return how many keys there are; `len` counts the dictionary's."""
        return len(self) + sum(len(shard[1]) for shard in self._shards or () if shard is not None)


class CallTable:
    """The calls of each key in the last period, at 18 bytes each: their times alone. Not locked.

    A shard is a log, the oldest call first: two arrays side by side, the keys' bytes and the times. So a
    key's calls are found by a search through bytes in C, and those that no longer count leave at the
    front. Each reading clears one more shard, so that what nobody asks for again leaves as well. Keys are
    as FloatTable's.
    """

    __slots__ = ("_cleared", "_period", "_shards")

    def __init__(self, period: float) -> None:
        self._period = period
        self._shards: list[tuple[bytearray, array[float]] | None] | None = None
        self._cleared = 0

    def times(self, key: int, now: float) -> list[float]:
        """Return when the key's calls of the last period were, the oldest first."""
        if self._shards is None:
            return []
        self._cleared = (self._cleared + 1) % _SHARDS
        self._clear(self._shards[self._cleared], now)
        shard = self._shards[key & (_SHARDS - 1)]
        self._clear(shard, now)
        if shard is None:
            return []
        return [
            at
            for at in (shard[1][found >> 3] for found in _find_all(shard[0], key))
            if at + self._period > now
        ]

    def add(self, key: int, now: float, calls: int) -> None:
        """Keep calls of a key."""
        if self._shards is None:
            self._shards = [None] * _SHARDS
        shard = self._shards[key & (_SHARDS - 1)]
        if shard is None:
            shard = self._shards[key & (_SHARDS - 1)] = (bytearray(), array("d"))
        for _ in range(calls):
            shard[0].extend(key.to_bytes(8, "little", signed=True))
            shard[1].append(now)

    def forget(self, key: int, calls: int) -> None:
        """Drop the key's newest calls, so many."""
        shard = None if self._shards is None else self._shards[key & (_SHARDS - 1)]
        if shard is None or not calls:
            return
        for at in reversed(_find_all(shard[0], key)[-calls:]):
            del shard[0][at : at + 8], shard[1][at >> 3]

    def size(self) -> int:
        """Return how many calls are kept."""
        return sum(len(shard[1]) for shard in self._shards or () if shard is not None)

    def _clear(self, shard: tuple[bytearray, array[float]] | None, now: float) -> None:
        if shard is None:
            return
        keys, times = shard
        gone = 0
        while gone < len(times) and times[gone] + self._period <= now:
            gone += 1
        if gone:
            del keys[: gone << 3], times[:gone]


def _find_all(keys: bytearray, key: int) -> list[int]:
    found, at = [], _find(keys, key)
    while at >= 0:
        found.append(at)
        at = _find(keys, key, at + 8)
    return found


def _find(keys: bytearray, key: int, start: int = 0) -> int:
    tag = key.to_bytes(8, "little", signed=True)
    at = keys.find(tag, start)
    while at > 0 and at & 7:  # the end of one key and the start of the next
        at = keys.find(tag, at + 1)
    return at
