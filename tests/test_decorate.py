"""What `protected` takes: anything that can be called and said to be sync or async before its first call."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from llmkg_otel.system import ProductionSystem


class Called:
    async def __call__(self, question: str) -> str:
        return question.upper()


class CalledSync:
    def __call__(self, question: str) -> str:
        return question.upper()


async def shout(mark: str, question: str) -> str:
    return question.upper() + mark


def shout_sync(mark: str, question: str) -> str:
    return question.upper() + mark


ASYNC: dict[str, Callable[[str], Any]] = {
    "an object": Called(),
    "a partial": functools.partial(shout, ""),
    "a partial of an object": functools.partial(Called()),
    "a partial of a partial": functools.partial(functools.partial(shout), ""),
    "a bound method": Called().__call__,
}
SYNC: dict[str, Callable[[str], Any]] = {
    "an object": CalledSync(),
    "a partial": functools.partial(shout_sync, ""),
    "a partial of an object": functools.partial(CalledSync()),
    "a built-in": str.upper,
}


@pytest.mark.parametrize("what", ASYNC)
async def test_what_is_async_is_awaited(what: str, system: ProductionSystem) -> None:
    protected = system.protected("ask")(ASYNC[what])
    assert inspect.iscoroutinefunction(protected)
    assert await protected("why?") == "WHY?"
    assert system.circuit_breaker("ask").calls["success"] == 1


@pytest.mark.parametrize("what", SYNC)
def test_what_is_sync_is_called(what: str, system: ProductionSystem) -> None:
    protected = system.protected("ask")(SYNC[what])
    assert protected("why?") == "WHY?"
    assert system.circuit_breaker("ask").calls["success"] == 1


async def test_static_and_class_methods_may_be_decorated_from_either_side(system: ProductionSystem) -> None:
    class Engine:
        name = "engine"

        @system.protected("ask")
        @staticmethod
        async def above(question: str) -> str:
            return question.upper()

        @staticmethod
        @system.protected("ask")
        async def below(question: str) -> str:
            return question.upper()

        @system.protected("ask")
        @classmethod
        def of_class(cls, question: str) -> str:
            return cls.name + question

    assert await Engine.above("why?") == await Engine().above("why?") == await Engine.below("why?") == "WHY?"
    assert Engine.of_class("!") == Engine().of_class("!") == "engine!"
    assert system.circuit_breaker("ask").calls["success"] == 5


@functools.wraps(shout)
def logged(*args: Any) -> Any:
    return shout(*args)


def generator() -> Iterator[int]:
    yield 1


class Streams:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (logged, "sync wrapper around a coroutine function: protect that function"),
        (generator, "is a generator"),
        (functools.partial(generator), "is a generator"),
        (Streams(), "is a generator"),
        (property(lambda _: 1), "cannot be called"),
        ("ask", "cannot be called"),
    ],
)
def test_what_cannot_be_protected_is_refused_before_its_first_call(
    what: Any, why: str, system: ProductionSystem
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        system.protected("ask")(what)
