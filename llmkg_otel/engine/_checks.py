"""What may be stored and asked: each refusal names the field, the value and what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from llmkg_otel.engine.protocol import Fact, Passage, SearchMode
from llmkg_otel.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "checked_facts",
    "checked_mode",
    "checked_number",
    "checked_option",
    "checked_passage",
    "checked_query",
    "checked_text",
]


def _refusal(field: str, value: object, allowed: str) -> InvalidInputError:
    shown = repr(value)
    return InvalidInputError(
        f"{field} is {shown if len(shown) <= 60 else shown[:57] + '...'}: must be {allowed}"
    )


def checked_text(field: str, value: Any, *, blank: bool = False) -> str:
    """Return text that SQLite can store and give back unchanged."""
    if not isinstance(value, str) or not (blank or value.strip()):
        raise _refusal(field, value, "text" if blank else "text that is not blank")
    if "\0" in value or not _encodable(value):
        raise _refusal(field, value, "text without NUL characters and lone surrogates")
    return value


def _encodable(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_number(field: str, value: Any, low: int, high: int, kind: type[int | float] = int) -> None:
    """Refuse what is not a number of this kind in [low, high]; NaN is in no range."""
    if not isinstance(value, int | kind) or isinstance(value, bool) or not low <= value <= high:
        raise _refusal(
            field, value, f"{'a whole number' if kind is int else 'a number'} from {low} to {high}"
        )


def checked_option(field: str, value: Any, high: int) -> int:
    """Return a constructor's whole number from 1 to `high`."""
    if not isinstance(value, int) or not 1 <= value <= high:
        raise ConfigurationError(f"{field} is {value!r}: must be a whole number from 1 to {high}")
    return value


def checked_query(query: Any) -> None:
    """Refuse a query that is not text; any text will do."""
    if not isinstance(query, str):
        raise _refusal("query", query, "text")


def checked_mode(mode: Any) -> None:
    """Refuse a search mode that does not exist."""
    if mode not in get_args(SearchMode):
        raise _refusal("mode", mode, f"one of {', '.join(get_args(SearchMode))}")


def checked_facts(facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts as a list of their own, or refuse the first malformed one."""
    checked = list(facts)
    for position, fact in enumerate(checked):
        field = f"facts[{position}]"
        if not isinstance(fact, Fact):
            raise _refusal(field, fact, "a Fact")
        checked_text(f"{field}.subject", fact.subject)
        checked_text(f"{field}.predicate", fact.predicate)
        checked_text(f"{field}.object", fact.object)
        checked_number(f"{field}.confidence", fact.confidence, 0, 1, float)
    return checked


def checked_passage(passage: Passage) -> Passage:
    """Return the passage, or refuse it."""
    if not isinstance(passage, Passage):
        raise _refusal("passage", passage, "a Passage")
    checked_text("passage.text", passage.text)
    checked_text("passage.title", passage.title, blank=True)
    checked_text("passage.source", passage.source, blank=True)
    return passage
