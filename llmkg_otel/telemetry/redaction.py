"""Whatever a log record holds as plain, bounded data, with its secrets redacted."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkg_otel.telemetry.secret_text import REDACTED, is_secret_name, redact_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["REDACTED", "plain_name", "plain_text", "plain_value"]

DEPTH = 6
"""Containers in containers that are looked into; what is deeper is read as text."""
LONGEST = 32_768
"""Characters of a text that are kept, and of all texts of a value together."""
_LONGEST_SECRET = 4_096
"""Characters looked at after those that are kept: no secret is cut in two and so not known."""
_LONGEST_NAME = 256
_NAMES_OF_ENTRIES = ("name", "key", "Name", "Key", b"name", b"key")
_LEAST = 8
"""Characters that each value counts for, however short: so their number is bounded, too."""
LEFT_OUT = "[left out]"


def plain_text(value: object, *, redact: bool = True, longest: int = LONGEST) -> str:
    """Return a value as text of at most `longest` characters and a note of how many were left out.

    Its secrets are redacted unless `redact` is False. A value that cannot be told is told by its type.
    """
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception as error:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"[{type(value).__name__} without text: {type(error).__name__}]"
    size = len(text)
    if size > longest:
        text = text[: longest + _LONGEST_SECRET]
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()  # no exporter takes lone surrogates
    if redact:
        text = redact_text(text)
    return text if size <= longest else f"{text[:longest]}... [{size - longest} characters left out]"


def plain_value(value: object, *, redact: bool = True) -> Any:
    """Return a value as JSON can have it: texts redacted, and the values of secret names too.

    Numbers, None and booleans stay; what JSON or OTLP does not know, or is too deep, is told as text. What
    is returned shares nothing with the value. Past `LONGEST` characters the rest is left out. With
    `redact` False secrets stay.
    """
    return value if _is_plain(value) else _Walk(redact=redact).plain(value, 0)


def _is_plain(value: object) -> bool:
    """Say whether JSON and OTLP both have this number, boolean or None."""
    if isinstance(value, int):  # and bool
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, float) and math.isfinite(value))


class _Walk:
    """One value's way to plain data, and how many characters it may still have."""

    def __init__(self, *, redact: bool) -> None:
        self._redact = redact
        self._left = LONGEST

    def plain(self, value: object, depth: int) -> Any:
        self._left -= _LEAST
        if _is_plain(value):
            return value
        if depth < DEPTH:
            if isinstance(value, Mapping):
                return dict(self._pairs(value, depth))
            if isinstance(value, list | tuple):
                return list(self._items(value, depth))
        if self._left <= 0:
            return LEFT_OUT
        if isinstance(value, bytes | bytearray):
            value = bytes(value[:LONGEST])
        text = plain_text(value, redact=self._redact, longest=self._left)
        self._left -= len(text)
        return text

    def _pairs(self, value: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
        names_one = self._redact and _names_a_secret(value)
        for key, each in value.items():
            if self._left <= 0:
                yield LEFT_OUT, len(value)
                return
            name, secret = _name(key) if self._redact else (plain_text(key, redact=False), False)
            self._left -= len(name)
            yield name, self._hidden(each, depth, secret=secret or (names_one and name.lower() == "value"))

    def _items(self, values: list[Any] | tuple[Any, ...], depth: int) -> Iterator[Any]:
        """Tell a list; after a flag like `--password`, or the name of a header, stands a secret."""
        secret = False
        for each in values:
            if self._left <= 0:
                yield LEFT_OUT
                return
            yield self._hidden(each, depth, secret=secret)
            secret = (
                self._redact
                and isinstance(each, str | bytes)
                and (len(values) == 2 or each[:1] in ("-", b"-"))
                and _name(each)[1]
            )

    def _hidden(self, value: object, depth: int, *, secret: bool) -> Any:
        """Tell a value, unless it is secret and says more than a flag or None does."""
        if secret and value is not None and not isinstance(value, bool):
            return REDACTED
        return self.plain(value, depth + 1)


def _names_a_secret(entry: Mapping[Any, Any]) -> bool:
    """Say whether a mapping gives the name of a secret, as an entry of a container's environment does."""
    return any(
        isinstance(name, str | bytes) and _name(name)[1]
        for key, name in entry.items()
        if key in _NAMES_OF_ENTRIES
    )


def plain_name(name: str) -> str:
    """Return the name of a logger or an attribute, with its secrets redacted; told quickly again."""
    return _name(name)[0]


def _name(key: object) -> tuple[str, bool]:
    """Return a name, redacted too, and whether what stands under it is a secret."""
    text = (
        key.decode("latin-1") if isinstance(key, bytes) else key if isinstance(key, str) else plain_text(key)
    )
    return _known_name(text) if len(text) <= _LONGEST_NAME else _judged_name(text)


def _judged_name(name: str) -> tuple[str, bool]:
    told = plain_text(name, longest=_LONGEST_NAME)
    return told, is_secret_name(told)


_known_name = functools.lru_cache(maxsize=1024)(_judged_name)
