"""A program on Graphiti with an embedded kuzu and stub models: `graphiti_app.py [failures]`.

Knows nothing of llmkg_otel. The model fails as many times as `failures` says, once an episode is in.
"""

import asyncio
import hashlib
import json
import logging
import os
import sys
import warnings
from datetime import UTC, datetime

os.environ["GRAPHITI_TELEMETRY_ENABLED"] = "false"
warnings.simplefilter("ignore")

from graphiti_core import Graphiti
from graphiti_core.cross_encoder.client import CrossEncoderClient
from graphiti_core.driver.driver import GraphProvider
from graphiti_core.driver.kuzu_driver import KuzuDriver
from graphiti_core.edges import EntityEdge
from graphiti_core.embedder.client import EmbedderClient
from graphiti_core.graph_queries import get_fulltext_indices
from graphiti_core.llm_client.client import LLMClient
from graphiti_core.llm_client.config import LLMConfig
from graphiti_core.nodes import EntityNode, EpisodeType
from graphiti_core.utils.bulk_utils import RawEpisode

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENTITIES = {"extracted_entities": [{"name": name, "entity_type_id": 0} for name in ("Ada", "Acme")]}
EDGES = {
    "edges": [
        {
            "source_entity_name": "Ada",
            "target_entity_name": "Acme",
            "relation_type": "WORKS_AT",
            "fact": "Ada works at Acme",
        }
    ]
}
ANSWERS = {
    "ExtractedEntities": ENTITIES,
    "ExtractedEdges": EDGES,
    "CombinedExtraction": ENTITIES | EDGES,
    "EdgeDuplicate": {"duplicate_facts": [], "contradicted_facts": []},
    "NodeResolutions": {"entity_resolutions": []},
    "SummarizedEntities": {"summaries": []},
    "EntitySummary": {"summary": "somebody"},
    "Summary": {"summary": "people at work"},
    "SummaryDescription": {"description": "people at work"},
    "EdgeTimestamps": {},
    "BatchEdgeTimestamps": {"timestamps": [{}]},
}


class Model(LLMClient):
    failures = 0

    def __init__(self) -> None:
        super().__init__(LLMConfig(api_key="none", model="stub"))

    async def _generate_response(self, _messages, response_model=None, *_args, **_options):
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("the model is not there")
        return ANSWERS.get(response_model.__name__ if response_model else "", {})


class Embedder(EmbedderClient):
    failures = 0

    async def create(self, input_data) -> list[float]:
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("the embedder is not there")
        text = input_data if isinstance(input_data, str) else str(next(iter(input_data)))
        return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()]

    async def create_batch(self, input_data_list: list[str]) -> list[list[float]]:
        return [await self.create(each) for each in input_data_list]


class Ranker(CrossEncoderClient):
    async def rank(self, query: str, passages: list[str]) -> list[tuple[str, float]]:
        return [(passage, 1.0 / (1 + place)) for place, passage in enumerate(sorted(passages))]


async def use(failures: int) -> dict[str, object]:
    driver = KuzuDriver()
    driver._database = ""
    for index in get_fulltext_indices(GraphProvider.KUZU):
        await driver.execute_query(index)
    embedder, model = Embedder(), Model()
    graphiti = Graphiti(llm_client=model, embedder=embedder, cross_encoder=Ranker(), graph_driver=driver)
    added = await graphiti.add_episode("first", "Ada works at Acme.", "a note", NOW, EpisodeType.text)
    bulk = RawEpisode(
        name="second",
        content="Ada works.",
        source_description="n",
        source=EpisodeType.text,
        reference_time=NOW,
    )
    await graphiti.add_episode_bulk([bulk])
    one = EntityNode(name="Bob", group_id="", created_at=NOW)
    two = EntityNode(name="Initech", group_id="", created_at=NOW)
    edge = EntityEdge(
        group_id="",
        source_node_uuid=one.uuid,
        target_node_uuid=two.uuid,
        created_at=NOW,
        name="WORKS_AT",
        fact="Bob works at Initech",
    )
    await graphiti.add_triplet(one, edge, two)
    episodes = await graphiti.retrieve_episodes(datetime.now(UTC), last_n=5)
    communities, _ = await graphiti.build_communities()
    embedder.failures = failures
    found = [await attempt(graphiti.search("Ada works")) for _ in range(4)]
    embedder.failures = 0
    full = await graphiti.search_("Ada works")
    model.failures = 1
    failed = await attempt(graphiti.add_episode("third", "Eve.", "n", NOW, EpisodeType.text))
    await graphiti.remove_episode(added.episode.uuid)
    left = await graphiti.retrieve_episodes(datetime.now(UTC), last_n=5)
    await graphiti.close()
    return {
        "added": sorted(node.name for node in added.nodes),
        "facts": sorted(edge.fact for edge in added.edges),
        "episodes": sorted(episode.name for episode in episodes),
        "communities": len(communities),
        "found": found,
        "nodes": sorted(node.name for node in full.nodes),
        "failed": failed,
        "left": sorted(episode.name for episode in left),
    }


async def attempt(call) -> object:
    try:
        result = await call
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return sorted(edge.fact for edge in result) if isinstance(result, list) else type(result).__name__


logging.disable(logging.ERROR)
json.dump(asyncio.run(use(int(sys.argv[1]) if len(sys.argv) > 1 else 0)), sys.stdout, sort_keys=True)
