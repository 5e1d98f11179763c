"""Measure what instrumenting an engine costs a call: `python benchmarks/instrumentation.py` (about 20 s).

The same calls bare, instrumented (LLMKG_INSTRUMENT) and protected (LLMKG_PROTECT), in one run: each a class
of its own, so that all three can take turns. Spans go through a batch processor to an exporter that drops
them, metrics to a Prometheus reader.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from _measure import Contestant, aligned, alternate, machine, table
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import get_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from rdflib import Graph, Namespace

from llmkg_otel import ProductionConfig
from llmkg_otel.engine.profiles import PROFILES, Method, Profile
from llmkg_otel.instrumentation.instrumentor import recorder_of
from llmkg_otel.instrumentation.patches import Patches
from llmkg_otel.instrumentation.protection import Protection

if TYPE_CHECKING:
    from collections.abc import Callable

EX = Namespace("http://example.org/")
CALLS, TRIPLES = 50, 100
RDFLIB = next(profile for profile in PROFILES if profile.name == "rdflib")


class Dropping(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


class Store:
    async def look(self) -> None:
        pass


STORE = Profile(name="store", classes=("bench:Store",), methods={"look": Method(write=False)})


ATTRIBUTES = {"db.system.name": "store", "db.operation.name": "look"}
TRACERS = TracerProvider()
TRACERS.add_span_processor(BatchSpanProcessor(Dropping()))
PROVIDERS: dict[str, Any] = {
    "tracer_provider": TRACERS,
    "meter_provider": MeterProvider([PrometheusMetricReader()]),
}
CONFIG = ProductionConfig(alerting={"default_rules": False})
RECORDER = recorder_of(CONFIG, **PROVIDERS)
PROTECTION = Protection(CONFIG, **PROVIDERS)


def variants(base: type, profile: Profile) -> dict[str, type]:
    """Return the class bare, instrumented and protected: two subclasses with the wrapped methods."""
    made = {"bare": base}
    for name, protection in (("instrumented", None), ("protected", PROTECTION)):
        methods = {each: how for each, how in profile.methods.items() if each in vars(base)}
        ours = type(base.__name__, (base,), {each: vars(base)[each] for each in methods})
        Patches(RECORDER, protection).add(profile, ModuleType("bench"), ours, methods)
        made[name] = ours
    return made


def adding(graph: Graph) -> Contestant:
    async def contestant(calls: int) -> None:
        add, triple = graph.add, (EX.s, EX.p, EX.o)
        for _ in range(calls):
            add(triple)

    return contestant


def reading(graph: Graph) -> Contestant:
    graph.addN((EX[f"s{n}"], EX.p, EX.o, graph) for n in range(TRIPLES))

    async def contestant(calls: int) -> None:
        for _ in range(calls):
            for _triple in graph.triples((None, None, None)):
                pass

    return contestant


def by_hand(store: Any) -> Contestant:
    """Return the floor: one span and one histogram record around the call."""
    tracer, duration = RECORDER.tracer, RECORDER.duration

    async def contestant(calls: int) -> None:
        for _ in range(calls):
            started = time.perf_counter()
            with tracer.start_as_current_span("look", attributes=ATTRIBUTES):
                await store.look()
            duration.record(time.perf_counter() - started, ATTRIBUTES)

    return contestant


def looking(store: Any) -> Contestant:
    async def contestant(calls: int) -> None:
        for _ in range(calls):
            await store.look()

    return contestant


def parsing(graph: Graph) -> Contestant:
    lines = "\n".join(f"<{EX[f's{n}']}> <{EX.p}> <{EX.o}> ." for n in range(TRIPLES))

    async def contestant(calls: int) -> None:
        for _ in range(calls):
            graph.parse(data=lines, format="nt")

    return contestant


CONTESTS: dict[str, tuple[type, Profile, Callable[[Any], Contestant], int]] = {
    "an async method that does nothing": (Store, STORE, looking, CALLS),
    "rdflib add": (Graph, RDFLIB, adding, CALLS),
    f"rdflib triples, {TRIPLES} of them": (Graph, RDFLIB, reading, CALLS),
    f"rdflib parse, {TRIPLES} triples": (Graph, RDFLIB, parsing, 2),
}


async def main(slices: int) -> None:
    print(machine())
    for title, (base, profile, play, calls) in CONTESTS.items():
        contestants = {name: play(each()) for name, each in variants(base, profile).items()}
        if base is Store:
            contestants = {"by hand": by_hand(Store()), **contestants}
        measured = await alternate(contestants, slices=slices, calls=calls)
        print(f"\n{title}\n{aligned(table(measured, scale=1e6, unit='us'))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    assert type(get_meter_provider()).__name__ == "_ProxyMeterProvider"
    gc.freeze()
    asyncio.run(main(options.slices))
    sys.stdout.flush()
