"""Floats by 64-bit keys, in a quarter of a dictionary's memory: what limits remember of each user."""

from __future__ import annotations

from array import array

__all__ = ["FloatTable"]

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


def _find(keys: bytearray, key: int) -> int:
    tag = key.to_bytes(8, "little", signed=True)
    at = keys.find(tag)
    while at > 0 and at & 7:  # the end of one key and the start of the next
        at = keys.find(tag, at + 1)
    return at
