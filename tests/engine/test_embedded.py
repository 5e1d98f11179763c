"""What the embedded engine promises, one property a test."""

from __future__ import annotations

import asyncio
import math
import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkg_otel.engine.embedded import (
    READERS,
    EmbeddedKnowledgeEngine,
    EngineBusyError,
    EngineClosedError,
)
from llmkg_otel.engine.protocol import (
    CapacityExceededError,
    Fact,
    KnowledgeEngine,
    Passage,
    SearchMode,
    SupportsBackup,
)
from llmkg_otel.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

STORABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    str.strip
)
CONFIDENCE = st.floats(0, 1)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedKnowledgeEngine]:
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db", max_nodes=10_000) as opened:
        yield opened


def for_many(
    path: Path, check: Callable[[EmbeddedKnowledgeEngine, Any], Coroutine[Any, Any, None]], values: Any
) -> None:
    """Check a property for generated values on one engine: making a file each would only test the disk."""
    with asyncio.Runner() as runner:
        engine = EmbeddedKnowledgeEngine(path / "kg.db")

        @settings(deadline=None, max_examples=150)
        @given(values)
        def each(value: Any) -> None:
            runner.run(check(engine, value))

        try:
            each()
        finally:
            runner.run(engine.aclose())


async def holding_the_writer(engine: EmbeddedKnowledgeEngine) -> tuple[threading.Event, asyncio.Future[bool]]:
    """Occupy the writer, so that what is stored next gathers in one group."""
    started, gate = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> bool:
        started.set()
        return gate.wait(10)

    held = engine._writer.submit(hold)
    await asyncio.to_thread(started.wait, 10)
    return gate, held


# -- the protocol


async def test_it_is_a_knowledge_engine_that_can_be_backed_up(engine: EmbeddedKnowledgeEngine) -> None:
    as_protocol: KnowledgeEngine = engine
    assert isinstance(engine, SupportsBackup)
    assert as_protocol.name == "sqlite"
    assert as_protocol.capabilities == {"text", "backup", "interrupt"}


def test_an_engine_made_outside_a_loop_starts_no_thread_before_its_first_call(tmp_path: Path) -> None:
    before = threading.active_count()
    engine = EmbeddedKnowledgeEngine(tmp_path / "kg.db")
    assert threading.active_count() == before
    assert asyncio.run(engine.find_facts("nobody")) == []
    asyncio.run(engine.aclose())
    assert threading.active_count() == before


def test_a_process_that_never_closes_its_engine_ends_and_keeps_what_was_stored(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from llmkg_otel.engine.embedded import EmbeddedKnowledgeEngine\n"
        "from llmkg_otel.engine.protocol import Fact\n"
        "async def main():\n"
        "    engine = EmbeddedKnowledgeEngine(sys.argv[1])\n"
        "    await engine.store_facts([Fact('a', 'b', 'c')])\n"
        "    await engine.find_facts('a')\n"
        "asyncio.run(main())\n"
    )
    path = str(tmp_path / "kg.db")
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=30)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT subject, predicate, object FROM triple").fetchall() == [
            ("a", "b", "c")
        ]


# -- storing


def test_any_storable_fact_is_found_as_it_was_stored(tmp_path: Path) -> None:
    async def check(engine: EmbeddedKnowledgeEngine, value: tuple[str, str, str, float]) -> None:
        fact = Fact(*value)
        [identity] = await engine.store_facts([fact])
        expected = [Fact(*value, identity)]
        assert await engine.find_facts(fact.subject, fact.predicate, fact.object) == expected
        assert expected[0] in await engine.neighbours(fact.object, limit=1000)

    for_many(tmp_path, check, st.tuples(STORABLE, STORABLE, STORABLE, CONFIDENCE))


def test_storing_a_triple_again_keeps_its_id_and_takes_the_new_confidence(tmp_path: Path) -> None:
    async def check(engine: EmbeddedKnowledgeEngine, confidences: list[float]) -> None:
        ids = [(await engine.store_facts([Fact("a", "b", "c", each)]))[0] for each in confidences]
        assert set(ids) == {ids[0]}
        assert await engine.find_facts("a") == [Fact("a", "b", "c", confidences[-1], ids[0])]
        assert (await engine.stats()).facts == 1

    for_many(tmp_path, check, st.lists(CONFIDENCE, min_size=1, max_size=4))


async def test_of_one_triple_twice_in_a_call_the_last_confidence_counts(
    engine: EmbeddedKnowledgeEngine,
) -> None:
    ids = await engine.store_facts([Fact("a", "b", "c", 0.1), Fact("a", "b", "c", 0.2)])
    assert ids[0] == ids[1]
    assert [fact.confidence for fact in await engine.find_facts("a")] == [0.2]


async def test_a_batch_of_any_size_returns_its_ids_in_order(engine: EmbeddedKnowledgeEngine) -> None:
    assert await engine.store_facts([]) == []
    facts = [Fact(f"s{i}", "p", "o") for i in range(1234)]
    ids = await engine.store_facts(facts)
    found = {fact.id: fact.subject for fact in await engine.find_facts(object="o", limit=2000)}
    assert [found[identity] for identity in ids] == [fact.subject for fact in facts]


async def test_ids_are_the_same_in_every_file(engine: EmbeddedKnowledgeEngine, tmp_path: Path) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "other.db") as other:
        await other.store_facts([Fact("first", "of", "all")])
        assert await other.store_facts([Fact("a", "b", "c")]) == await engine.store_facts(
            [Fact("a", "b", "c")]
        )
        assert await other.store_passage(Passage("t")) == await engine.store_passage(Passage("t"))


async def test_the_same_text_under_the_same_title_keeps_its_id(engine: EmbeddedKnowledgeEngine) -> None:
    first = await engine.store_passage(Passage("anvils", "Acme", "wiki"))
    assert await engine.store_passage(Passage("anvils", "Acme", "news")) == first
    assert await engine.store_passage(Passage("anvils", "Other")) != first
    sources = {hit.passage.source for hit in await engine.search("acme") if hit.passage}
    assert sources == {"news"}


# -- refusing

GOOD = {"subject": "a", "predicate": "b", "object": "c", "confidence": 1.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject", ""),
        ("predicate", " \n"),
        ("object", "a\0b"),
        ("subject", "\ud800"),
        ("object", 7),
        ("confidence", -0.1),
        ("confidence", 1.1),
        ("confidence", math.nan),
        ("confidence", "high"),
    ],
)
async def test_a_malformed_fact_is_refused_by_field_and_value(
    engine: EmbeddedKnowledgeEngine, field: str, value: object
) -> None:
    bad = Fact(**cast("Any", GOOD | {field: value}))
    with pytest.raises(InvalidInputError, match=re.escape(f"facts[1].{field} is {value!r}: must be")):
        await engine.store_facts([Fact("x", "y", "z"), bad])
    assert (await engine.stats()).facts == 0


async def test_a_refusal_shortens_a_long_value(engine: EmbeddedKnowledgeEngine) -> None:
    with pytest.raises(InvalidInputError, match="subject is") as caught:
        await engine.find_facts("x" * 10_000 + "\0")
    assert len(str(caught.value)) < 200


async def test_malformed_questions_are_refused(engine: EmbeddedKnowledgeEngine) -> None:
    for call, field in [
        (engine.find_facts("a", limit=0), "limit"),
        (engine.find_facts("a", limit=10**30), "limit"),
        (engine.find_facts(""), "subject"),
        (engine.find_facts("a", min_confidence=math.nan), "min_confidence"),
        (engine.search("a", limit=0), "limit"),
        (engine.search("a", mode=cast("SearchMode", "magic")), "mode"),
        (engine.search(cast("str", None)), "query"),
        (engine.neighbours("a", max_hops=0), "max_hops"),
        (engine.neighbours("a", max_hops=6), "max_hops"),
        (engine.neighbours(" "), "entity"),
        (engine.store_passage(Passage("")), "passage.text"),
        (engine.store_passage(Passage("a", title="\0")), "passage.title"),
        (engine.store_passage(cast("Passage", "text")), "passage"),
        (engine.store_facts([cast("Fact", "text")]), "facts"),
    ]:
        with pytest.raises(InvalidInputError, match=f"^{field}"):
            await call


def test_an_argument_that_cannot_work_is_a_configuration_error(tmp_path: Path) -> None:
    for arguments, field in [
        ({"path": tmp_path / "none" / "kg.db"}, "path"),
        ({"path": tmp_path}, "path"),
        ({"path": ""}, "path"),
        ({"path": ":memory:"}, "path"),
        ({"path": tmp_path / "kg.db", "max_nodes": 0}, "max_nodes"),
        ({"path": tmp_path / "kg.db", "embedding_dim": 0}, "embedding_dim"),
    ]:
        with pytest.raises(ConfigurationError, match=f"^{field} is .*: must"):
            EmbeddedKnowledgeEngine(**cast("Any", arguments))


def test_a_file_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("certainly not a database " * 100)
    with pytest.raises(ConfigurationError, match="must be a SQLite file"):
        EmbeddedKnowledgeEngine(tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as connection:
        connection.executescript("CREATE TABLE other (a); PRAGMA user_version = 1;")
    with pytest.raises(ConfigurationError, match="belongs to another program"):
        EmbeddedKnowledgeEngine(tmp_path / "foreign.db")
    EmbeddedKnowledgeEngine(tmp_path / "newer.db")
    with closing(sqlite3.connect(tmp_path / "newer.db")) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigurationError, match="schema version 2: must be 1"):
        EmbeddedKnowledgeEngine(tmp_path / "newer.db")


# -- capacity


async def test_at_capacity_nothing_of_a_call_is_stored_and_known_nodes_are_accepted(tmp_path: Path) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db", max_nodes=3) as engine:
        await engine.store_facts([Fact("a", "knows", "b", 0.5)])
        with pytest.raises(CapacityExceededError, match=r"max_nodes is 3 and 2 are used: .* need 2 more"):
            await engine.store_facts([Fact("a", "likes", "b"), Fact("c", "knows", "d")])
        await engine.store_facts([Fact("b", "knows", "a"), Fact("a", "knows", "b", 0.9)])
        stats = await engine.stats()
        assert (stats.facts, stats.nodes, stats.max_nodes) == (2, 2, 3)
        assert [fact.confidence for fact in await engine.find_facts("a")] == [0.9]


async def test_a_file_with_more_nodes_than_are_now_allowed_still_takes_upserts(tmp_path: Path) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db") as engine:
        await engine.store_facts([Fact("a", "knows", "b"), Fact("c", "knows", "d")])
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db", max_nodes=3) as engine:
        await engine.store_facts([Fact("a", "knows", "d")])
        with pytest.raises(CapacityExceededError, match="4 are used"):
            await engine.store_facts([Fact("a", "knows", "e")])


async def test_one_bad_call_in_a_group_fails_alone(tmp_path: Path) -> None:
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db", max_nodes=64) as engine:
        gate, held = await holding_the_writer(engine)
        too_many = [Fact(f"x{i}", "p", f"y{i}") for i in range(50)]
        calls = [[Fact(f"s{i}", "p", "o")] for i in range(63)]
        calls.insert(30, too_many)
        tasks = [asyncio.create_task(engine.store_facts(call)) for call in calls]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert await held
        assert [i for i, result in enumerate(results) if isinstance(result, BaseException)] == [30]
        assert isinstance(results[30], CapacityExceededError)
        assert (await engine.stats()).facts == 63
        assert len(await engine.search("s7")) == 1
        assert await engine.search("x7") == []


async def test_sixty_four_tasks_storing_and_finding_agree(engine: EmbeddedKnowledgeEngine) -> None:
    async def client(number: int) -> None:
        for i in range(10):
            [identity] = await engine.store_facts([Fact(f"client {number}", "counts", str(i))])
            found = await engine.find_facts(f"client {number}", object=str(i))
            assert [fact.id for fact in found] == [identity]

    await asyncio.gather(*(client(number) for number in range(64)))
    stats = await engine.stats()
    with closing(sqlite3.connect(engine._path)) as connection:
        counted = [connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("fact", "node")]
    assert [stats.facts, stats.nodes] == counted == [640, 74]


# -- finding


async def test_facts_are_found_by_any_parts_most_confident_first_then_oldest(
    engine: EmbeddedKnowledgeEngine,
) -> None:
    facts = [
        Fact(s, p, o, c)
        for s, c in (("a", 0.5), ("b", 0.9), ("c", 0.5))
        for p in ("p", "q")
        for o in ("x", "y")
    ]
    await engine.store_facts(facts)
    for parts in range(8):
        subject, predicate, obj = (
            name if parts >> bit & 1 else None for bit, name in enumerate(("a", "p", "x"))
        )
        expected = [
            f
            for f in sorted(facts, key=lambda f: -f.confidence)
            if subject in (None, f.subject) and predicate in (None, f.predicate) and obj in (None, f.object)
        ]
        found = await engine.find_facts(subject, predicate, obj)
        assert [(f.subject, f.predicate, f.object) for f in found] == [
            (f.subject, f.predicate, f.object) for f in expected
        ]
        assert found[:2] == await engine.find_facts(subject, predicate, obj, limit=2)
    assert {f.subject for f in await engine.find_facts(min_confidence=0.9)} == {"b"}


async def test_every_combination_of_parts_has_an_index(engine: EmbeddedKnowledgeEngine) -> None:
    from llmkg_otel.engine import _rows

    await engine.find_facts("a")
    plans: list[str] = []

    class Explaining:
        def execute(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
            with closing(sqlite3.connect(engine._path)) as connection:
                plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
            return []

    for given_parts in range(8):
        parts = {p: "x" for bit, p in enumerate(("subject", "predicate", "object")) if given_parts >> bit & 1}
        _rows.find_facts(cast("sqlite3.Connection", Explaining()), parts, 10, 0.0)
    assert [plan for plan in plans if plan.startswith("SCAN") and "INDEX" not in plan] == []


async def test_neighbours_are_nearest_first_then_most_confident_in_both_directions(
    engine: EmbeddedKnowledgeEngine,
) -> None:
    await engine.store_facts(
        [
            Fact("b", "p", "a", 0.2),
            Fact("a", "p", "c", 0.8),
            Fact("a", "p", "a", 0.1),
            Fact("c", "p", "d", 1.0),
            Fact("d", "p", "e", 1.0),
            Fact("far", "p", "away", 1.0),
        ]
    )

    async def around(hops: int, limit: int = 100) -> list[str]:
        found = await engine.neighbours("a", max_hops=hops, limit=limit)
        return [f.subject + f.object for f in found]

    assert await around(1) == ["ac", "ba", "aa"]
    assert await around(2) == ["ac", "ba", "aa", "cd"]
    assert await around(5) == ["ac", "ba", "aa", "cd", "de"]
    assert await around(5, limit=2) == ["ac", "ba"]
    assert await engine.neighbours("nobody", max_hops=5) == []


async def test_facts_found_already_leave_their_room_to_new_ones(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact("a", "p", "b", 1.0), Fact("b", "p", "c", 0.5)])
    assert len(await engine.neighbours("a", max_hops=2, limit=2)) == 2


async def test_a_hub_is_read_no_further_than_the_limit(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact(f"leaf {i}", "of", "hub", i / 5000) for i in range(5000)])
    found = await engine.neighbours("hub", max_hops=2, limit=10)
    assert [fact.subject for fact in found] == [f"leaf {i}" for i in range(4999, 4989, -1)]

    def steps(connection: sqlite3.Connection) -> int:
        from llmkg_otel.engine import _rows

        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        connection.set_progress_handler(tick, 100)
        _rows.neighbours(connection, "leaf 7", 3, 10)
        return count * 100

    assert await engine._read(steps) < 5000


# -- searching


def test_search_takes_any_text(tmp_path: Path) -> None:
    async def check(engine: EmbeddedKnowledgeEngine, query: str) -> None:
        await engine.store_passage(Passage("words to be found"))
        hits = await engine.search(query)
        assert all(hit.score >= 0 for hit in hits)

    operators = st.text("()*^:-+{}\"'., ") | st.sampled_from(
        ["AND", "OR", "NOT", "NEAR", "text:", "found", "words"]
    )
    for_many(tmp_path, check, st.text() | st.lists(operators).map(" ".join))


async def test_a_query_without_words_finds_nothing(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact("a", "b", "c")])
    for query in ("", "  ", "\0", "???", '"', "\ud800", "* AND"):
        assert await engine.search(query) == [], query


async def test_search_ranks_facts_and_passages_together_best_first(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact("Alice", "worksAt", "Acme Robotics"), Fact("Bob", "lives_in", "Paris")])
    await engine.store_passage(Passage("Acme Robotics makes anvils in a town near Paris.", "Acme", "wiki"))
    hits = await engine.search("acme robotics")
    assert [bool(hit.fact) for hit in hits] == [True, False]
    assert hits[0].score > hits[1].score
    assert {hit.mode for hit in hits} == {"text"}
    assert hits[1].passage is not None
    assert (hits[1].passage.title, hits[1].passage.source) == ("Acme", "wiki")


async def test_predicates_are_read_as_words(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact("Alice", "worksAt", "Acme"), Fact("Bob", "lives_in", "Paris")])
    for query, subject in [
        ("who works at", "Alice"),
        ("worksAt", "Alice"),
        ("living", "Bob"),
        ("lives_in", "Bob"),
    ]:
        hits = await engine.search(query)
        assert [hit.fact.subject for hit in hits if hit.fact] == [subject], query


async def test_common_words_order_what_the_rare_word_found(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact(f"person {i}", "works_at", "Mill") for i in range(1500)])
    await engine.store_facts([Fact("Zoe", "lives_at", "Inn"), Fact("Zoe", "works_at", "Inn")])
    hits = await engine.search("where works Zoe")
    assert [hit.fact.predicate for hit in hits if hit.fact] == ["works_at", "lives_at"]
    assert len(await engine.search("person works", limit=20)) == 20
    assert len(await engine.search("person works", limit=2000)) == 1500
    assert await engine.search("person nowhere", limit=1)


# -- embedders


class ThreeWords:
    """Counts three words: a vector whose neighbours are plain to see."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[text.lower().count(word) + 0.01 for word in ("cat", "dog", "fish")] for text in texts]


async def test_without_an_embedder_every_mode_says_text(engine: EmbeddedKnowledgeEngine) -> None:
    await engine.store_facts([Fact("a", "b", "c")])
    modes: list[SearchMode] = ["text", "vector", "hybrid"]
    assert [(await engine.search("a", mode=mode))[0].mode for mode in modes] == ["text"] * 3


async def test_with_an_embedder_each_mode_ranks_in_its_own_way(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    for _ in range(2):  # the second time the vectors come from the file
        engine = EmbeddedKnowledgeEngine(tmp_path / "kg.db", 3, embedder=ThreeWords())
        async with engine:
            assert engine.capabilities >= {"vector", "hybrid"}
            await engine.store_facts([Fact("cat", "sees", "cat"), Fact("dog", "eats", "fish", 0.5)])
            await engine.store_passage(Passage("fish fish and a dog"))
            hits = await engine.search("FISH-like", mode="vector")
            assert [hit.mode for hit in hits] == ["vector"] * 3
            assert hits[0].passage
            assert 1 >= hits[0].score > hits[1].score > hits[2].score >= -1
            hybrid = await engine.search("cat", mode="hybrid")
            assert hybrid[0].fact
            assert (hybrid[0].fact.subject, hybrid[0].mode) == ("cat", "hybrid")
            assert hybrid[0].score == pytest.approx(2 / 61)
            assert (await engine.search("cat"))[0].mode == "text"
            assert await engine.search(" ", mode="vector") == []


async def test_an_embedder_of_another_length_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db", 4, embedder=ThreeWords()) as engine:
        with pytest.raises(ConfigurationError, match=r"embedding_dim is 4: .* \(1, 3\) for 1 texts"):
            await engine.store_facts([Fact("a", "b", "c")])
        assert (await engine.stats()).facts == 0


def test_a_file_with_vectors_of_another_length_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("numpy")

    async def store() -> None:
        async with EmbeddedKnowledgeEngine(tmp_path / "kg.db", 3, embedder=ThreeWords()) as engine:
            await engine.store_facts([Fact("a", "b", "c")])

    asyncio.run(store())
    with pytest.raises(ConfigurationError, match=r"embedding_dim is 4: .* vectors of length 3"):
        EmbeddedKnowledgeEngine(tmp_path / "kg.db", 4, embedder=ThreeWords())
    EmbeddedKnowledgeEngine(tmp_path / "kg.db", 4)


# -- cancelling, closing, health


async def test_cancelling_slow_reads_frees_their_threads(engine: EmbeddedKnowledgeEngine) -> None:
    running = threading.Barrier(READERS + 1)

    def endless(connection: sqlite3.Connection) -> Any:
        running.wait(10)
        return connection.execute(ENDLESS).fetchone()

    reads = [asyncio.ensure_future(engine._read(endless)) for _ in range(READERS)]
    await asyncio.sleep(0)
    await asyncio.to_thread(running.wait, 10)
    for read in reads:
        read.cancel()
    assert await engine.find_facts("nobody") == []
    await asyncio.gather(*(engine.stats() for _ in range(20)))


async def test_a_timeout_ends_a_read_of_many_statements(engine: EmbeddedKnowledgeEngine) -> None:
    ended = threading.Event()

    def never_done(connection: sqlite3.Connection) -> None:
        try:
            while True:
                connection.execute(
                    "SELECT count(*) FROM json_each(?)", ("[" + "0," * 50_000 + "0]",)
                ).fetchone()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine._read(never_done), 0.01)
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_write_cancelled_before_its_turn_does_not_happen(engine: EmbeddedKnowledgeEngine) -> None:
    gate, _ = await holding_the_writer(engine)
    kept, dropped = (
        asyncio.create_task(engine.store_facts([Fact(s, "p", "o")])) for s in ("kept", "dropped")
    )
    await asyncio.sleep(0)
    dropped.cancel()
    await asyncio.gather(dropped, return_exceptions=True)
    gate.set()
    await kept
    assert [fact.subject for fact in await engine.find_facts()] == ["kept"]


async def test_closing_finishes_queued_writes_and_merges_the_log(tmp_path: Path) -> None:
    engine = EmbeddedKnowledgeEngine(tmp_path / "kg.db")
    gate, _ = await holding_the_writer(engine)
    queued = [asyncio.create_task(engine.store_facts([Fact(str(i), "p", "o")])) for i in range(50)]
    await asyncio.sleep(0)
    closing_twice = [asyncio.create_task(engine.aclose()) for _ in range(2)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*queued, *closing_twice)
    await engine.aclose()
    assert os.listdir(tmp_path) == ["kg.db"]  # noqa: PTH208 - a list of names is what is asked
    async with EmbeddedKnowledgeEngine(tmp_path / "kg.db") as again:
        assert (await again.stats()).facts == 50


def test_an_engine_that_hangs_while_it_closes_does_not_keep_the_process(tmp_path: Path) -> None:
    program = f"""
import asyncio, threading
from llmkg_otel import EmbeddedKnowledgeEngine

async def main():
    engine = EmbeddedKnowledgeEngine({str(tmp_path / "k.db")!r})
    await engine.ping()
    hung = threading.Event()
    engine._readers.submit(lambda connection: hung.wait())
    try:
        await asyncio.wait_for(engine.aclose(), 0.1)
    except TimeoutError:
        print("left")

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=20, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "left\n"), ended.stderr


async def test_a_call_after_closing_says_so(tmp_path: Path) -> None:
    engine = EmbeddedKnowledgeEngine(tmp_path / "kg.db")
    await engine.aclose()
    for call in (
        engine.store_facts([Fact("a", "b", "c")]),
        engine.store_passage(Passage("a")),
        engine.find_facts("a"),
        engine.search("a"),
        engine.neighbours("a"),
        engine.stats(),
        engine.ping(),
        engine.backup(tmp_path / "copy.db"),
    ):
        with pytest.raises(EngineClosedError) as caught:
            await call
        assert caught.value.to_dict()["code"] == "engine_closed"


async def test_ping_writes_a_page_and_changes_nothing(engine: EmbeddedKnowledgeEngine) -> None:
    before = await engine.stats()
    await engine.ping()
    after = await engine.stats()
    assert after.size_bytes > before.size_bytes
    assert (after.facts, after.nodes, after.passages) == (before.facts, before.nodes, before.passages)


async def test_a_file_that_another_process_keeps_locked_is_a_clear_error(
    engine: EmbeddedKnowledgeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkg_otel.engine import _schema

    monkeypatch.setattr(_schema, "BUSY_SECONDS", 0.01)
    with closing(sqlite3.connect(engine._path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            engine.ping(), engine.store_facts([Fact("a", "b", "c")]), return_exceptions=True
        )
        assert [type(result) for result in results] == [EngineBusyError, EngineBusyError]
        assert results[0] is not results[1]
        other.execute("ROLLBACK")
    await engine.ping()


async def test_a_group_that_fails_as_a_whole_leaves_the_engine_usable(
    engine: EmbeddedKnowledgeEngine,
) -> None:
    def ends_the_transaction(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")  # what SQLite itself does when the disk is full
        raise sqlite3.OperationalError("database or disk is full")

    gate, _ = await holding_the_writer(engine)
    stored = asyncio.create_task(engine.store_facts([Fact("a", "b", "c")]))
    await asyncio.sleep(0)
    broken = engine._writer.submit(ends_the_transaction)
    gate.set()
    results = await asyncio.gather(stored, broken, return_exceptions=True)
    assert [str(result) for result in results] == ["database or disk is full"] * 2
    assert results[0] is not results[1]
    assert (await engine.stats()).facts == 0
    await engine.store_facts([Fact("a", "b", "c")])
    assert len(await engine.search("a")) == 1


# -- backup


async def test_a_backup_made_while_others_write_is_a_working_engine(
    engine: EmbeddedKnowledgeEngine, tmp_path: Path
) -> None:
    await engine.store_facts([Fact(f"s{i}", "p", "o") for i in range(500)])
    dest = tmp_path / "copy.db"
    writes = (engine.store_facts([Fact(f"late {i}", "p", "o")]) for i in range(100))
    await asyncio.gather(engine.backup(dest), *writes)
    async with EmbeddedKnowledgeEngine(dest) as copy:
        assert 500 <= (await copy.stats()).facts <= 600
        assert len(await copy.search("s77")) == 1
        await copy.store_facts([Fact("new", "p", "o")])


async def test_a_backup_never_overwrites_and_leaves_nothing_when_it_fails(
    engine: EmbeddedKnowledgeEngine, tmp_path: Path
) -> None:
    dest = tmp_path / "copy.db"
    dest.write_text("precious")
    with pytest.raises(InvalidInputError, match=r"dest is .*: must not exist yet"):
        await engine.backup(dest)
    assert dest.read_text() == "precious"
    with pytest.raises(InvalidInputError, match=r"dest is .*: must be a file that can be made"):
        await engine.backup(tmp_path / "none" / "copy.db")

    from llmkg_otel.engine import _files

    def refused(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(lambda: 1, 1)
        _files.copy_into(connection, tmp_path / "half.db")

    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        await engine._read(refused)
    assert not (tmp_path / "half.db").exists()
