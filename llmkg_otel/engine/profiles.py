"""Which methods of which engines are worth a span: plain data, for engines that users already have."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROFILES", "Profile"]


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine class: where it lives, its `db.system.name`, and the methods that are operations.

    `module` is imported only by the program itself: an engine that is not installed costs nothing.
    All methods named are async.
    """

    module: str
    class_name: str
    system: str
    methods: tuple[str, ...]


PROFILES = (
    Profile(
        "llmkg_otel.engine.embedded",
        "EmbeddedKnowledgeEngine",
        "sqlite",
        ("store_facts", "store_passage", "find_facts", "search", "neighbours", "stats", "backup"),
    ),
)
