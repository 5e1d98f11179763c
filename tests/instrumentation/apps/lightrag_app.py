"""A program on LightRAG with stub models: `lightrag_app.py sync|async [failures]`.

Knows nothing of llmkg_otel. The model fails as many times as `failures` says, once the documents are in.
"""

import asyncio
import hashlib
import json
import logging
import sys
import tempfile

import numpy as np
from lightrag import LightRAG, QueryParam
from lightrag.utils import EmbeddingFunc, Tokenizer

KNOWLEDGE = {
    "chunks": [{"content": "Paris is the capital of France.", "source_id": "doc-1"}],
    "entities": [
        {
            "entity_name": "Paris",
            "entity_type": "city",
            "description": "Capital of France",
            "source_id": "doc-1",
        },
        {"entity_name": "France", "entity_type": "country", "description": "A country", "source_id": "doc-1"},
    ],
    "relationships": [
        {
            "src_id": "Paris",
            "tgt_id": "France",
            "description": "Paris is the capital of France",
            "keywords": "capital",
            "weight": 1.0,
            "source_id": "doc-1",
        }
    ],
}
failures_left = 0


class Words:
    """One token a word: no vocabulary has to be downloaded."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, content: str) -> list[int]:
        for word in (words := content.split(" ")):
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in words]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(self.words[token] for token in tokens)


async def answer(prompt: str, system_prompt: str | None = None, **_options: object) -> str:
    global failures_left
    if failures_left > 0:
        failures_left -= 1
        raise ConnectionError("the model is not there")
    if "high_level_keywords" in prompt or "high_level_keywords" in (system_prompt or ""):
        return '{"high_level_keywords": ["capital"], "low_level_keywords": ["Paris"]}'
    return f"answer to {prompt[:60]}"


async def embed(texts: list[str]) -> np.ndarray:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return np.array([[byte / 255 for byte in digest] for digest in digests], dtype=np.float32)


def make(directory: str) -> LightRAG:
    return LightRAG(
        working_dir=directory,
        llm_model_func=answer,
        embedding_func=EmbeddingFunc(embedding_dim=32, max_token_size=512, func=embed),
        tokenizer=Tokenizer("words", Words()),
        enable_llm_cache=False,
    )


def fail(times: int) -> None:
    global failures_left
    failures_left = times


async def attempt(ask):
    try:
        return await ask()
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


def attempt_sync(ask):
    try:
        return ask()
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


async def use_async(directory: str, failures: int) -> dict[str, object]:
    rag = make(directory)
    await rag.initialize_storages()
    await rag.ainsert_custom_kg(KNOWLEDGE)
    await rag.acreate_entity("Berlin", {"description": "Capital of Germany", "entity_type": "city"})
    await rag.acreate_entity("Germany", {"description": "A country", "entity_type": "country"})
    await rag.acreate_relation("Berlin", "Germany", {"description": "capital of", "keywords": "capital"})
    inserted = await rag.ainsert("Rome is the capital of Italy.", ids="rome", track_id="t-1")
    graph = await rag.get_knowledge_graph("*")
    data = await rag.aquery_data("What is the capital of France?", QueryParam(mode="local"))
    fail(failures)
    bypass = QueryParam(mode="bypass", stream=False)
    answers = [await attempt(lambda: rag.aquery("What is the capital?", bypass)) for _ in range(4)]
    full = await rag.aquery_llm("What is the capital of France?", QueryParam(mode="local", stream=False))
    await rag.finalize_storages()
    return {
        "answers": answers,
        "inserted": inserted,
        "entities": sorted(entity["entity_name"] for entity in data["data"]["entities"]),
        "status": full["status"],
        "nodes": sorted(node.id for node in graph.nodes),
        "edges": len(graph.edges),
    }


def use_sync(directory: str, failures: int) -> dict[str, object]:
    rag = make(directory)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(rag.initialize_storages())
    rag.insert_custom_kg(KNOWLEDGE)
    rag.create_entity("Berlin", {"description": "Capital of Germany", "entity_type": "city"})
    data = rag.query_data("What is the capital of France?", QueryParam(mode="local"))
    fail(failures)
    bypass = QueryParam(mode="bypass", stream=False)
    answers = [attempt_sync(lambda: rag.query("What is the capital?", bypass)) for _ in range(4)]
    full = rag.query_llm("What is the capital of France?", QueryParam(mode="local", stream=False))
    loop.run_until_complete(rag.finalize_storages())
    return {
        "answers": answers,
        "entities": sorted(entity["entity_name"] for entity in data["data"]["entities"]),
        "status": full["status"],
    }


def main() -> None:
    logging.disable(logging.WARNING)
    mode, failures = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as directory:
        if mode == "async":
            told = asyncio.run(use_async(directory, failures))
        else:
            told = use_sync(directory, failures)
    json.dump(told, sys.stdout, sort_keys=True)


main()
