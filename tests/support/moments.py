"""A server under load, ended by a signal at some moment, and what must be true afterwards."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmkg_otel.config import ProductionConfig
from llmkg_otel.demo.books import Books, balance, is_tool_call
from llmkg_otel.demo.clients import Journal, Visitor, drive
from llmkg_otel.demo.facts import country_facts
from llmkg_otel.demo.questions import tool_calls
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.shutdown.budget import shutdown_deadline
from llmkg_otel.shutdown.manifest import CheckpointError, checkpoints_in, verify
from llmkg_otel.telemetry import semconv
from llmkg_otel.testing import OtlpReceiver
from support.servers import DEADLINE_SECONDS, Servers

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from llmkg_otel.demo.questions import ToolCall
    from llmkg_otel.engine.protocol import Fact
    from llmkg_otel.testing.records import Attributes, Point
    from support.servers import RunningServer

SHUTDOWN = {"lame_duck_seconds": 0.2, "graceful_timeout_seconds": 5, "termination_grace_period_seconds": 15}
DEADLINE = shutdown_deadline(ProductionConfig(shutdown=SHUTDOWN))
CLIENTS = 4
ENVIRONMENT = {
    **{f"LLMKG_SHUTDOWN__{name.upper()}": str(value) for name, value in SHUTDOWN.items()},
    "LLMKG_CHECKPOINT__INTERVAL_SECONDS": "0.2",
    "LLMKG_RESOURCES__MAX_CPU_PERCENT": "100",
    "LLMKG_RATE_LIMITING__ENABLED": "false",
    "OTEL_BSP_SCHEDULE_DELAY": "500",
    "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
}


@dataclass
class Ended:
    """What is left of one server: how it went, who had called, and what its exporter had sent."""

    status: int
    seconds: float
    calls: Journal
    books: Books
    report: dict[str, Any] | None
    counted: dict[str, float]


@dataclass
class Lane:
    """One engine file, whose servers are started and ended one after the other."""

    directory: Path
    draw: random.Random
    acknowledged: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.servers = Servers(self.directory)
        self.facts = list(islice(country_facts(), 2000))

    @property
    def saved(self) -> Path:
        return self.directory / "saved"

    async def end_by(self, number: signal.Signals) -> Ended:
        """Start a server, load it, and send it the signal at a random moment of that."""
        with OtlpReceiver(max_records=100_000, keep=is_tool_call) as receiver:
            saving = {"LLMKG_CHECKPOINT__DIRECTORY": str(self.saved)}
            server = await asyncio.to_thread(
                self.servers.start, env=ENVIRONMENT | saving | receiver.environment()
            )
            journal, status, seconds = await self._load_and_end(server, number)
            self.acknowledged += journal.acknowledged
            durations = receiver.metric(semconv.OPERATION_DURATION.name)
            books = balance(journal.calls, durations, receiver.spans(), missing=await self.missing())
            counted = _by_outcome(receiver.metric(semconv.SHUTDOWN_OPERATIONS.name))
        graceful = number is signal.SIGTERM
        return Ended(status, seconds, journal, books, server.report() if graceful else None, counted)

    async def _load_and_end(
        self, server: RunningServer, number: signal.Signals
    ) -> tuple[Journal, int, float]:
        journal, stop = Journal(), asyncio.Event()
        clients = [
            asyncio.create_task(drive(visitor, server.mcp_url, calls, journal, stop))
            for visitor, calls in self._visitors()
        ]
        while len(journal.calls) < CLIENTS:  # noqa: ASYNC110 - the journal has no event to wait for
            await asyncio.sleep(0.01)
        await asyncio.sleep(self.draw.uniform(0, 0.6))
        server.process.send_signal(number)
        began = time.monotonic()
        status = await asyncio.to_thread(server.process.wait, DEADLINE_SECONDS)
        seconds = time.monotonic() - began
        stop.set()
        await asyncio.gather(*clients)
        return journal, status, seconds

    def _visitors(self) -> Iterator[tuple[Visitor, Iterator[ToolCall]]]:
        for _ in range(CLIENTS):
            name = f"visitor-{self.draw.getrandbits(32)}"
            yield Visitor(name, "unused", pace=0), self._calls(name)

    def _calls(self, name: str) -> Iterator[ToolCall]:
        """Half reads of all kinds, half writes."""
        for call in tool_calls(self.facts, name, 1):
            if call.fact is not None or self.draw.random() < 0.12:
                yield call

    async def missing(self) -> list[Fact]:
        """Return what was acknowledged and is not in the engine's file."""
        return await _missing(self.directory / "k.db", self.acknowledged)

    async def missing_in_the_newest_checkpoint(self) -> list[Fact]:
        copy = self.directory / "copy.db"  # an engine that opens a file writes to it
        shutil.copyfile(checkpoints_in(self.saved)[0] / "data", copy)
        return await _missing(copy, self.acknowledged)

    def bad_checkpoints(self) -> list[str]:
        bad = []
        for checkpoint in checkpoints_in(self.saved):
            try:
                verify(checkpoint)
            except CheckpointError as error:
                bad.append(f"{checkpoint}: {error}")
        return bad


async def _missing(path: Path, wanted: list[Fact]) -> list[Fact]:
    async with EmbeddedKnowledgeEngine(path) as engine:
        visits = await engine.find_facts(predicate="visited", limit=100_000)
    stored = {(fact.subject, fact.object) for fact in visits}
    return [fact for fact in wanted if (fact.subject, fact.object) not in stored]


def _by_outcome(points: dict[Attributes, Point]) -> dict[str, float]:
    return {str(dict(key)["outcome"]): point.value for key, point in points.items()}
