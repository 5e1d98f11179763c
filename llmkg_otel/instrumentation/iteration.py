"""Results whose work is done while they are iterated: the span ends with the iteration, however it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkg_otel.instrumentation.observed import Observation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from types import TracebackType

    from llmkg_otel.instrumentation.observed import Observed

__all__ = ["aiterate", "iterate", "iterate_from_first"]


class _End:
    """A generator that ended at once, and what it returned."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Ending:
    """Ends a call with the block that iterates; a consumer that stops early is no failure."""

    def __init__(self, seen: Observation) -> None:
        self._seen = seen

    def __enter__(self) -> None:
        """Do nothing: the call has begun."""

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._seen.end(None if isinstance(error, GeneratorExit) else error)


def iterate(seen: Observation, source: Iterator[Any]) -> Generator[Any, Any, Any]:
    """Return a generator that goes on with a call's result; the call ends with it.

    It has begun already, so that it ends, and the call with it, when nobody ever asks it for an item.
    """
    seen.deferred = True
    seen.rows = 0
    going_on = _begun(seen, source)
    next(going_on)
    return going_on


def _begun(seen: Observation, source: Iterator[Any]) -> Generator[Any, Any, Any]:
    try:
        yield
    except GeneratorExit:
        _close(seen, source)
        seen.end()
        raise
    return (yield from _items(seen, source))


def iterate_from_first(
    observed: Observed, text: object, start: Callable[[], Any]
) -> Generator[Any, Any, Any]:
    """Observe a generator from the first item that is asked for, which is protected where the method is."""
    seen = Observation(observed, text)
    source: Any = None

    def first() -> Any:
        nonlocal source
        source = start()
        try:
            return next(source)
        except StopIteration as end:
            return _End(end.value)

    guard = observed.protection
    seen.deferred, seen.rows = True, 0
    try:
        with seen:
            item = first() if guard is None else guard.run_sync(observed.protected_name, first)
    except BaseException as error:
        seen.end(error)
        raise
    if isinstance(item, _End):
        seen.end()
        return item.value
    return (yield from _items(seen, source, item))


async def aiterate(
    observed: Observed, text: object, start: Callable[[], AsyncGenerator[Any, Any]]
) -> AsyncGenerator[Any, Any]:
    """Observe an async generator from the first item that is asked for, protected as a sync one's is."""
    seen = Observation(observed, text)
    source: Any = None

    async def first() -> Any:
        nonlocal source
        source = start()
        return await anext(source, _NOTHING)

    guard = observed.protection
    seen.deferred, seen.rows = True, 0
    with _Ending(seen):
        with seen:
            item = await (first() if guard is None else guard.run(observed.protected_name, first))
        while item is not _NOTHING:
            seen.rows += 1
            try:
                sent = yield item
            except GeneratorExit:
                with seen:
                    await source.aclose()
                raise
            except BaseException as thrown:  # noqa: BLE001 - the source decides what becomes of it
                step = source.athrow(thrown)
            else:
                step = source.asend(sent)
            with seen:
                item = await _or_nothing(step)


async def _or_nothing(step: Any) -> Any:
    try:
        return await step
    except StopAsyncIteration:
        return _NOTHING


_NOTHING: Any = object()


def _items(seen: Observation, source: Any, item: Any = _NOTHING) -> Generator[Any, Any, Any]:
    """Yield what a source yields, `item` first if that has been taken from it; pass on what is sent."""
    step = getattr(source, "send", None) or (lambda _sent: next(source))
    sent: Any = None
    with _Ending(seen):
        while True:
            if item is _NOTHING:
                seen.enter()
                try:
                    item = step(sent)
                except StopIteration as end:
                    return end.value
                finally:
                    seen.leave()
            seen.rows = (seen.rows or 0) + 1
            yielded, item, step = item, _NOTHING, getattr(source, "send", None) or step
            try:
                sent = yield yielded
            except GeneratorExit:
                _close(seen, source)
                raise
            except BaseException as thrown:  # noqa: BLE001 - the source decides what becomes of it
                sent, step = thrown, getattr(source, "throw", _raise)


def _raise(error: BaseException) -> Any:
    raise error


def _close(seen: Observation, source: Any) -> None:
    if (close := getattr(source, "close", None)) is not None:
        seen.enter()
        try:
            close()
        finally:
            seen.leave()
