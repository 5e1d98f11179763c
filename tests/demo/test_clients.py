from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from contextlib import asynccontextmanager, closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from mcp.types import CallToolResult, TextContent

from llmkg_otel.demo.clients import OK, UNANSWERED, UNREADABLE, Journal, Visitor, drive, pause, read_result
from llmkg_otel.demo.questions import TOOLS, ToolCall, tool_calls
from llmkg_otel.engine.protocol import Fact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FACTS = [Fact("France", "has_capital", "Paris"), Fact("Lowell Field (00AK)", "serves_city", "Anchor Point")]
REFUSAL = {"code": "rate_limited", "retry_after_ms": 250}
VISITOR = Visitor("visitor", "token", pace=0.0)


def refused(structured: dict[str, Any] | None, text: str) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=structured, is_error=True
    )


def a_server(traceparents: list[str]) -> FastMCP:
    mcp = FastMCP("stand-in")

    @mcp.tool
    async def store_fact(subject: str, context: Context) -> str:
        meta = context.request_context.meta if context.request_context else None
        traceparents.append(dict(meta or {}).get("traceparent", ""))
        if subject == "refused":
            raise ToolError(json.dumps(REFUSAL))
        return "stored"

    return mcp


@asynccontextmanager
async def serving(mcp: FastMCP) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(mcp.http_app(), log_level="error", ws="none"))
    with closing(listener):
        task = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        server.should_exit = True
        await task


def test_the_mix_is_the_same_for_the_same_client_and_seed() -> None:
    first = list(islice(tool_calls(FACTS, "a", 1), 50))
    assert first == list(islice(tool_calls(FACTS, "a", 1), 50))
    assert first != list(islice(tool_calls(FACTS, "b", 1), 50))


def test_the_mix_has_every_tool_about_as_often_as_its_share() -> None:
    counts = Counter(call.tool for call in islice(tool_calls(FACTS, "a", 1), 2000))
    assert set(counts) == set(TOOLS)
    assert sum(TOOLS.values()) == 100
    assert all(abs(counts[tool] / 20 - share) < 5 for tool, share in TOOLS.items())


def test_no_two_calls_store_the_same_fact_and_only_store_fact_stores_one() -> None:
    calls = [call for name in "ab" for call in islice(tool_calls(FACTS, name, 1), 500)]
    stored = [call.fact for call in calls if call.fact is not None]
    assert len(set(stored)) == len(stored) == sum(call.tool == "store_fact" for call in calls)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (CallToolResult(content=[]), (OK, 0.0)),
        (refused(REFUSAL, "Rate limited"), ("rate_limited", 0.25)),
        (refused({"error": REFUSAL}, ""), ("rate_limited", 0.25)),
        (refused(None, json.dumps(REFUSAL)), ("rate_limited", 0.25)),
        (refused(None, json.dumps(REFUSAL | {"retry_after_ms": None})), ("rate_limited", 0.0)),
        (refused(None, "Traceback ..."), (UNREADABLE, 0.0)),
        (refused({"code": 7}, "[]"), (UNREADABLE, 0.0)),
    ],
)
def test_an_outcome_is_read_from_structured_content_or_from_json_text(
    result: CallToolResult, expected: tuple[str, float]
) -> None:
    assert read_result(result) == expected


async def test_a_client_notes_each_call_its_outcome_and_each_acknowledged_fact() -> None:
    journal, seen = Journal(), list[str]()
    kept, lost = Fact("kept", "visited", "France"), Fact("refused", "visited", "France")
    calls = [ToolCall("store_fact", {"subject": fact.subject}, fact) for fact in (kept, lost)]
    async with serving(a_server(seen)) as url:
        await drive(VISITOR, url, iter(calls), journal, asyncio.Event())
    assert journal.outcomes == {OK: 1, "rate_limited": 1}
    assert journal.acknowledged == [kept]
    assert all(record.seconds > 0 for record in journal.calls)


async def test_every_call_reaches_the_server_with_its_own_trace_id() -> None:
    journal, seen = Journal(), list[str]()
    calls = [ToolCall("store_fact", {"subject": "x"})] * 3
    async with serving(a_server(seen)) as url:
        await drive(VISITOR, url, iter(calls), journal, asyncio.Event())
    assert [header.split("-")[1] for header in seen] == [record.trace_id for record in journal.calls]
    assert len(set(seen)) == 3
    assert all(header.endswith("-01") for header in seen)


async def test_a_client_stops_when_told_and_its_last_call_is_noted() -> None:
    journal, stop = Journal(), asyncio.Event()
    stop.set()
    async with serving(a_server([])) as url:
        await drive(VISITOR, url, iter([ToolCall("store_fact", {"subject": "x"})] * 9), journal, stop)
    assert journal.outcomes == {OK: 1}


async def test_a_client_that_loses_its_server_notes_an_unanswered_call_and_ends() -> None:
    journal, seen = Journal(), list[str]()

    busy = asyncio.Event()
    async with serving(a_server(seen)) as url:
        task = asyncio.create_task(
            drive(Visitor("v", "t", pace=0.01), url, _endless(busy), journal, asyncio.Event())
        )
        await busy.wait()
    await asyncio.wait_for(task, 10)
    assert journal.calls[-1].outcome == UNANSWERED
    assert journal.outcomes[UNANSWERED] == 1


async def test_a_client_that_never_connected_raises() -> None:
    with pytest.raises(RuntimeError, match="connect"):
        await drive(VISITOR, "http://127.0.0.1:9/mcp", _endless(asyncio.Event()), Journal(), asyncio.Event())


async def test_a_pause_ends_at_once_when_told_to_stop() -> None:
    stop = asyncio.Event()
    stop.set()
    await asyncio.wait_for(pause(3600, stop), 5)


def _endless(busy: asyncio.Event) -> Iterator[ToolCall]:
    """Yield calls for ever; set `busy` once the first has come back."""
    yield ToolCall("store_fact", {"subject": "x"})
    busy.set()
    while True:
        yield ToolCall("store_fact", {"subject": "x"})
