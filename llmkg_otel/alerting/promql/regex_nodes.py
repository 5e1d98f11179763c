"""What a regular expression is made of, and RE2's named character classes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Alternatives", "Assertion", "CharacterSet", "Node", "Repeat", "Sequence"]

Ranges = tuple[tuple[int, int], ...]
LAST_CODE_POINT = 0x10FFFF


@dataclass(frozen=True, slots=True)
class CharacterSet:
    """One character out of these code point ranges."""

    ranges: Ranges

    def contains(self, code: int) -> bool:
        """Say whether the code point is in the set."""
        return any(low <= code <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class Assertion:
    """An empty match at a place: begin, end, line_begin, line_end, word, not_word."""

    kind: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other; empty matches the empty string."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Any one of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The part at least `low` times, at most `high` (None: no limit)."""

    part: Node
    low: int
    high: int | None


Node = CharacterSet | Assertion | Sequence | Alternatives | Repeat

_DIGIT: Ranges = ((48, 57),)
_SPACE: Ranges = ((9, 10), (12, 13), (32, 32))
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
PERL = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": _DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": _WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
CONTROL = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
PLACES = {"A": "begin", "z": "end", "b": "word", "B": "not_word"}
