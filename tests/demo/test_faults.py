from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmkg_otel.demo.faults import CYCLE, OUTAGE, SLOW_SECONDS, Fault, FaultyEngine, fault_for
from llmkg_otel.engine.protocol import EngineStats, Fact, Hit, KnowledgeEngine, Passage
from llmkg_otel.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence


class RecordingEngine:
    name = "recording"
    capabilities = ("text",)

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def store_facts(self, facts: Sequence[Fact]) -> list[str]:
        self.calls.append("store_facts")
        return ["1" for _ in facts]

    async def store_passage(self, passage: Passage) -> str:
        self.calls.append("store_passage")
        return "1"

    async def find_facts(self, *args: object, **kwargs: object) -> list[Fact]:
        self.calls.append("find_facts")
        return []

    async def search(self, query: str, **kwargs: object) -> list[Hit]:
        self.calls.append("search")
        return []

    async def neighbours(self, entity: str, **kwargs: object) -> list[Fact]:
        self.calls.append("neighbours")
        return []

    async def stats(self) -> EngineStats:
        self.calls.append("stats")
        return EngineStats(0, 0, 0, 1, 0)

    async def ping(self) -> None:
        self.calls.append("ping")

    async def aclose(self) -> None:
        self.calls.append("aclose")


def first(fault: Fault, method: str) -> int:
    return next(n for n in range(1000) if fault_for(7, method, n) is fault and n % CYCLE not in OUTAGE)


async def failures_until(engine: FaultyEngine, number: int) -> int:
    failed = 0
    for _ in range(number):
        try:
            await engine.find_facts("x")
        except ConnectionError:
            failed += 1
    return failed


async def test_the_faulty_engine_delegates_every_method_while_faults_are_off() -> None:
    inner = RecordingEngine()
    engine: KnowledgeEngine = FaultyEngine(inner)
    await engine.store_facts([Fact("a", "b", "c")])
    await engine.store_passage(Passage("text"))
    await engine.find_facts("a", limit=3)
    await engine.search("a", mode="hybrid")
    await engine.neighbours("a", max_hops=2)
    await engine.stats()
    await engine.ping()
    await engine.aclose()
    assert inner.calls == [
        "store_facts",
        "store_passage",
        "find_facts",
        "search",
        "neighbours",
        "stats",
        "ping",
        "aclose",
    ]
    assert (engine.name, engine.capabilities) == ("recording", ("text",))


def test_the_plan_is_the_same_for_the_same_seed_and_differs_by_method() -> None:
    plan = [fault_for(7, "search", n) for n in range(CYCLE)]
    assert plan == [fault_for(7, "search", n) for n in range(CYCLE)]
    assert plan != [fault_for(7, "find_facts", n) for n in range(CYCLE)]


def test_the_plan_has_failures_to_recover_from_and_an_outage_that_opens_a_circuit() -> None:
    plan = [fault_for(7, "find_facts", n) for n in range(OUTAGE.start)]
    assert {Fault.NONE, Fault.FAILED, Fault.LOST_ANSWER} <= set(plan)
    assert all(fault_for(7, "find_facts", n) is Fault.FAILED for n in OUTAGE)
    assert len(OUTAGE) > 5


async def test_switching_faults_on_begins_the_plan_anew_and_off_ends_it() -> None:
    engine = FaultyEngine(RecordingEngine(), sleep=FakeClock().sleep)
    engine.switch(True)
    failed = await failures_until(engine, CYCLE)
    engine.switch(True)
    assert await failures_until(engine, CYCLE) == failed > len(OUTAGE)
    engine.switch(False)
    assert await failures_until(engine, CYCLE) == 0


@pytest.mark.parametrize(
    ("fault", "done"), [(Fault.FAILED, []), (Fault.LOST_ANSWER, ["store_facts"])], ids=str
)
async def test_a_lost_answer_was_done_and_a_failure_was_not(fault: Fault, done: list[str]) -> None:
    inner = RecordingEngine()
    engine = FaultyEngine(inner, sleep=FakeClock().sleep)
    engine.switch(True)
    engine._numbers["store_facts"] = first(fault, "store_facts")
    with pytest.raises(ConnectionError, match="on purpose"):
        await engine.store_facts([Fact("a", "b", "c")])
    assert inner.calls == done


async def test_a_slow_call_waits_and_then_succeeds() -> None:
    clock = FakeClock()
    engine = FaultyEngine(RecordingEngine(), sleep=clock.sleep)
    engine.switch(True)
    engine._numbers["stats"] = first(Fault.SLOW, "stats")
    await engine.stats()
    assert clock.slept == [SLOW_SECONDS]


async def test_slowed_down_every_call_takes_its_time_with_or_without_faults() -> None:
    clock = FakeClock()
    engine = FaultyEngine(RecordingEngine(), sleep=clock.sleep)
    engine.slow_down()
    await engine.stats()
    await engine.ping()
    assert clock.slept == [SLOW_SECONDS] * 2
