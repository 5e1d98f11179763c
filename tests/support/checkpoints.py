"""An engine on disk and a way to save it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from llmkg_otel.config import ProductionConfig
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact
from llmkg_otel.shutdown.checkpoint import Checkpoints
from support.time import Seen, Time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FACTS = [Fact("Paris", "capital_of", "France"), Fact("Rome", "capital_of", "Italy")]


class Saving:
    """Checkpoints of one engine, with the test's clock and what they reported."""

    def __init__(self, engine: Any, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.config = ProductionConfig(checkpoint={"directory": directory, **options})
        self.time, self.seen = Time(), Seen()
        self.checkpoints = Checkpoints(
            self.config, engine, self.seen, clock=self.time.clock, sleep=self.time.sleep
        )


@asynccontextmanager
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedKnowledgeEngine]:
    """An engine with two facts in it."""
    async with EmbeddedKnowledgeEngine(tmp_path / "k.db") as engine:
        await engine.store_facts(FACTS)
        yield engine


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())
