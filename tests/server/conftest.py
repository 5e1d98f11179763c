from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.servers import Servers

from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    running = Servers(tmp_path)
    yield running
    running.kill_remaining()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedKnowledgeEngine]:
    engine = EmbeddedKnowledgeEngine(tmp_path / "k.db")
    yield engine
    await engine.aclose()
