"""Runs the components' checks on a schedule and keeps what they found."""

from __future__ import annotations

import asyncio
import inspect
import random as randomness
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmkg_otel._threads import in_daemon_thread
from llmkg_otel.errors import ConfigurationError, error_type
from llmkg_otel.events import HealthChanged, HealthChecked, Observer
from llmkg_otel.health.status import CheckResult, ComponentHealth, HealthStatus, Observation
from llmkg_otel.health.trend import trend_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llmkg_otel.config import HealthCheckConfig

__all__ = ["Check", "HealthMonitor"]

Answer = HealthStatus | CheckResult | None
Check = Callable[[], Answer | Awaitable[Answer]]

JITTER = 0.1
MESSAGE_LENGTH = 200
LONGEST = 1e9
"""Seconds that a loop can wait for, as for the options."""


@dataclass(slots=True, eq=False)
class _Component:
    """A registered check. Written on the loop only; `found` and `history` are swapped whole."""

    check: Check
    interval: float
    timeout: float
    found: tuple[ComponentHealth, float]
    history: tuple[Observation, ...] = ()
    schedule: asyncio.Task[None] | None = None
    round: asyncio.Task[None] | None = None
    answer: asyncio.Task[CheckResult] | None = None
    thread: Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether an earlier check still runs, past its timeout."""
        return any(running is not None and not running.done() for running in (self.answer, self.thread))

    def cancel(self) -> set[asyncio.Task[Any]]:
        """Cancel what runs and return it; the round cancels its check, once, so that it can clean up."""
        for task in (self.schedule, self.round):
            if task is not None:
                task.cancel()
        running = (self.schedule, self.round, self.answer)
        return {task for task in running if task is not None and not task.done()}


class HealthMonitor:
    """Checks each registered component at its own period, all in parallel, each within its timeout.

    A component has one check in progress at most. An async check is cancelled at its timeout; a sync one
    runs on a daemon thread with the context copied, which is left to itself: while it hangs, the
    component's checks fail at once and no other thread is started. A check returns None (pass), a
    HealthStatus or a CheckResult; raising is a failure with the exception's class and message.

    `start`, `stop` and `run_once` belong to one loop; everything else may be called from any thread and
    never waits. Emits HealthChecked after each check, and HealthChanged when the status it left differs
    from the one before (staleness, which only readers see, is not reported). `clock` is monotonic
    seconds, `wall` unix time, `random` a float in [0, 1).
    """

    def __init__(
        self,
        config: HealthCheckConfig,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = randomness.random,
        *,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._observer = observer
        self._clock = clock
        self._random = random
        self._wall = wall
        self._sleep = sleep
        self._components: dict[str, _Component] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def register(
        self,
        name: str,
        check: Check,
        *,
        essential: bool = True,
        interval: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Add a component; it reads as unknown until its first check, which a started monitor begins at once.

        `interval` and `timeout` are seconds, None takes the configuration's. A failing `essential`
        component makes the system fail and not ready; another one only makes it warn.
        Raises ConfigurationError for a name that is empty or in use, a check that cannot be called, or a
        number that is not above 0.
        """
        interval = self._config.check_interval_seconds if interval is None else interval
        timeout = self._config.check_timeout_seconds if timeout is None else timeout
        _refuse_bad(name, check, interval=interval, timeout=timeout)
        component = _Component(check, interval, timeout, (ComponentHealth(name, essential), 0.0))
        with self._lock:
            if name in self._components:
                raise ConfigurationError(f"health check {name!r}: the name is in use; unregister it first")
            self._components = {**self._components, name: component}
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._schedule, name, component)

    def unregister(self, name: str) -> None:
        """Forget a component and cancel its check; does nothing for an unknown name."""
        with self._lock:
            component = self._components.get(name)
            self._components = {key: value for key, value in self._components.items() if key != name}
        if component is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(component.cancel)

    async def start(self) -> None:
        """Begin the schedule: every component at once, then each at its period, give or take 10 %."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            for name, component in self._components.items():
                self._schedule(name, component)

    async def stop(self) -> None:
        """End the schedule and cancel checks in progress, which then count neither way.

        Waits for them to clean up, `check_timeout_seconds` at most. May be started again.
        """
        self._loop = None
        running = [task for component in self._components.values() for task in component.cancel()]
        if running:
            ended = asyncio.gather(*running, return_exceptions=True)
            await self._within(ended, self._config.check_timeout_seconds)

    async def run_once(self) -> tuple[ComponentHealth, ...]:
        """Check every component now, in parallel, and return what was found.

        Joins a check that is already in progress. If the caller is cancelled the checks still end.
        """
        await asyncio.gather(*(self._check(name, each) for name, each in self._components.items()))
        return self.components()

    def components(self) -> tuple[ComponentHealth, ...]:
        """Return every component's health as it reads now, in order of registration."""
        now = self._clock()
        return tuple(self._read(component, now) for component in self._components.values())

    def history(self, name: str) -> tuple[Observation, ...]:
        """Return a component's last `history_size` checks, oldest first; raise KeyError if unknown."""
        return self._components[name].history

    @staticmethod
    def _read(component: _Component, now: float) -> ComponentHealth:
        health, checked = component.found
        return health if health.checked_at is None else health.aged(now - checked, component.interval)

    def _schedule(self, name: str, component: _Component) -> None:
        idle = component.schedule is None or component.schedule.done()
        if idle and self._loop is not None and self._components.get(name) is component:
            # A context of its own: the span that the system was started in is not what its checks belong to.
            component.schedule = asyncio.create_task(self._repeat(name, component), context=Context())

    async def _repeat(self, name: str, component: _Component) -> None:
        while True:
            await self._check(name, component)
            await self._sleep(component.interval * (1 + JITTER * (2 * self._random() - 1)))

    async def _check(self, name: str, component: _Component) -> None:
        """Wait for the round in progress, or for a new one; cancelling the waiter leaves it running."""
        if component.round is None or component.round.done():
            component.round = asyncio.create_task(self._round(name, component))
        await asyncio.wait({component.round})

    async def _round(self, name: str, component: _Component) -> None:
        began = self._clock()
        error: str | None
        try:
            result = await self._answer(component)
        except Exception as raised:  # noqa: BLE001 - whatever a check raises is its finding
            message = f"{type(raised).__name__}: {raised}"[:MESSAGE_LENGTH]
            result, error = CheckResult(HealthStatus.CRITICAL, message), error_type(raised)
        else:
            error = "_OTHER" if result.status is HealthStatus.CRITICAL else None
        if self._components.get(name) is component:
            seconds = self._clock() - began
            self._observer.on_event(HealthChecked(name, seconds, error))
            self._record(name, component, result, seconds)

    async def _answer(self, component: _Component) -> CheckResult:
        if component.busy:
            raise TimeoutError("an earlier check is still running, past its timeout")
        component.answer = answer = asyncio.create_task(self._ask(component))
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            in_time = await self._within(answer, component.timeout)
        finally:
            answer.cancel()
        if not in_time:
            raise TimeoutError(f"no answer within {component.timeout:g} s")
        if answer.cancelled():
            raise RuntimeError("the check was cancelled from inside")
        return answer.result()

    @staticmethod
    async def _ask(component: _Component) -> CheckResult:
        on_loop = inspect.iscoroutinefunction(component.check)
        if on_loop:
            answer: object = component.check()
        else:
            component.thread = in_daemon_thread(component.check, "llmkg-health")
            answer = await asyncio.wrap_future(component.thread)
        # A lambda around an async function is called in the thread and awaited here.
        return CheckResult.of(await answer if inspect.isawaitable(answer) else answer)

    async def _within(self, future: asyncio.Future[Any], seconds: float) -> bool:
        alarm = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({future, alarm}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
        return future.done()

    def _record(self, name: str, component: _Component, result: CheckResult, seconds: float) -> None:
        before, _ = component.found
        seen = Observation(self._wall(), result.status, seconds)
        component.history = (*component.history, seen)[-self._config.history_size :]
        after = before.after(result, seen, self._config.failure_threshold)
        component.found = replace(after, trend=trend_of(component.history)), self._clock()
        if after.status is not before.status:
            self._observer.on_event(HealthChanged(name, before.status, after.status, after.message))


def _refuse_bad(name: Any, check: Any, **seconds: Any) -> None:
    told = f"health check {name!r}: "
    if not (isinstance(name, str) and name):
        raise ConfigurationError(told + "the name should be text that is not empty")
    if not callable(check):
        raise ConfigurationError(f"{told}{check!r} should be a function")
    for option, value in seconds.items():
        if not (isinstance(value, int | float) and 0 < value <= LONGEST):
            raise ConfigurationError(f"{told}{option} = {value!r}: should be seconds above 0, at most 1e9")
