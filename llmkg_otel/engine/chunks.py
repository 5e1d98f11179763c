"""Cutting long text into passages: at paragraphs, else sentences, else words."""

from __future__ import annotations

import re

__all__ = ["split_into_passages"]

_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"(?<=[.!?])\s+"), re.compile(r"\s+"))


def split_into_passages(text: str, max_chars: int = 1000) -> list[str]:
    """Return the text in order as passages of at most `max_chars` characters, none empty.

    Neighbouring parts are put together while they fit. A single word longer than that is cut.
    """
    return _split(text.strip(), max_chars, _BREAKS)


def _split(text: str, max_chars: int, breaks: tuple[re.Pattern[str], ...]) -> list[str]:
    if len(text) <= max_chars:
        return [text] if text else []
    if not breaks:
        return [text[start : start + max_chars] for start in range(0, len(text), max_chars)]
    passages: list[str] = []
    for part in breaks[0].split(text):
        for piece in _split(part.strip(), max_chars, breaks[1:]):
            if passages and len(passages[-1]) + 1 + len(piece) <= max_chars:
                passages[-1] += ("\n" if len(breaks) == len(_BREAKS) else " ") + piece
            else:
                passages.append(piece)
    return passages
