"""A program on the embedded engine, in memory of one directory. Says nothing of telemetry or protection."""

import asyncio
import json
import sys
import tempfile

from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.engine.protocol import Fact, Passage


async def main(directory: str) -> dict[str, object]:
    engine = EmbeddedKnowledgeEngine(f"{directory}/k.db")
    ids = await engine.store_facts(
        [Fact("Paris", "capital_of", "France"), Fact("Rome", "capital_of", "Italy")]
    )
    await engine.store_passage(Passage("Paris is the capital of France."))
    found = await engine.find_facts("Paris")
    hits = await engine.search("capital", limit=5)
    near = await engine.neighbours("Rome")
    stats = await engine.stats()
    await engine.aclose()
    return {
        "ids": len(ids),
        "found": [[fact.subject, fact.predicate, fact.object] for fact in found],
        "hits": len(hits),
        "near": len(near),
        "stats": type(stats).__name__,
    }


with tempfile.TemporaryDirectory() as directory:
    json.dump(asyncio.run(main(directory)), sys.stdout, sort_keys=True)
