"""What the demo's clients ask: a seeded mix of tool calls about facts that are really there."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkg_otel.engine.protocol import Fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["TOOLS", "ToolCall", "tool_calls"]

TOOLS = {
    "find_facts": 40,
    "ask_question": 20,
    "explore_connections": 12,
    "store_fact": 12,
    "hybrid_search": 8,
    "store_knowledge": 4,
    "get_stats": 4,
}
"""The tools driven, with their share in a hundred calls."""

_QUESTIONS = {
    "has_capital": "What is the capital of {}?",
    "uses_currency": "Which currency is used in {}?",
    "speaks_language": "Which language is spoken in {}?",
    "borders": "Which countries border {}?",
    "located_in": "In which country is {}?",
    "serves_city": "Which city does {} serve?",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call to make; once it was acknowledged the engine must hold its `fact`, if it has one."""

    tool: str
    arguments: Mapping[str, Any]
    fact: Fact | None = None


def tool_calls(facts: Sequence[Fact], client: str, seed: int) -> Iterator[ToolCall]:
    """Yield calls for ever: the same ones for the same facts, client and seed.

    A predicate is drawn first, then one of its facts: countries are asked about as well as the far more
    numerous airports. Stored facts name the client and a number, so that no two calls store the same one.
    """
    kinds: dict[str, list[Fact]] = {}
    for fact in facts:
        kinds.setdefault(fact.predicate, []).append(fact)
    predicates = sorted(kinds)
    draw = random.Random(f"{seed}:{client}")  # noqa: S311 - a load, not a secret
    tools, shares = list(TOOLS), list(TOOLS.values())
    number = 0
    while True:
        number += 1
        (tool,) = draw.choices(tools, shares)
        fact = draw.choice(kinds[draw.choice(predicates)])
        yield _call(tool, fact, f"{client} on trip {number}")


def _call(tool: str, fact: Fact, traveller: str) -> ToolCall:
    subject = fact.subject
    question = _QUESTIONS.get(fact.predicate, "What is known about {}?").format(subject)
    visit = Fact(traveller, "visited", subject, 0.9)
    said = f"{subject} {fact.predicate.replace('_', ' ')} {fact.object}"
    arguments: dict[str, dict[str, Any]] = {
        "find_facts": {"subject": subject, "predicate": fact.predicate, "limit": 20},
        "ask_question": {"question": question, "limit": 5},
        "explore_connections": {"entity": subject, "max_hops": 1, "limit": 50},
        "hybrid_search": {"query": f"{subject} {fact.object}", "limit": 5},
        "store_fact": {"subject": visit.subject, "predicate": visit.predicate, "object": visit.object}
        | {"confidence": visit.confidence},
        "store_knowledge": {"text": f"{traveller} saw: {said}.", "title": traveller, "source": "demo"},
        "get_stats": {},
    }
    return ToolCall(tool, arguments[tool], visit if tool == "store_fact" else None)
