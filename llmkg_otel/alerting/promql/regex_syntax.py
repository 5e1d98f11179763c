r"""RE2's regular-expression syntax, read into a small tree.

Python's `re` is neither RE2 nor bounded in time, and the two disagree on `$`, `\d`, flags inside a
group and possessive quantifiers. Source: Go's `regexp/syntax` documentation and `parse.go`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from llmkg_otel.alerting.promql.regex_nodes import (
    CONTROL,
    LAST_CODE_POINT,
    PERL,
    PLACES,
    POSIX,
    Alternatives,
    Assertion,
    CharacterSet,
    Node,
    Ranges,
    Repeat,
    Sequence,
)
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["parse_regex"]

_MAX_REPEAT = 1000  # Go's own limit
_MAX_DEPTH = 200


def parse_regex(pattern: str) -> Node:
    r"""Return the tree of a pattern; raise ConfigurationError with the reason when RE2 would refuse it.

    Unicode classes (`\p{L}`), ungreedy mode and case-insensitive characters beyond ASCII are refused
    as not supported, never approximated.
    """
    reader = _Reader(pattern)
    node = reader.alternatives("s", 0)
    if reader.rest():
        reader.fail("unexpected )")
    return node


def _complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    result, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            result.append((start, low - 1))
        start = max(start, high + 1)
    return tuple(result) if start > LAST_CODE_POINT else (*result, (start, LAST_CODE_POINT))


class _Reader:
    """A recursive descent over one pattern; `flags` holds the letters of i, m and s that are on."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def fail(self, reason: str) -> NoReturn:
        raise ConfigurationError(f"regular expression {self.pattern!r}: {reason}")

    def rest(self) -> str:
        return self.pattern[self.at :]

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        found = self.peek(text)
        self.at += len(text) if found else 0
        return found

    def next(self) -> str:
        if self.at >= len(self.pattern):
            self.fail("it ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self, flags: str, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            self.fail(f"nested more than {_MAX_DEPTH} deep")
        branches, parts = [], list[Node]()
        while self.at < len(self.pattern) and not self.peek(")"):
            if self.take("|"):
                branches.append(Sequence(tuple(parts)))
                parts = []
            elif (switched := self.flag_switch(flags)) is not None:
                flags = switched  # holds to the end of the group, alternatives included
            else:
                parts.extend(self.literal(flags) or (self.repeated(self.atom(flags, depth)),))
        branches.append(Sequence(tuple(parts)))
        return branches[0] if len(branches) == 1 else Alternatives(tuple(branches))

    def literal(self, flags: str) -> list[Node]:
        if not self.take("\\Q"):
            return []
        text, _, _ = self.rest().partition("\\E")
        self.at += len(text)
        ended = self.take("\\E")
        parts: list[Node] = [self.folded(((ord(char), ord(char)),), flags) for char in text]
        if parts and ended:
            parts[-1] = self.repeated(parts[-1])
        return parts or [Sequence(())]

    def flag_switch(self, flags: str) -> str | None:
        """Read `(?i)` and the like; None when there is none here."""
        end = self.pattern.find(")", self.at)
        if not self.peek("(?") or end < 0 or not set(self.pattern[self.at + 2 : end]) <= set("imsU-"):
            return None
        self.at, text = end + 1, self.pattern[self.at + 2 : end]
        return self.changed(flags, text)

    def changed(self, flags: str, text: str) -> str:
        on, minus, off = text.partition("-")
        if "U" in text or "-" in off or not (on or off) or (minus and not off):
            self.fail(f"flags (?{text}) are not supported")
        return "".join(sorted((set(flags) | set(on)) - set(off)))

    def atom(self, flags: str, depth: int) -> Node:
        char = self.next()
        if char == "(":
            return self.group(flags, depth)
        if char == "[":
            return CharacterSet(self.bracket(flags))
        if char == "\\":
            return self.escape(flags)
        if char == ".":
            return CharacterSet(((0, LAST_CODE_POINT),) if "s" in flags else _complement(((10, 10),)))
        if char in "^$":
            return Assertion(("line_" if "m" in flags else "") + ("begin" if char == "^" else "end"))
        if char in "*+?" or (char == "{" and self.counts()):
            self.fail(f"nothing to repeat before {char}")
        return self.folded(((ord(char), ord(char)),), flags)

    def group(self, flags: str, depth: int) -> Node:
        if self.take("?"):
            if self.take("P<") or (self.peek("<") and not self.peek("<=") and not self.peek("<!")):
                self.take("<")
                name, closed, _ = self.rest().partition(">")
                if not closed or not name.isidentifier():
                    self.fail("a group's name is malformed")
                self.at += len(name) + 1
            else:
                text, colon, _ = self.rest().partition(":")
                if not colon or not set(text) <= set("imsU-"):
                    self.fail(f"(?{self.rest()[:1]} is not supported")
                self.at += len(text) + 1
                flags = self.changed(flags, text) if text else flags
        node = self.alternatives(flags, depth + 1)
        if not self.take(")"):
            self.fail("missing )")
        return node

    def repeated(self, node: Node) -> Node:
        bounds = self.quantifier()
        if bounds is None:
            return node
        self.take("?")  # lazy or greedy: the same strings match
        if self.quantifier() is not None:
            self.fail("a repetition of a repetition")
        return Repeat(node, *bounds)

    def quantifier(self) -> tuple[int, int | None] | None:
        for text, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(text):
                return bounds
        inner, closed, _ = self.rest()[1:].partition("}")
        low, comma, high = inner.partition(",")
        if not self.peek("{") or not closed or not low.isdecimal() or not (high.isdecimal() or high == ""):
            return None  # a brace that is no count is a literal
        self.at += len(inner) + 2
        least, most = int(low), int(high) if high else None if comma else int(low)
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and most < least):
            self.fail(f"the repeat count {{{inner}}} is out of range")
        return least, most

    def counts(self) -> bool:
        """Say whether the brace just read begins a repeat count."""
        self.at -= 1
        counted = self.quantifier() is not None
        self.at += 0 if counted else 1
        return counted

    def escape(self, flags: str) -> Node:
        char = self.next()
        if char in PLACES:
            return Assertion(PLACES[char])
        if char.lower() in PERL:
            return CharacterSet(self.perl(char, flags))
        code = self.code_point(char)
        return self.folded(((code, code),), flags)

    def perl(self, char: str, flags: str) -> Ranges:
        ranges = self.folded(PERL[char.lower()], flags).ranges
        return _complement(ranges) if char.isupper() else ranges

    def code_point(self, char: str) -> int:
        if char in CONTROL:
            return CONTROL[char]
        if char == "x":
            return self.hexadecimal()
        if char in "01234567":
            digits = char
            while len(digits) < 3 and self.rest()[:1] and self.rest()[0] in "01234567":
                digits += self.next()
            if digits[0] == "0" or len(digits) > 1:
                return int(digits, 8)
        if char.isalnum() or ord(char) > 127:
            self.fail(f"\\{char} is not supported")
        return ord(char)

    def hexadecimal(self) -> int:
        if self.take("{"):
            digits, closed, _ = self.rest().partition("}")
            self.at += len(digits) + 1
        else:
            digits, closed = self.next() + self.next(), "}"
        if not closed or not digits or not set(digits.lower()) <= set("0123456789abcdef"):
            self.fail("a malformed \\x")
        if int(digits, 16) > LAST_CODE_POINT:
            self.fail("a \\x beyond Unicode")
        return int(digits, 16)

    def bracket(self, flags: str) -> Ranges:
        negated, ranges, first = self.take("^"), list[tuple[int, int]](), True
        while first or not self.peek("]"):
            ranges.extend(self.bracket_item(flags))
            first = False
        self.next()
        return _complement(ranges) if negated else tuple(ranges)

    def bracket_item(self, flags: str) -> Ranges:
        if self.take("[:"):
            name, closed, _ = self.rest().partition(":]")
            ranges = POSIX.get(name.removeprefix("^"))
            if not closed or ranges is None:
                self.fail(f"no class [:{name}:]")
            self.at += len(name) + 2
            kept = self.folded(ranges, flags).ranges
            return _complement(kept) if name.startswith("^") else kept
        char = self.next()
        if char == "\\":
            char = self.next()
            if char.lower() in PERL:
                return self.perl(char, flags)
            low = self.code_point(char)
        else:
            low = ord(char)
        high = low
        if self.peek("-") and not self.peek("-]"):
            self.next()
            char = self.next()
            high = self.code_point(self.next()) if char == "\\" else ord(char)
        if high < low:
            self.fail("a class range is out of order")
        return self.folded(((low, high),), flags).ranges

    def folded(self, ranges: Ranges, flags: str) -> CharacterSet:
        """Add the other case of each ASCII letter, and the two characters that fold to k and s."""
        if "i" not in flags:
            return CharacterSet(ranges)
        if any(high > 127 for _, high in ranges):
            self.fail("case-insensitive matching beyond ASCII is not supported")
        letters = [chr(code) for low, high in ranges for code in range(low, high + 1) if chr(code).isalpha()]
        extra = [(ord(char.swapcase()), ord(char.swapcase())) for char in letters]
        extra += [
            (code, code) for char in letters for code in {"k": [0x212A], "s": [0x17F]}.get(char.lower(), [])
        ]
        return CharacterSet((*ranges, *extra))
