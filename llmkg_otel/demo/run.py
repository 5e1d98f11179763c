"""`llmkg-otel demo`: load, serve, drive, break, shut down, and balance the books.

    load facts -> start the server -> clients call: a third in calm, a third with faults, a third to
    recover -> SIGTERM with slow calls in flight (with `keep`: after Ctrl-C) -> books -> summary

Everything happens in a temporary directory on spare loopback ports; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from llmkg_otel.demo.books import balance, is_tool_call
from llmkg_otel.demo.clients import Journal, Visitor, drive, pause
from llmkg_otel.demo.facts import batches, real_facts
from llmkg_otel.demo.live import LiveView
from llmkg_otel.demo.process import ServerFailedError, ServerProcess, configuration
from llmkg_otel.demo.questions import tool_calls
from llmkg_otel.demo.summary import show, summarise
from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine
from llmkg_otel.telemetry import semconv
from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from llmkg_otel.engine.protocol import Fact

__all__ = ["run_demo"]

SEED = 20
BATCH = 1000
_MAX_SPANS = 1_000_000


def run_demo(duration: float, as_json: bool, keep: bool) -> int:
    """Run the demo with a load of `duration` seconds; return the exit code.

    `as_json` prints the summary as JSON and nothing else on stdout (progress goes to stderr); `keep`
    goes on serving after the load until Ctrl-C. 0 means that the books balance, 1 that they do not or
    that the server failed. Needs the extras `demo` and `server`, and POSIX signals.
    """
    console = Console(stderr=as_json)
    for noisy in ("mcp", "fastmcp", "httpx2"):  # a closing server is part of the show, not an error
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        with TemporaryDirectory(prefix="llmkg-demo-") as directory:
            summary = asyncio.run(_Demo(console, Path(directory), duration, keep).run())
    except ServerFailedError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        return 1
    if as_json:
        json.dump(summary, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        show(console, summary)
    return 0 if summary["balanced"] else 1


class _Demo:
    """One run; the steps are its methods, in order."""

    def __init__(self, console: Console, directory: Path, duration: float, keep: bool) -> None:
        self._console = console
        self._duration = duration
        self._keep = keep
        self._visitors = _visitors()
        self._guest_token = secrets.token_urlsafe(24)
        names = {visitor.token: visitor.name for visitor in self._visitors} | {self._guest_token: "guest"}
        self._config = configuration(directory, {name: token for token, name in names.items()})
        self._server = ServerProcess(directory, self._config)
        self._journal = Journal()
        self._view = LiveView(console, self._journal, self._server.ops_url)
        self._interrupted = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        facts = real_facts()
        await self._load(facts)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupted.set)
        with OtlpReceiver(max_records=_MAX_SPANS, keep=is_tool_call) as receiver:
            await self._server.start(receiver)
            try:
                async with self._clients(facts):
                    report = await self._play()
            finally:
                await self._server.close()
            return await self._balance(facts, receiver, report)

    async def _load(self, facts: list[Fact]) -> None:
        engine = self._engine()
        try:
            steps = list(batches(facts, BATCH))
            for batch in track(steps, f"Loading {len(facts):,} facts", console=self._console):
                await engine.store_facts(batch)
        finally:
            await engine.aclose()

    @contextlib.asynccontextmanager
    async def _clients(self, facts: Sequence[Fact]) -> AsyncIterator[None]:
        """Run the clients and the live view; at the end let every call in flight come back."""
        look = self._look() | {"token": self._guest_token}  # for whoever tries the MCP server meanwhile
        for name, value in look.items():
            self._console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)
        watching = asyncio.create_task(self._view.watch())
        driving = [
            asyncio.create_task(
                drive(
                    visitor,
                    self._server.mcp_url,
                    tool_calls(facts, visitor.name, SEED),
                    self._journal,
                    self._stop,
                )
            )
            for visitor in self._visitors
        ]
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.gather(*driving)
            watching.cancel()
            await asyncio.wait([watching])

    async def _play(self) -> dict[str, Any]:
        """Go through the thirds, then shut the server down; return its report."""
        third = self._duration / 3
        self._view.phase = "calm"
        await pause(third, self._interrupted)
        self._view.phase = "faults on"
        self._server.send(signal.SIGUSR1)
        await pause(third, self._interrupted)
        self._view.phase = "faults off, recovering"
        self._server.send(signal.SIGUSR2)
        await pause(third, self._interrupted)
        if self._keep and not self._interrupted.is_set():
            self._view.phase = "serving until Ctrl-C"
            self._stop.set()
            await self._interrupted.wait()
        self._view.phase = "shutting down"
        self._server.send(signal.SIGHUP)
        self._server.send(signal.SIGTERM)
        return await self._server.ended()

    async def _balance(
        self, facts: Sequence[Fact], receiver: OtlpReceiver, report: Mapping[str, Any]
    ) -> dict[str, Any]:
        calls = self._journal.calls
        books = balance(
            calls,
            receiver.metric(semconv.OPERATION_DURATION.name),
            receiver.spans(),
            missing=await self._missing(facts),
            foreign_expected=self._keep,
        )
        loaded = {"loaded": len(facts), "acknowledged": len(self._journal.acknowledged)}
        return summarise(calls, receiver, books, report, facts=loaded, look=self._look())

    async def _missing(self, facts: Sequence[Fact]) -> list[Fact]:
        """Reopen the engine; return the acknowledged facts, and a sample of the loaded ones, not in it."""
        engine = self._engine()
        wanted = [*self._journal.acknowledged, *facts[:: max(1, len(facts) // 100)]]
        try:
            return [
                fact
                for fact in wanted
                if not await engine.find_facts(fact.subject, fact.predicate, fact.object, limit=1)
            ]
        finally:
            await engine.aclose()

    def _engine(self) -> EmbeddedKnowledgeEngine:
        return EmbeddedKnowledgeEngine(self._config["engine"]["path"])

    def _look(self) -> dict[str, str]:
        ops = self._server.ops_url
        return {
            "MCP": self._server.mcp_url,
            "readiness": f"{ops}/readyz",
            "health": f"{ops}/healthz",
            "metrics": f"{ops}/metrics",
            "status": f"{ops}/status",
        }


def _visitors() -> list[Visitor]:
    """Return seven steady clients, and three that share a token and so spend its rate limit together."""
    steady = [Visitor(f"visitor-{n}", secrets.token_urlsafe(24), pace=0.15) for n in range(1, 8)]
    shared = secrets.token_urlsafe(24)
    hasty = [Visitor(f"impatient-{n}", shared, pace=0.08, patient=False) for n in range(1, 4)]
    return [*steady, *hasty]
