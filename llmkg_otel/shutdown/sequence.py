"""The shutdown, phase by phase, and the lifecycle state it moves."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar, get_args

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.events import LifecycleChanged, Observer, ShutdownCounted, ShutdownPhaseEnded
from llmkg_otel.shutdown.budget import UNWIND_SECONDS
from llmkg_otel.shutdown.report import CancelledCall, Outcome, PhaseReport, ShutdownReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llmkg_otel.config import ShutdownConfig

__all__ = ["Drainable", "Lifecycle", "LifecycleState", "Save", "ShutdownSequence"]

LifecycleState = Literal[
    "starting", "serving", "lame_duck", "draining", "checkpointing", "cleaning_up", "flushing", "stopped"
]

T = TypeVar("T")


class Lifecycle:
    """Where the system is in its life; `state` may be read from any thread.

    Emits LifecycleChanged for each move.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._state: LifecycleState = "starting"

    @property
    def state(self) -> LifecycleState:
        """The present state."""
        return self._state

    def advance(self, state: LifecycleState) -> None:
        """Move on to `state`, past others if need be; staying does nothing. Thread-safe.

        Raises ValueError for a state that lies behind.
        """
        order = get_args(LifecycleState)
        with self._lock:
            previous = self._state
            if order.index(state) < order.index(previous):
                raise ValueError(f"the lifecycle only moves forward, not from {previous} to {state}")
            self._state = state
        if state != previous:
            self._observer.on_event(LifecycleChanged(previous, state))


class Drainable(Protocol):
    """The calls in flight, as the drain sees them."""

    def stop_accepting(self) -> None:
        """Refuse every call that comes from now on."""
        ...

    async def wait_idle(self, timeout: float) -> bool:  # noqa: ASYNC109 - the drain has its own deadline too
        """Wait until no call is in flight; return False if some still are after `timeout` seconds."""
        ...

    def cancel_remaining(self) -> list[CancelledCall]:
        """Cancel the calls still in flight and return them."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How many calls were drained, cancelled, refused since `stop_accepting`."""
        ...


class Save(NamedTuple):
    """How the state is saved before its resources are cleaned up, and how many seconds that may take."""

    run: Callable[[], Awaitable[object]]
    timeout: float


class _Ended(NamedTuple, Generic[T]):
    outcome: Outcome
    error: str | None = None
    value: T | None = None


class ShutdownSequence:
    """Lame duck, draining, checkpointing, cleaning up, flushing: each in its own time, come what may.

    In the lame duck everything is still served; only the lifecycle state, and with it readiness, has
    changed. A phase or handler that fails or hangs is reported and the next one begins. Belongs to one
    loop. `flush(timeout)` sends telemetry out and returns what went wrong, or None. Without `save` there
    is no checkpointing. `patience` is the seconds from the start after which the shutdown forces itself.
    Emits LifecycleChanged when a phase begins, ShutdownPhaseEnded when it ends, and ShutdownCounted.
    """

    def __init__(
        self,
        config: ShutdownConfig,
        observer: Observer,
        lifecycle: Lifecycle,
        calls: Drainable,
        flush: Callable[[float], Awaitable[str | None]],
        *,
        save: Save | None = None,
        patience: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._observer = observer
        self._lifecycle = lifecycle
        self._calls = calls
        self._flush = flush
        self._save = save
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._handlers: list[tuple[str, Callable[[], object], float]] = []
        self._forced = asyncio.Event()
        self._why_forced = "forced"
        self._cancelled: tuple[CancelledCall, ...] = ()
        self._operations: Mapping[str, int] = {}
        self._running: asyncio.Task[ShutdownReport] | None = None

    def register(self, name: str, handler: Callable[[], object], timeout: float | None = None) -> None:
        """Add a clean-up handler; the last one registered runs first, each after the one before ended.

        An async handler is cancelled after `timeout` seconds (None: `cleanup_timeout_seconds`). A sync
        one runs on a daemon thread, and is left to itself then.
        """
        seconds = self._config.cleanup_timeout_seconds if timeout is None else timeout
        self._handlers.append((name, handler, seconds))

    async def run(self) -> ShutdownReport:
        """Shut down and return the report. Whoever calls again, even meanwhile, gets the same one.

        Cancelling a caller does not stop the shutdown.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await asyncio.shield(self._running)

    def force(self) -> None:
        """Wait no longer: not for the lame duck, nor for calls, a checkpoint or handlers, which still begin.

        The flush keeps its own deadline: what it sends is what explains the rest. Call it on the loop,
        before or while `run` runs.
        """
        self._forced.set()

    async def _run(self) -> ShutdownReport:
        began = self._clock()
        out_of_time = asyncio.create_task(self._lose_patience())
        phases = [await self._phase("lame_duck", self._lame_duck), await self._phase("draining", self._drain)]
        if self._save is not None:
            save, seconds = self._save
            phases.append(await self._phase("checkpointing", lambda: self._within(save(), seconds)))
        phases.append(await self._phase("cleaning_up", self._clean_up))
        phases.append(await self._phase("flushing", self._flush_telemetry))
        out_of_time.cancel()
        self._lifecycle.advance("stopped")
        return ShutdownReport(self._clock() - began, tuple(phases), self._operations, self._cancelled)

    async def _lose_patience(self) -> None:
        if self._patience is not None:
            await self._sleep(self._patience)
            self._why_forced = "the shutdown's time was up"
            self._forced.set()

    async def _phase(self, name: LifecycleState, body: Callable[[], Awaitable[_Ended[Any]]]) -> PhaseReport:
        self._lifecycle.advance(name)
        began = self._clock()
        try:
            ended = await body()
        except Exception as error:  # noqa: BLE001 - the next phase must begin
            ended = _Ended("failed", _describe(error))
        seconds = self._clock() - began
        self._observer.on_event(ShutdownPhaseEnded(name, seconds, ended.error))
        return PhaseReport(name, seconds, ended.outcome, ended.error)

    async def _lame_duck(self) -> _Ended[None]:
        if self._config.lame_duck_seconds:
            await self._within(self._forced.wait(), self._config.lame_duck_seconds)
        return _Ended("ok")

    async def _drain(self) -> _Ended[bool]:
        seconds = self._config.graceful_timeout_seconds
        self._calls.stop_accepting()
        ended = await self._within(self._calls.wait_idle(seconds), seconds)
        if ended.value:
            return ended
        self._cancelled = tuple(self._calls.cancel_remaining())
        await self._within(self._calls.wait_idle(UNWIND_SECONDS), UNWIND_SECONDS)
        if ended.outcome == "failed" or not self._cancelled:
            return ended
        why = self._why_forced if self._forced.is_set() else f"after {seconds:g} s"
        return _Ended("timed_out", f"calls cancelled: {len(self._cancelled)} ({why})")

    async def _clean_up(self) -> _Ended[None]:
        outcomes: set[Outcome] = set()
        errors = []
        while self._handlers:
            name, handler, seconds = self._handlers.pop()
            ended = await self._within(_call(handler, f"llmkg-cleanup-{name}"), seconds)
            outcomes.add(ended.outcome)
            if ended.error:
                errors.append(f"{name}: {ended.error}")
        worst: tuple[Outcome, ...] = ("failed", "timed_out", "ok")
        return _Ended(next(each for each in worst if each in {*outcomes, "ok"}), "; ".join(errors) or None)

    async def _flush_telemetry(self) -> _Ended[str | None]:
        self._operations = dict(self._calls.counts)  # once: the report says what the metric says
        self._observer.on_event(ShutdownCounted(self._operations))
        seconds = self._config.flush_timeout_seconds
        ended = await self._within(self._flush(seconds), seconds, forceable=False)
        return _Ended("failed", ended.value) if ended.value else ended

    async def _within(self, work: Awaitable[T], seconds: float, *, forceable: bool = True) -> _Ended[T]:
        """Wait for `work`, `seconds` at most and no longer once forced; cancel it then."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        limits = {asyncio.ensure_future(self._sleep(seconds))}
        if forceable:
            limits.add(asyncio.ensure_future(self._forced.wait()))
        try:
            await asyncio.wait({task, *limits}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in limits:
                each.cancel()
            in_time = task.done()
            task.cancel()
        if not in_time:
            forced = forceable and self._forced.is_set()
            return _Ended("timed_out", self._why_forced if forced else f"not done within {seconds:g} s")
        if task.cancelled():
            return _Ended("failed", "cancelled from inside")
        error = task.exception()
        return _Ended("failed", _describe(error)) if error else _Ended("ok", None, task.result())


async def _call(handler: Callable[[], object], name: str) -> None:
    on_loop = inspect.iscoroutinefunction(handler)
    answer = handler() if on_loop else await asyncio.wrap_future(in_daemon_thread(handler, name))
    if inspect.isawaitable(answer):
        await answer


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
