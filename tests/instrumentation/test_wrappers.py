"""Every kind of method returns what it returned before, and each call is told of exactly once."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
from contextlib import aclosing, closing, suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanKind, StatusCode, get_current_span
from support.stores import Loud, Store, Tree, instrumented

from llmkg_otel.engine.profiles import Method, Profile
from llmkg_otel.instrumentation.observed import Observation, _innermost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmkg_otel.testing import CapturedTelemetry

DURATION = "db.client.operation.duration"


@pytest.fixture(params=[False, True], ids=["observed", "protected"])
def telemetry(request: pytest.FixtureRequest) -> Iterator[CapturedTelemetry]:
    with instrumented(protect=request.param, retry={"max_retries": 0}) as captured:
        yield captured
        assert get_current_span().get_span_context() is INVALID_SPAN_CONTEXT


def told(telemetry: CapturedTelemetry) -> list[tuple[str, str | None, object]]:
    """Return the name, error type and number of rows of each CLIENT span; each has one duration."""
    spans = [span for span in telemetry.spans() if span.kind is SpanKind.CLIENT]
    counts = [point[0] for point in telemetry.metric(DURATION).values()]  # type: ignore[index]
    assert sum(counts) == len(spans)
    for span in spans:
        failed = span.status.status_code is StatusCode.ERROR
        assert failed == ("error.type" in (span.attributes or {}))
    return [
        (span.name, a.get("error.type"), a.get("db.response.returned_rows"))  # type: ignore[misc]
        for span in spans
        for a in [span.attributes or {}]
    ]


def fails() -> None:
    raise ConnectionError("secret words")


class Exit(BaseException):
    pass


def exits() -> None:
    raise Exit


def cancelled() -> None:
    raise asyncio.CancelledError


async def awaited(store: Store) -> object:
    return await store.afetch("k")


async def iterated(store: Store) -> object:
    return [number async for number in store.ascan(1)]


CALLS: dict[str, Callable[[Store], Any]] = {
    "fetch": lambda store: store.fetch("k"),
    "afetch": lambda store: asyncio.run(awaited(store)),
    "scan": lambda store: list(store.scan(1)),
    "ascan": lambda store: asyncio.run(iterated(store)),
    "later": lambda store: list(store.later(1).rows),
    "coroutine": lambda store: asyncio.run(store.coroutine("k")),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    ("work", "kind", "error"),
    [
        (lambda: None, None, None),
        (fails, "ConnectionError", ConnectionError),
        (exits, "Exit", Exit),
        (cancelled, "cancelled", asyncio.CancelledError),
    ],
    ids=["returns", "fails", "exits", "cancelled"],
)
def test_however_a_call_ends_it_is_told_of_once_and_ends_the_same(
    telemetry: CapturedTelemetry, method: str, work: Any, kind: str | None, error: Any
) -> None:
    store = Store(work)
    if error is None:
        assert CALLS[method](store) in (["k"], [0])
    else:
        with pytest.raises(error):
            CALLS[method](store)
    [(name, error_type, _)] = told(telemetry)
    assert (name, error_type) == (method.removeprefix("a") if method == "afetch" else method, kind)
    assert "secret words" not in str([span.to_json() for span in telemetry.spans()])


def test_an_exception_is_the_same_object(telemetry: CapturedTelemetry) -> None:
    problem = ConnectionError("mine")

    def work() -> None:
        raise problem

    with pytest.raises(ConnectionError) as raised:
        Store(work).fetch("k")
    assert raised.value is problem
    assert problem.__cause__ is problem.__context__ is None


def test_signatures_names_and_kinds_of_functions_are_kept(telemetry: CapturedTelemetry) -> None:
    assert str(inspect.signature(Store.fetch)) == "(self, key: 'str') -> 'list[str]'"
    assert (Store.fetch.__name__, Store.fetch.__qualname__) == ("fetch", "Store.fetch")
    assert inspect.iscoroutinefunction(Store.afetch)
    assert inspect.isgenerator(Store().scan(1))
    assert inspect.isasyncgen(Store().ascan(1))


def test_a_call_within_a_call_of_the_same_engine_is_not_told_of(telemetry: CapturedTelemetry) -> None:
    assert Store().again("k") == ["k"]
    assert told(telemetry) == [("again", None, None)]


def test_a_task_left_behind_by_a_call_is_told_of_by_itself(telemetry: CapturedTelemetry) -> None:
    async def main() -> object:
        store = Store()
        started: list[asyncio.Task[object]] = []

        def work() -> None:
            if not started:
                started.append(asyncio.create_task(later(store)))

        store.work = work
        await store.afetch("first")
        return await started[0]

    async def later(store: Store) -> object:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await store.afetch("second")

    assert asyncio.run(main()) == ["second"]
    assert [name for name, _, _ in told(telemetry)] == ["fetch", "fetch"]


def test_rows_are_counted(telemetry: CapturedTelemetry) -> None:
    store = Store()
    store.fetch("k")
    list(store.scan(3))
    list(store.later(2).rows)
    assert told(telemetry) == [("fetch", None, 1), ("scan", None, 3), ("later", None, 2)]


def test_a_generator_that_nobody_asks_does_nothing_and_is_not_told_of(telemetry: CapturedTelemetry) -> None:
    store = Store(fails)
    del [store.scan(3)][0]
    gc.collect()
    assert store.steps == []
    assert told(telemetry) == []


@pytest.mark.parametrize("drop", [False, True])
def test_a_generator_that_is_closed_or_dropped_ends_its_span_without_an_error(
    telemetry: CapturedTelemetry, drop: bool
) -> None:
    store = Store()
    rows = store.scan(3)
    assert (next(rows), next(rows)) == (0, 1)
    assert told(telemetry) == []
    if drop:
        del rows
        gc.collect()
    else:
        rows.close()
    assert store.steps == [None, "closed"]
    assert told(telemetry) == [("scan", None, 2)]


def test_a_lazy_result_that_is_dropped_unread_ends_its_span(telemetry: CapturedTelemetry) -> None:
    result = Store().later(3)
    assert told(telemetry) == []
    del result
    gc.collect()
    assert told(telemetry) == [("later", None, 0)]


def test_what_is_sent_thrown_and_returned_passes_through_a_generator(telemetry: CapturedTelemetry) -> None:
    store = Store()
    rows = store.scan(4)
    next(rows)
    assert rows.send("hello") == 1
    problem = KeyError("thrown")
    assert rows.throw(problem) == 2
    next(rows)
    with pytest.raises(StopIteration) as stopped:
        next(rows)
    assert stopped.value.value == "done"
    assert store.steps == ["hello", problem, None, None, "closed"]
    assert told(telemetry) == [("scan", None, 4)]


def test_an_error_thrown_into_a_generator_that_lets_it_out_fails_the_call(
    telemetry: CapturedTelemetry,
) -> None:
    rows = Store().scan(4)
    next(rows)
    problem = ValueError("thrown")
    with pytest.raises(ValueError, match="thrown") as raised:
        rows.throw(problem)
    assert raised.value is problem
    assert told(telemetry) == [("scan", "ValueError", 1)]


def test_an_empty_generator_returns_what_it_returned(telemetry: CapturedTelemetry) -> None:
    with pytest.raises(StopIteration) as stopped:
        next(Store().scan(0))
    assert stopped.value.value == "done"
    assert told(telemetry) == [("scan", None, 0)]


def test_between_two_items_the_consumers_own_span_is_current(telemetry: CapturedTelemetry) -> None:
    inside: list[object] = []
    store = Store(lambda: inside.append(get_current_span()))
    before = otel_context.get_current()
    with closing(store.scan(2)) as rows:
        for _ in rows:
            assert otel_context.get_current() is before
    [span] = [span for span in telemetry.spans() if span.kind is SpanKind.CLIENT]
    assert [each.get_span_context() for each in inside] == [span.get_span_context()] * 2  # type: ignore[attr-defined]


async def test_an_async_generator_is_closed_and_told_of_once(telemetry: CapturedTelemetry) -> None:
    store = Store()
    async with aclosing(store.ascan(3)) as rows:
        assert await anext(rows) == 0
        assert await rows.asend("hello") == 1
        assert get_current_span().get_span_context() is INVALID_SPAN_CONTEXT
    assert store.steps == ["hello", "closed"]
    assert told(telemetry) == [("ascan", None, 2)]


async def test_an_error_thrown_into_an_async_generator_fails_the_call(telemetry: CapturedTelemetry) -> None:
    rows = Store().ascan(3)
    await anext(rows)
    with pytest.raises(KeyError):
        await rows.athrow(KeyError("thrown"))
    with suppress(StopAsyncIteration):
        await anext(rows)
    assert told(telemetry) == [("ascan", "KeyError", 1)]


def test_a_result_that_stands_for_a_failure_is_returned_and_told_of_as_one(
    telemetry: CapturedTelemetry,
) -> None:
    assert Store().status() == {"status": "failure", "why": "no model"}
    assert told(telemetry) == [("status", "failure_returned", None)]


def test_a_result_that_cannot_be_measured_still_arrives(telemetry: CapturedTelemetry) -> None:
    class Odd(list[str]):
        def __len__(self) -> int:
            raise OSError("not now")

    odd = Odd()
    store = Store()
    store.wrap = lambda _rows: odd
    assert store.fetch("k") is odd
    assert told(telemetry) == [("fetch", None, None)]


def test_a_subclass_is_told_of_where_it_calls_the_class(telemetry: CapturedTelemetry) -> None:
    assert Loud().fetch("k") == ["k", "!"]
    assert Loud().again("k") == ["k", "!"]
    assert [name for name, _, _ in told(telemetry)] == ["fetch", "again"]


def test_the_duration_is_the_engines_own_time() -> None:
    with instrumented() as telemetry:
        rows = Store().scan(2)
        next(rows)
        asyncio.run(asyncio.sleep(0.05))
        list(rows)
        [span] = telemetry.spans("scan")
        [(_, seconds)] = telemetry.metric(DURATION).values()  # type: ignore[misc]
    assert (span.end_time or 0) - (span.start_time or 0) >= 50_000_000
    assert seconds < 0.05


@pytest.mark.parametrize("capture", [False, True])
def test_the_text_of_a_query_is_told_only_where_that_is_wanted(capture: bool) -> None:
    with instrumented(instrumentation={"capture_text": capture}) as telemetry:
        Store().fetch("who is Ada?")
        Store().fetch(key="x" * 3000)
        texts = [(span.attributes or {}).get("db.query.text") for span in telemetry.spans()]
    assert texts == (["who is Ada?", "x" * 2000] if capture else [None, None])


def test_what_outlives_its_call_keeps_no_chain_of_those_before(telemetry: CapturedTelemetry) -> None:
    kept: list[tuple[Context, Observation | None]] = []
    store = Store(lambda: kept.append((copy_context(), _innermost.get())))
    store.fetch("first")
    for _ in range(3):  # as what reschedules itself does
        kept[-1][0].run(store.fetch, "next")
    assert [each.outer for _, each in kept if each is not None] == [None] * 4
    assert len(told(telemetry)) == 4


@pytest.mark.parametrize("protect", [False, True])
async def test_where_instrumentation_is_suppressed_calls_run_bare(protect: bool) -> None:
    with instrumented(protect=protect) as telemetry:
        with suppress_instrumentation():
            assert Store().fetch("k") == await Store().afetch("k") == ["k"]
            assert list(Store().scan(2)) == [number async for number in Store().ascan(2)] == [0, 1]
            with pytest.raises(ConnectionError):
                Store(fails).fetch("k")
        assert telemetry.spans() == []
        assert telemetry.metric("db.client.operation.duration") == {}
        assert telemetry.metric("llmkg.operation.duration") == {}
        assert Store().fetch("k") == ["k"]
        assert len(telemetry.spans("fetch")) == 1


@pytest.mark.parametrize("protect", [False, True])
def test_a_method_that_calls_itself_gets_one_frame_more_per_level(protect: bool) -> None:
    levels = (sys.getrecursionlimit() - 300) // 2
    methods = {name: Method() for name in ("plain", "lasting", "iterated")}
    tree = Profile(name="tree", classes=("support.stores:Tree",), methods=methods)
    with instrumented(tree, protect=protect) as telemetry:
        assert Tree().plain(levels) == levels
        assert asyncio.run(Tree().lasting(levels)) == levels
        assert list(Tree().iterated(levels)) == [0]
        assert [span.name for span in telemetry.spans()] == ["plain", "lasting", "iterated"]
