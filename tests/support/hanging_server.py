"""`llmkg-otel serve` on an engine of which one method hangs: `python hanging_server.py METHOD HOW OPTIONS`.

HOW is "waits", for what never comes, "blocks" the event loop, or "dawdles" for a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from llmkg_otel import EmbeddedKnowledgeEngine
from llmkg_otel.cli import main


async def waits(*_arguments: Any, **_named: Any) -> None:
    await asyncio.Event().wait()


async def blocks(*_arguments: Any, **_named: Any) -> None:
    time.sleep(600)  # noqa: ASYNC251


async def dawdles(*_arguments: Any, **_named: Any) -> list[Any]:
    await asyncio.sleep(1)
    return []


if __name__ == "__main__":
    _, method, how, *options = sys.argv
    setattr(EmbeddedKnowledgeEngine, method, globals()[how])
    sys.exit(main(options))
