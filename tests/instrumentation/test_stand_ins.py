"""What stands in for a method answers whoever looks at it as the method itself does."""

from __future__ import annotations

import array
import asyncio
import copy
import functools
import inspect
import pickle
import sqlite3
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import SpanKind
from support import stores
from support.stores import instrumented

from llmkg_otel.engine.profiles import Method, Profile
from llmkg_otel.instrumentation.replaced import pickled_as

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from llmkg_otel.testing import CapturedTelemetry


def transparent(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Tokenizer:
    def __call__(self, text: str) -> list[str]:
        return text.split()


class Base:
    def greet(self) -> str:
        return "base"

    def shared(self) -> str:
        return "base"


class Engine(Base):
    tokenizer = Tokenizer()
    borrowed = "a b".split
    Row = dict

    class Settings:
        limit = 3

    def __init__(self) -> None:
        self.failures = 0
        self.calls = 0

    def _work(self) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("not now")

    def plain(self, key: str, *, limit: int = 3) -> str:
        return key * limit

    async def later(self, key: str = "k") -> str:
        self._work()
        return key

    def rows(self, count: int) -> Iterator[int]:
        yield from range(count)

    async def arows(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @functools.lru_cache  # noqa: B019
    def cached(self, key: str) -> object:
        return [key]

    @transparent
    async def decorated(self, key: str) -> str:
        self._work()
        return key

    @transparent
    def generated(self, count: int) -> Iterator[int]:
        yield from range(count)

    def handed_on(self, key: str) -> Any:
        return self.later(key)

    def at_once(self, key: str) -> str:
        return asyncio.run(Engine.later(self, key))

    at_once.__wrapped__ = later  # type: ignore[attr-defined]

    def started(self, key: str) -> Any:
        return asyncio.ensure_future(self.later(key))


METHODS = (
    "greet",
    "shared",
    "plain",
    "later",
    "rows",
    "arows",
    "cached",
    "decorated",
    "generated",
    "handed_on",
)
PROFILE = Profile(name="engine", classes=(f"{__name__}:Engine",))
ONLY_NAMED = {"instrumentation": {"profiles": ()}, "instrument": f"{__name__}:Engine"}


def named(*names: str, **options: Any) -> Profile:
    return PROFILE.model_copy(update={"methods": {name: Method(**options) for name in names}})


def operations(telemetry: CapturedTelemetry) -> dict[str, int]:
    """Return how many protected calls have ended, by operation and error type."""
    found: dict[str, int] = {}
    for attributes, point in telemetry.metric("llmkg.operation.duration").items():
        values = dict(attributes)
        kind = f":{values['error.type']}" if "error.type" in values else ""
        found[f"{values['llmkg.operation.name']}{kind}"] = point[0]  # type: ignore[index]
    return found


def spans(telemetry: CapturedTelemetry) -> list[str]:
    return [span.name for span in telemetry.spans() if span.kind is SpanKind.CLIENT]


def test_only_methods_are_operations_and_other_attributes_stay_what_they_are() -> None:
    others = ("tokenizer", "borrowed", "Row", "Settings")
    before = {name: vars(Engine)[name] for name in others}
    with instrumented(**ONLY_NAMED) as telemetry:
        assert all(vars(Engine)[name] is value for name, value in before.items())
        assert (Engine().tokenizer("a b"), Engine.Settings().limit, Engine.Row(a=1)) == (
            ["a", "b"],
            3,
            {"a": 1},
        )
        assert isinstance(Engine.tokenizer, Tokenizer)
        assert telemetry.spans() == []


QUESTIONS: dict[str, Callable[[Any], object]] = {
    "coroutine function": inspect.iscoroutinefunction,
    "coroutine function, says asyncio": asyncio.iscoroutinefunction,
    "generator function": inspect.isgeneratorfunction,
    "async generator function": inspect.isasyncgenfunction,
    "function": inspect.isfunction,
    "method": inspect.ismethod,
    "routine": inspect.isroutine,
    "signature": inspect.signature,
    "own signature": lambda method: inspect.signature(method, follow_wrapped=False),
    "arguments": inspect.getfullargspec,
    "defaults": lambda method: [getattr(method, f"__{name}__", None) for name in ("defaults", "kwdefaults")],
    "names": lambda method: (method.__name__, method.__qualname__, method.__module__, method.__doc__),
    "source": inspect.getsource,
    "attributes": lambda method: sorted(set(dir(method)) - {"__signature__", "__wrapped__"}),
    "copy": lambda method: copy.copy(method) == method,
    "pickled": lambda method: pickle.loads(pickle.dumps(method)).__name__,
    "equal": lambda method: method == method and hash(method) == hash(method),
    "weak": lambda method: weakref.ref(method) is not None,
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("bound", [False, True], ids=["of class", "of instance"])
def test_a_method_looked_at_answers_as_before(question: str, bound: bool) -> None:
    # A function that is only inherited is pickled by its own class's name, which is not where ours is found.
    unlike = ("cached", "greet", "shared") if question == "pickled" and not bound else ("cached",)
    ask, names = QUESTIONS[question], [name for name in METHODS if name not in unlike]
    where = Engine() if bound else Engine
    before = {name: ask(getattr(where, name)) for name in names}
    with instrumented(**ONLY_NAMED):
        assert {name: ask(getattr(where, name)) for name in names} == before


def test_a_bound_method_can_be_held_weakly_and_is_the_same_attribute_each_time() -> None:
    engine = Engine()
    with instrumented(**ONLY_NAMED) as telemetry:
        held = weakref.WeakMethod(engine.plain)()
        assert held is not None
        assert held("k") == "kkk"
        assert asyncio.run(engine.later()) == "k"
        assert Engine.plain is Engine.plain
        assert spans(telemetry) == ["plain", "later"]


def test_a_cache_keeps_its_own_methods_and_answers_hits_with_the_same_object() -> None:
    engine = Engine()
    with instrumented(**ONLY_NAMED) as telemetry:
        first = engine.cached("k")
        assert engine.cached("k") is first
        assert Engine.cached(engine, "k") is first
        info = engine.cached.cache_info()
        assert (info.hits, info.misses) == (2, 1)
        assert str(inspect.signature(engine.cached)) == "(key: 'str') -> 'object'"
        assert pickle.loads(pickle.dumps(engine.plain))("k") == "kkk"
        Engine.cached.cache_clear()
        assert Engine.cached.cache_info().currsize == 0
        assert spans(telemetry) == ["cached"] * 3 + ["plain"]


def test_an_async_generator_function_that_is_held_from_before_uninstrumenting_does_its_work() -> None:
    with instrumented(named("arows")):
        held = Engine.arows

    async def main() -> list[int]:
        return [number async for number in held(Engine(), 3)]

    assert asyncio.run(main()) == [0, 1, 2]


class Other(Base):
    def shared(self) -> str:
        return "other"


class Both(Engine, Other):
    pass


def test_an_inherited_method_is_looked_up_as_before_with_several_bases() -> None:
    assert Both().shared() == "other"
    with instrumented(**ONLY_NAMED) as telemetry:
        assert (Both().shared(), Engine().shared()) == ("other", "base")
        assert (super(Both, Both()).shared(), vars(Engine)["shared"](Engine())) == ("other", "base")
        assert spans(telemetry) == ["shared"] * 4
    assert "shared" not in vars(Engine)


def test_a_base_class_that_is_patched_later_answers_as_without_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with instrumented(**ONLY_NAMED) as telemetry:
        monkeypatch.setattr(Base, "greet", lambda _self: "patched")
        assert Engine().greet() == "patched"
        monkeypatch.delattr(Base, "greet")
        with pytest.raises(AttributeError, match="greet"):
            Engine().greet()
        assert not hasattr(Engine, "greet")
        assert spans(telemetry) == ["greet"]


def test_what_comes_next_may_be_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    with instrumented(**ONLY_NAMED) as telemetry:
        monkeypatch.setattr(Base, "greet", staticmethod(lambda: "static"))
        assert Engine().greet() == "static"
        monkeypatch.setattr(Base, "greet", property(lambda _self: lambda: "property"))
        assert Engine().greet() == "property"
        monkeypatch.setattr(Base, "greet", Tokenizer())
        assert Engine().greet("a b") == ["a", "b"]  # type: ignore[call-arg, comparison-overlap]
        assert spans(telemetry) == []


@pytest.mark.parametrize("first", ["Base", "Engine"])
def test_a_class_and_its_base_tell_of_a_call_once_in_either_order(first: str) -> None:
    second = {"Base": "Engine", "Engine": "Base"}[first]
    targets = ",".join(f"{__name__}:{each}" for each in (first, second))
    with instrumented(instrumentation={"profiles": ()}, instrument=targets) as telemetry:
        assert (Engine().greet(), Both().shared()) == ("base", "other")
        [greeted, *_] = telemetry.spans()
        assert (greeted.attributes or {})["db.system.name"] == "base"
        assert spans(telemetry) == ["greet", "shared"]


async def test_an_async_method_behind_a_plain_decorator_is_protected_while_it_is_awaited() -> None:
    with instrumented(named("decorated", write=False), protect=True) as telemetry:
        engine = Engine()
        engine.failures = 2
        awaited = engine.decorated("k")
        assert inspect.iscoroutine(awaited)
        assert awaited.__name__ == "decorated"
        assert (engine.calls, operations(telemetry), telemetry.spans()) == (0, {}, [])
        assert await awaited == "k"
        assert (engine.calls, operations(telemetry)) == (3, {"engine_decorated": 1})
        [span] = telemetry.spans("decorated")
        assert (span.attributes or {})["llmkg.operation.attempts"] == 3


async def test_a_failure_of_what_is_awaited_opens_the_circuit_and_what_is_refused_is_not_begun() -> None:
    policies: dict[str, Any] = {"circuit_breaker": {"failure_threshold": 2}, "retry": {"max_retries": 0}}
    with instrumented(named("decorated", "handed_on"), protect=True, **policies) as telemetry:
        engine = Engine()
        engine.failures = 9
        methods: tuple[Any, ...] = (engine.decorated, engine.handed_on)
        for method in methods:
            for _ in range(2):
                with pytest.raises(ConnectionError):
                    await method("k")
            with pytest.raises(Exception, match="circuit"):
                await method("k")
        assert engine.calls == 4
        assert operations(telemetry) == {
            "engine_decorated:ConnectionError": 2,
            "engine_decorated:circuit_open": 1,
            "engine_handed_on:ReturnedAwaitable": 1,
            "engine_handed_on:ConnectionError": 2,
            "engine_handed_on:circuit_open": 1,
        }


async def test_a_coroutine_that_nobody_foresaw_is_no_success_before_it_is_awaited() -> None:
    with instrumented(named("handed_on", write=False), protect=True) as telemetry:
        engine = Engine()
        for failures in (1, 1):
            engine.failures = failures
            awaited = engine.handed_on("k")
            assert "engine_handed_on" not in operations(telemetry) or failures == 1
            assert await awaited == "k"
        assert engine.calls == 4
        assert operations(telemetry) == {"engine_handed_on:ReturnedAwaitable": 1, "engine_handed_on": 2}
        assert spans(telemetry) == ["handed_on"] * 2
        assert all("error.type" not in (span.attributes or {}) for span in telemetry.spans("handed_on"))


def test_a_sync_method_with_a_coroutine_function_behind_it_is_protected_from_its_second_call_on() -> None:
    with instrumented(named("at_once", write=False), protect=True) as telemetry:
        engine = Engine()
        assert engine.at_once("k") == "k"
        engine.failures = 1
        assert engine.at_once("k") == "k"
        assert operations(telemetry) == {"engine_at_once": 1}
        assert spans(telemetry) == ["at_once"] * 2


async def test_a_future_is_passed_on_and_ends_the_call_but_is_not_protected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with instrumented(named("started"), protect=True) as telemetry:
        engine = Engine()
        for calls in range(2):
            future = engine.started("k")
            assert isinstance(future, asyncio.Task)
            assert len(telemetry.spans("started")) == calls
            assert await future == "k"
        engine.failures = 1
        with pytest.raises(ConnectionError):
            await engine.started("k")
        kinds = [(span.attributes or {}).get("error.type") for span in telemetry.spans("started")]
        assert kinds == [None, None, "ConnectionError"]
        assert operations(telemetry) == {"engine_started:ReturnedAwaitable": 1}
    assert caplog.text.count("engine_started returns a Task: unprotected") == 1


@pytest.fixture
def array_profile() -> Profile:
    return Profile(name="numbers", classes=("array:array",), methods={"append": Method(), "tolist": Method()})


def test_instances_of_a_replaced_class_are_pickled_and_are_instances_with_and_without(
    array_profile: Profile,
) -> None:
    before = array.array("i", [1])
    with instrumented(array_profile) as telemetry:
        made = array.array("i", [2])
        made.append(3)
        assert spans(telemetry) == ["append"]
        within = [pickle.dumps(each, protocol) for each in (before, made) for protocol in (0, 2, 5)]
        assert [pickle.loads(each).tolist() for each in within] == [[1]] * 3 + [[2, 3]] * 3
        assert copy.deepcopy([before, made]) == [before, made]
        assert isinstance(before, array.array)
        assert isinstance(pickle.loads(pickle.dumps(before)), array.array)
        assert issubclass(type(before), array.array)
        assert not hasattr(made, "__dict__")
    assert [pickle.loads(each).tolist() for each in within] == [[1]] * 3 + [[2, 3]] * 3
    assert type(pickle.loads(within[-1])) is array.array
    assert pickle.loads(pickle.dumps(before)) == before


def test_a_class_replaced_in_another_module_is_pickled_under_its_name_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "Numbers", array.array, raising=False)
    profile = Profile(name="numbers", classes=("support.stores:Numbers",), methods={"append": Method()})
    with instrumented(profile):
        pickled = pickle.dumps(stores.Numbers("i", [1]))  # type: ignore[attr-defined]
        assert type(pickle.loads(pickled)) is stores.Numbers  # type: ignore[attr-defined]
        assert pickle.loads(pickle.dumps(array.array("i", [1]))) == array.array("i", [1])
    assert type(pickle.loads(pickled)) is array.array


def test_a_users_subclass_of_a_replaced_class_is_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "Database", sqlite3.Connection, raising=False)
    profile = Profile(name="database", classes=("support.stores:Database",), methods={"commit": Method()})
    with instrumented(profile):

        class Mine(stores.Database):  # type: ignore[name-defined, misc]
            pass

        other = sqlite3.connect(":memory:")
        mine = sqlite3.connect(":memory:", factory=Mine)
        assert [isinstance(each, Mine) for each in (other, mine)] == [False, True]
        assert [issubclass(each, Mine) for each in (sqlite3.Connection, Mine)] == [False, True]
        assert all(isinstance(each, stores.Database) for each in (other, mine))  # type: ignore[attr-defined]
        other.close()
        mine.close()


class Made:
    """As a class of C code that tells what it was made of, and nothing else."""

    def __init__(self, *parts: int) -> None:
        self.parts = parts

    def __new__(cls, *parts: int) -> Made:  # noqa: PYI034
        made = super().__new__(cls)
        made.parts = parts
        return made

    def __getnewargs__(self) -> tuple[int, ...]:
        return self.parts


class Replaced(Made):
    pass


def test_an_instance_made_from_its_arguments_is_pickled_as_one_of_the_class_in_its_place() -> None:
    function, arguments, *_ = pickled_as(Replaced, Made)(Made(1, 2))
    again = function(*arguments)
    assert (type(again), again.parts) == (Replaced, (1, 2))
