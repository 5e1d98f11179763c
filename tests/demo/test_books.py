from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmkg_otel.demo.books import Books, balance, is_tool_call, outcomes_in, quantile
from llmkg_otel.demo.clients import OK, UNANSWERED, CallRecord
from llmkg_otel.engine.protocol import Fact
from llmkg_otel.testing import Point, SpanRecord, attributes_key

if TYPE_CHECKING:
    from llmkg_otel.testing.records import Attributes


def call(trace_id: str, outcome: str = OK) -> CallRecord:
    return CallRecord("visitor", "find_facts", trace_id, outcome, 0.01)


def span(trace_id: str, *, scope: str = "fastmcp", kind: str = "SERVER", **attributes: object) -> SpanRecord:
    known: dict[str, object] = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "find_facts"}
    known |= {name.replace("__", "."): value for name, value in attributes.items()}
    return SpanRecord("tools/call find_facts", scope, kind, "UNSET", trace_id, "1", "2", 0, 1, known, (), ())


def durations(
    *, operation: str = "find_facts", buckets: tuple[int, ...] = (), **counts: int
) -> dict[Attributes, Point]:
    series = {}
    for outcome, count in counts.items():
        attributes = {"llmkg.operation.name": operation}
        if outcome != OK:
            attributes["error.type"] = outcome
        series[attributes_key(attributes)] = Point(1.0, count, (0.01, 0.1), buckets)
    return series


def failed(books: Books) -> set[str]:
    return {check.name for check in books.checks if not check.holds}


def test_the_books_balance_when_every_call_is_in_the_metric_and_has_a_span() -> None:
    books = balance(
        [call("a"), call("b", "rate_limited")], durations(ok=1, rate_limited=1), [span("a"), span("b")]
    )
    assert books.balanced
    assert (books.sent, books.metric, books.spans) == (2, 2, 2)
    assert books.by_outcome == {"ok": (1, 1), "rate_limited": (1, 1)}


def test_a_call_that_met_a_closed_listener_is_listed_apart() -> None:
    books = balance([call("a"), call("b", UNANSWERED)], durations(ok=1), [span("a")])
    assert books.balanced
    assert (books.sent, books.never_arrived) == (1, 1)


def test_a_call_that_arrived_and_got_no_answer_counts_as_sent_and_fails_the_books() -> None:
    books = balance([call("a"), call("b", UNANSWERED)], durations(ok=1, cancelled=1), [span("a"), span("b")])
    assert (books.sent, books.never_arrived) == (2, 0)
    assert failed(books) == {"no call that arrived was cut off"}


def test_a_span_that_is_missing_fails_the_books() -> None:
    books = balance([call("a"), call("b")], durations(ok=2), [span("a")])
    assert failed(books) == {"calls sent = spans ended", "each answered call has one span"}


def test_a_second_server_span_of_one_call_fails_the_books() -> None:
    books = balance([call("a")], durations(ok=1), [span("a"), span("a")])
    assert failed(books) == {"calls sent = spans ended", "each answered call has one span"}


def test_a_call_counted_twice_in_the_metric_fails_the_books() -> None:
    books = balance([call("a")], durations(ok=2), [span("a")])
    assert failed(books) == {"calls sent = outcomes in the metric", "each outcome agrees"}


def test_an_outcome_that_the_server_names_differently_fails_the_books() -> None:
    books = balance([call("a", "circuit_open")], durations(ok=1), [span("a")])
    assert failed(books) == {"each outcome agrees"}


@pytest.mark.parametrize("expected", [True, False])
def test_calls_of_other_clients_are_in_order_only_when_expected(expected: bool) -> None:
    books = balance([call("a")], durations(ok=2), [span("a"), span("theirs")], foreign_expected=expected)
    assert books.foreign == 1
    assert books.balanced is expected


def test_a_missing_fact_fails_the_books() -> None:
    books = balance([call("a")], durations(ok=1), [span("a")], missing=[Fact("a", "b", "c")])
    assert failed(books) == {"every acknowledged fact is stored"}


def test_only_the_operations_that_the_clients_drive_are_counted() -> None:
    both = durations(ok=1) | durations(operation="nightly_job", ok=5)
    assert outcomes_in(both) == {"ok": 1}


def test_the_engines_own_exceptions_are_one_outcome_as_the_clients_are_told_it() -> None:
    series = durations(ok=1, ConnectionError=2, OperationalError=1, rate_limited=1)
    assert outcomes_in(series) == {"ok": 1, "engine_error": 3, "rate_limited": 1}


@pytest.mark.parametrize(
    ("record", "counts"),
    [
        (span("a"), True),
        (span("a", gen_ai__tool__name="get_health_report"), False),
        (span("a", gen_ai__tool__name=None), True),
        (span("a", scope="llmkg_otel"), False),
        (span("a", kind="INTERNAL"), False),
        (span("a", mcp__method__name="tools/list"), False),
    ],
)
def test_a_tool_call_is_known_by_scope_kind_method_and_tool(record: SpanRecord, counts: bool) -> None:
    assert is_tool_call(record) is counts


@pytest.mark.parametrize(("q", "seconds"), [(0.25, 0.005), (0.5, 0.01), (0.75, 0.055), (1.0, 0.1)])
def test_a_quantile_is_linear_within_its_bucket(q: float, seconds: float) -> None:
    assert quantile(durations(ok=4, buckets=(2, 2, 0)), q) == pytest.approx(seconds)


def test_a_quantile_above_the_last_bound_is_that_bound() -> None:
    assert quantile(durations(ok=1, buckets=(0, 0, 1)), 0.5) == 0.1


def test_a_quantile_counts_only_calls_that_went_well_over_all_operations() -> None:
    series = durations(ok=1, buckets=(1, 0, 0)) | durations(operation="get_stats", ok=1, buckets=(0, 1, 0))
    series |= durations(draining=9, buckets=(0, 0, 9))
    assert quantile(series, 0.5) == 0.01


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile({}, 0.5) is None
    assert quantile(durations(ok=0, buckets=(0, 0, 0)), 0.5) is None
