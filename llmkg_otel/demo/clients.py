"""The load: MCP clients over streamable HTTP that note each call they made and how it ended.

Every call carries a trace id of its own in `_meta.traceparent`, so that the books can later match
each call with the server's span of it, one to one, and not merely compare totals.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp import MCPError
from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp.types import CallToolResult

    from llmkg_otel.demo.questions import ToolCall
    from llmkg_otel.engine.protocol import Fact

__all__ = ["ENGINE_ERROR", "OK", "UNANSWERED", "CallRecord", "Journal", "Visitor", "drive"]

OK = "ok"
ENGINE_ERROR = "engine_error"
UNANSWERED = "unanswered"
"""No response came: the connection could not be made, or broke. The spans tell whether it arrived."""
UNREADABLE = "unreadable"
"""A tool error without a code: what an agent cannot act on. It never matches the server's books."""

_CALL_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call as its client saw it: `outcome` is ok, an error's code, or unanswered."""

    client: str
    tool: str
    trace_id: str
    outcome: str
    seconds: float


@dataclass(slots=True)
class Journal:
    """What all clients noted. For one event loop; grows by one small record a call."""

    calls: list[CallRecord] = field(default_factory=list)
    acknowledged: list[Fact] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def note(self, record: CallRecord, fact: Fact | None) -> None:
        """Write down a call, and the fact that it stored if it was acknowledged."""
        self.calls.append(record)
        self.outcomes[record.outcome] += 1
        if fact is not None and record.outcome == OK:
            self.acknowledged.append(fact)


@dataclass(frozen=True, slots=True)
class Visitor:
    """One client: its name and bearer token, seconds between calls, and whether it minds `retry_after`."""

    name: str
    token: str
    pace: float
    patient: bool = True


async def drive(
    visitor: Visitor, url: str, calls: Iterator[ToolCall], journal: Journal, stop: asyncio.Event
) -> None:
    """Connect, and make one call after another until `stop`, or until the server is gone.

    One connection, one call in flight. Never raises for a lost server: the journal has the call.
    """
    connected = False
    try:
        async with Client(StreamableHttpTransport(url, auth=visitor.token)) as client:
            connected = True
            await _converse(client, visitor, calls, journal, stop)
    except Exception:  # a session that lost its server fails once more while it closes
        if not connected:
            raise


async def _converse(
    client: Client[Any], visitor: Visitor, calls: Iterator[ToolCall], journal: Journal, stop: asyncio.Event
) -> None:
    spread = random.Random(visitor.name)  # noqa: S311 - spreads the load, guards nothing
    for call in calls:
        record, retry_after = await _call(client, visitor.name, call)
        journal.note(record, call.fact)
        if record.outcome == UNANSWERED:
            return
        wait = visitor.pace * spread.uniform(0.5, 1.5)
        await pause(max(wait, retry_after if visitor.patient else 0.0), stop)
        if stop.is_set():
            return


async def _call(client: Client[Any], name: str, call: ToolCall) -> tuple[CallRecord, float]:
    """Make one call; return its record, and how many seconds the server asked to be left alone."""
    span = _fresh_span()
    begun = time.perf_counter()
    try:
        with trace.use_span(span):
            result = await client.call_tool_mcp(call.tool, dict(call.arguments), timeout=_CALL_TIMEOUT)
        outcome, retry_after = read_result(result)
    except MCPError as error:
        outcome, retry_after = _read_error(error.error.data)
    except Exception:  # noqa: BLE001 - whatever broke, no response came
        outcome, retry_after = UNANSWERED, 0.0
    seconds = time.perf_counter() - begun
    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    return CallRecord(name, call.tool, trace_id, outcome, seconds), retry_after


def _fresh_span() -> trace.Span:
    """Return a sampled remote-like parent with a new trace id; no SDK is needed for it to propagate."""
    trace_id, span_id = random.getrandbits(128) | 1, random.getrandbits(64) | 1
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, is_remote=False, trace_flags=sampled))


def read_result(result: CallToolResult) -> tuple[str, float]:
    """Return a tool result's outcome and its `retry_after` in seconds, from structured content or text."""
    if not result.is_error:
        return OK, 0.0
    texts = [getattr(part, "text", "") for part in result.content]
    for candidate in (result.structured_content, *map(_parsed, texts)):
        outcome, retry_after = _read_error(candidate)
        if outcome != UNANSWERED:
            return outcome, retry_after
    return UNREADABLE, 0.0


def _read_error(data: Any) -> tuple[str, float]:
    """Read {"code", "retry_after_ms"}, also when it is wrapped as {"error": {...}}."""
    if isinstance(data, dict) and isinstance(data.get("error"), dict):
        data = data["error"]
    if not isinstance(data, dict) or not isinstance(data.get("code"), str):
        return UNANSWERED, 0.0
    return data["code"], (data.get("retry_after_ms") or 0) / 1000


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Wait `seconds`, but not past `stop`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
