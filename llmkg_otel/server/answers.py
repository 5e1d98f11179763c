"""What a tool answers when the engine cannot: the same tool with other arguments, or an answer of before."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache
from pydantic_core import to_json

from llmkg_otel.errors import ConfigurationError
from llmkg_otel.server.caller import is_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastmcp.tools.base import ToolResult

    from llmkg_otel.config import ProductionConfig

__all__ = ["CACHED_ANSWER", "Answers", "size_of"]

CACHED_ANSWER = "cached_answer"
CACHE_BYTES = 32 * 1024 * 1024
"""Answers kept, in bytes, with what Python needs around their JSON; those used longest ago go first."""

ENTRY_BYTES = 2000
"""An answer of one short text was measured to take this."""


def size_of(*parts: object) -> int:
    """Return how many bytes the parts have as JSON."""
    return sum(len(to_json(part)) for part in parts if part)


class Answers:
    """The fallback ladders of tools, and the answers they have given. Belongs to one event loop.

    Answers are kept for `cached_answer_seconds`, only for tools whose ladder has `cached_answer`, and
    are given to the caller who got them, for the same arguments, and to nobody else. `rungs` has the
    other rungs: for each tool, by the rung's name, the arguments that it changes. Raises
    ConfigurationError for a rung that a tool does not have.
    """

    def __init__(
        self, config: ProductionConfig, rungs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    ) -> None:
        self._ladders = {tool: operation.fallbacks for tool, operation in config.operations.items()}
        self._rungs = rungs
        self._cache: TTLCache[bytes, ToolResult] = TTLCache(
            CACHE_BYTES,
            config.server.cached_answer_seconds,
            getsizeof=lambda answer: size_of(answer.content, answer.structured_content) + ENTRY_BYTES,
        )
        for tool, ladder in self._ladders.items():
            known = [*rungs.get(tool, ()), CACHED_ANSWER]
            for rung in ladder:
                if rung not in known:
                    raise ConfigurationError(
                        f"operations.{tool}.fallbacks = {rung!r}: should be one of {', '.join(known)}"
                    )

    def ladder(self, tool: str, user: str | None) -> tuple[str, ...]:
        """Return the names of a tool's rungs for this caller, in order.

        Whoever is known by address alone gets no cached answer: behind one address may be many.
        """
        ladder = self._ladders.get(tool, ())
        if user is not None and is_address(user):
            return tuple(rung for rung in ladder if rung != CACHED_ANSWER)
        return ladder

    def arguments(self, tool: str, rung: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the arguments that a rung calls the tool with."""
        return {**(given or {}), **self._rungs[tool][rung]}

    def keep(self, tool: str, user: str | None, given: object, answer: ToolResult) -> None:
        """Keep an answer if the tool's ladder may need it; an error, or one that is too large, is not."""
        if CACHED_ANSWER not in self.ladder(tool, user) or answer.is_error:
            return
        with suppress(ValueError):  # larger than the whole cache
            self._cache[_key(tool, user, given)] = answer

    def kept(self, tool: str, user: str | None, given: object) -> ToolResult:
        """Return the kept answer; raise LookupError if there is none, or none that is new enough."""
        return self._cache[_key(tool, user, given)]


def _key(tool: str, user: str | None, given: object) -> bytes:
    return hashlib.sha256(to_json((tool, user, given))).digest()
