from __future__ import annotations

from collections import Counter

import pytest

from llmkg_otel.demo.facts import batches, real_facts
from llmkg_otel.engine.protocol import Fact


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return real_facts()


def test_there_are_about_as_many_facts_as_the_demo_promises(facts: list[Fact]) -> None:
    assert 150_000 < len(facts) < 200_000


def test_the_facts_are_the_same_in_the_same_order_every_time(facts: list[Fact]) -> None:
    assert real_facts() == facts


def test_no_fact_comes_twice_and_none_has_an_empty_part(facts: list[Fact]) -> None:
    assert len(set(facts)) == len(facts)
    assert all(fact.subject and fact.predicate and fact.object for fact in facts)


@pytest.mark.parametrize(
    "fact",
    [
        Fact("France", "has_capital", "Paris"),
        Fact("France", "borders", "Spain"),
        Fact("Japan", "uses_currency", "JPY"),
        Fact("Brazil", "speaks_language", "pt"),
        Fact("Germany", "called_in_fr", "Allemagne"),
        Fact("Lowell Field (00AK)", "located_in", "United States"),
        Fact("Lowell Field (00AK)", "serves_city", "Anchor Point"),
    ],
)
def test_well_known_facts_are_among_them(facts: list[Fact], fact: Fact) -> None:
    assert fact in set(facts)


def test_a_border_is_between_two_countries_by_name(facts: list[Fact]) -> None:
    borders = Counter((fact.subject, fact.object) for fact in facts if fact.predicate == "borders")
    assert borders["France", "Germany"] == borders["Germany", "France"] == 1


def test_batches_keep_the_order_and_leave_nothing_out(facts: list[Fact]) -> None:
    parts = list(batches(facts[:2500], 1000))
    assert [len(part) for part in parts] == [1000, 1000, 500]
    assert [fact for part in parts for fact in part] == facts[:2500]
