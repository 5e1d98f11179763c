"""Engines that know nothing of this layer, of every kind of method."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkg_otel import LLMKGInstrumentor, ProductionConfig
from llmkg_otel.engine.profiles import Method, Profile
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

    from llmkg_otel.testing import CapturedTelemetry

QUICK: dict[str, Any] = {
    "retry": {"base_delay_ms": 0, "max_delay_ms": 0},
    "shutdown": {"lame_duck_seconds": 0, "flush_timeout_seconds": 2},
    "alerting": {"default_rules": False},
}


class Base:
    def inherited(self) -> str:
        return "inherited"


class Store(Base):
    """`work` is what each method does first: tests let it fail, or look around."""

    def __init__(self, work: Callable[[], object] = lambda: None) -> None:
        self.work = work
        self.wrap: Callable[[list[str]], list[str]] = lambda rows: rows
        self.steps: list[object] = []

    async def afetch(self, key: str) -> list[str]:
        self.work()
        return [key]

    def fetch(self, key: str) -> list[str]:
        self.work()
        return self.wrap([key])

    def again(self, key: str) -> list[str]:
        return self.fetch(key)

    def scan(self, count: int) -> Generator[int, str | None, str]:
        try:
            for number in range(count):
                self.work()
                try:
                    self.steps.append((yield number))
                except KeyError as thrown:
                    self.steps.append(thrown)
        finally:
            self.steps.append("closed")
        return "done"

    async def ascan(self, count: int) -> AsyncGenerator[int, str | None]:
        try:
            for number in range(count):
                self.work()
                self.steps.append((yield number))
        finally:
            self.steps.append("closed")

    def later(self, count: int) -> Later:
        self.work()
        return Later(self.scan(count))

    def coroutine(self, key: str) -> Any:
        return self.afetch(key)

    def status(self) -> dict[str, str]:
        self.work()
        return {"status": "failure", "why": "no model"}

    async def hang(self) -> None:
        await asyncio.Event().wait()

    def _private(self) -> None: ...

    @property
    def size(self) -> int:
        return 0

    @classmethod
    def make(cls) -> Store:
        return cls()

    @staticmethod
    def helper() -> int:
        return 1


class Later:
    """A result that still has to be fetched."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows


class Loud(Store):
    """A subclass that says more of one method, and its own of another."""

    def fetch(self, key: str) -> list[str]:
        return [*super().fetch(key), "!"]


class Tree:
    """Methods that call themselves, `levels` deep."""

    def plain(self, levels: int) -> int:
        return 1 + self.plain(levels - 1) if levels else 0

    async def lasting(self, levels: int) -> int:
        return 1 + await self.lasting(levels - 1) if levels else 0

    def iterated(self, levels: int) -> Generator[int, None, int]:
        if not levels:
            yield 0
            return 0
        return 1 + (yield from self.iterated(levels - 1))


PROFILE = Profile(
    name="store",
    classes=("support.stores:Store",),
    system="acme",
    methods={
        "afetch": Method(operation="fetch", write=False, rows="self", text="key"),
        "fetch": Method(write=False, rows="self", text="key"),
        "again": Method(),
        "scan": Method(write=False),
        "ascan": Method(write=False),
        "later": Method(write=False, iterates="rows"),
        "coroutine": Method(),
        "status": Method(write=False, failures=({"status": "failure"},)),
        "inherited": Method(),
    },
)


@contextmanager
def instrumented(*profiles: Profile, **options: Any) -> Iterator[CapturedTelemetry]:
    """Instrument these profiles, or the store's; give the telemetry, and uninstrument."""
    own = {"instrumentation": {"profiles": profiles or (PROFILE,), **options.pop("instrumentation", {})}}
    instrumentor = LLMKGInstrumentor()
    with captured_telemetry() as telemetry:
        instrumentor.instrument(
            config=ProductionConfig(**QUICK | own | options),
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
        )
        try:
            yield telemetry
        finally:
            instrumentor.uninstrument()
