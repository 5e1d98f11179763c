"""Protection for instrumented calls: one ProductionSystem for the process, made at the first call.

It has an event loop and a thread of its own for what runs in the background, so that calls may come from
any loop and any thread; each call runs where it was made. A process that was forked makes its own. Where
none can be made, and for async calls outside of asyncio, calls just run, and a warning says so once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import get_tracer_provider

from llmkg_otel._forks import in_child
from llmkg_otel.call import current_call, enter
from llmkg_otel.config import OperationConfig, ProductionConfig
from llmkg_otel.engine.profiles import protected_name
from llmkg_otel.errors import ConfigurationError, EngineCancelledError
from llmkg_otel.instrumentation.defaults import completed, unlimited
from llmkg_otel.shutdown.budget import longest_shutdown
from llmkg_otel.system import ProductionSystem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llmkg_otel.engine.profiles import Method, Profile

__all__ = ["Protection"]

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""How often an uninstrumented system looks whether its last calls have ended."""

START_SECONDS = 5.0
"""How long calls of other threads wait, from its beginning on, for the system that the first call makes."""


class Protection:
    """Runs instrumented calls under the configured policies. For any thread, loop and process.

    What the configuration says holds, of all or of an operation ("lightrag_query"; capitals do not matter);
    for the rest see `defaults`.
    A call inside a protected call, of this system or of the program's own, is not protected again.
    """

    def __init__(self, config: ProductionConfig, *, tracer_provider: Any, meter_provider: Any) -> None:
        self._config = unlimited(config)
        self._providers = {"tracer_provider": tracer_provider, "meter_provider": meter_provider}
        self._operations: dict[str, OperationConfig] = {}
        self._lock = threading.RLock()  # a signal handler of the program's may call its engine
        self._running: _Running | None = None
        self._starting: _Starting | None = None
        self._over = self._forked = False
        self._told: set[str] = set()
        self._respelt: set[str] = set()
        _protections.add(self)
        atexit.register(self._exit)

    def expect(self, profile: Profile, name: str, how: Method) -> None:
        """Take note of an operation and of what suits it."""
        operation = protected_name(profile, name, how)
        said, spelled = self._config.operations, operation
        if operation not in said and operation.lower() in said:  # as the environment's variables spell it
            spelled = operation.lower()
            self._respelt.add(spelled)
        config = completed(said.get(spelled, OperationConfig()), self._config, profile, how)
        with self._lock:
            self._operations[operation] = config
            running = self._running
        if running is not None:
            running.system.configure_operation(operation, config)

    def begin(self) -> None:
        """Make the system if there is none, and with it the global providers: a span is begun after that."""
        if self._running is None:
            self._system()

    async def run(self, operation: str, body: Callable[[], Awaitable[Any]]) -> Any:
        """Run an async call under its operation's policies, in the caller's task and span."""
        if not self._in_task() or (system := self._system()) is None:
            return await body()
        try:
            return await system.execute_protected_operation(operation, body, enrich_current_span=True)
        except EngineCancelledError as own:
            raise _as_it_was(own) from None

    def run_sync(self, operation: str, body: Callable[[], Any]) -> Any:
        """Run a sync call in the calling thread. What it returns is not looked at: it may be awaitable."""
        if (system := self._system()) is None:
            return body()
        try:
            return system.execute_protected_operation_sync(
                operation, lambda: (body(),), enrich_current_span=True
            )[0]
        except EngineCancelledError as own:
            raise _as_it_was(own) from None

    def _system(self) -> ProductionSystem | None:
        """Return what protects a call; None: nothing, or what is around it does."""
        if self._over or _protected():
            return None
        running = self._running or self._start()
        return None if running is None else running.system

    def _in_task(self) -> bool:
        """Say whether this is a task of asyncio's, whose means the policies need."""
        try:
            if asyncio.current_task() is not None:
                return True
        except RuntimeError:  # no event loop: another library's
            pass
        self._tell("async calls outside of asyncio's tasks (trio's, say) run unprotected")
        return False

    def _tell(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            _log.warning("%s", problem)

    def stop(self) -> None:
        """Shut the system down in the background; calls that come later just run."""
        self._over = True
        if self._running is not None:
            self._running.end()

    def _exit(self) -> None:
        """Shut down at exit, where handlers of the program's own may still call its engine."""
        self._over = True
        if self._running is not None:
            self._running.exit()

    def forget(self) -> None:
        """Leave the system to the process that this one was forked from."""
        self._lock, self._running, self._starting, self._forked = threading.RLock(), None, None, True

    def _start(self) -> _Running | None:
        """Make the system in the thread of the first call; None: there is none, or none yet.

        Making it may call what is instrumented (a log handler that stores into the engine), start threads
        that do, and wait for them. So no lock is held, its own thread's calls just run, and so do those of
        others once START_SECONDS are over.
        """
        with self._lock:
            if self._running is not None or self._over:
                return self._running
            starting, first = self._starting, self._starting is None
            if starting is None:
                starting = self._starting = _Starting()
        if not first:
            starting.wait()
            return self._running
        try:
            self._publish(*self._make())
            atexit.unregister(self._exit)
            atexit.register(self._exit)  # again: before that of providers just set up
        except Exception as problem:  # noqa: BLE001 - it is the program's call that would fail
            self._over = True
            self._tell(f"calls run unprotected, since no system can be made: {problem}")
        finally:
            self._starting = None
            starting.ended.set()
        return self._running

    def _publish(self, system: ProductionSystem, configured: Mapping[str, OperationConfig]) -> None:
        """Let calls go through a system, once it knows the operations that came up while it was made."""
        running = _Running(system)
        while True:
            with self._lock:
                late = {name: how for name, how in self._operations.items() if configured.get(name) != how}
                if not late:
                    self._running = running
                    break
                configured = dict(self._operations)
            for name, how in late.items():
                system.configure_operation(name, how)
        if self._over:  # stopped meanwhile
            running.end()

    def _make(self) -> tuple[ProductionSystem, Mapping[str, OperationConfig]]:
        """Return a system and the operations that it was configured with."""
        with self._lock:
            said, own = self._config.operations, dict(self._operations)
            others = {name: said[name] for name in said if name not in self._respelt}
        config = self._config.model_copy(update={"operations": {**others, **own}})
        try:
            return ProductionSystem(None, config, **self._providers), own
        except ConfigurationError:
            if not self._forked:
                raise
        # Spans of a fork go through what its parent has set up, and metrics of it would be its parent's.
        self._tell(
            "calls are protected in this fork, but its metrics are not exported: its parent had set up the"
            " providers, at a call before the fork, which they are bound to"
        )
        tracer_provider = self._providers["tracer_provider"] or get_tracer_provider()
        meter_provider = MeterProvider()
        return ProductionSystem(
            None, config, tracer_provider=tracer_provider, meter_provider=meter_provider
        ), own


class _Starting:
    """The making of a system, by the thread that this was made in."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._thread = threading.get_ident()
        self._until = time.monotonic() + START_SECONDS

    def wait(self) -> None:
        """Wait in another thread until it has ended, no longer than START_SECONDS after its beginning."""
        if threading.get_ident() != self._thread:
            self.ended.wait(max(0.0, self._until - time.monotonic()))


class _Running:
    """A system on its own loop, in a daemon thread, until the process exits or `end` is called."""

    def __init__(self, system: ProductionSystem) -> None:
        self.system = system
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._exiting = False
        self._thread = threading.Thread(target=self._run, name="llmkg-protection", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Shut down once the calls in flight have ended; returns at once."""
        self._on_loop(self._ending.set)

    def _on_loop(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # it has been closed: the shutdown is over
            self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except RuntimeError:  # Python 3.12 starts no threads at exit, where a start may still be going on
            if threading.main_thread().is_alive():
                raise

    async def _serve(self) -> None:
        async with self.system:
            await self._ending.wait()
            while len(self.system.calls) and not self._exiting:  # noqa: ASYNC110 - calls come from threads
                await asyncio.sleep(POLL_SECONDS)

    def exit(self) -> None:
        """Shut down and wait for it. Threads that still call are not waited for: the interpreter does not."""
        self._exiting = True
        if len(self.system.calls):
            self._on_loop(self.system.force_shutdown)
        self.end()
        self._thread.join(longest_shutdown(self.system.config))


def _protected() -> bool:
    """Say whether this code runs within a protected call."""
    call = current_call()
    return call is not None and not call.ended


_protections: weakref.WeakSet[Protection] = weakref.WeakSet()


def _forget_all() -> None:
    enter(None)  # no call of the parent's is around those of this process
    for protection in tuple(_protections):
        protection.forget()


in_child(_forget_all)


def _as_it_was(error: EngineCancelledError) -> BaseException:
    """Return what the engine raised: its caller knows nothing of this layer, and may wait for just that."""
    return error.__cause__ or error
