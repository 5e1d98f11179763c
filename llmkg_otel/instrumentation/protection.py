"""Protection for instrumented calls: one ProductionSystem for the process, made at the first call.

It has an event loop and a thread of its own for what runs in the background, so that calls may come from
any loop and any thread; each call runs where it was made. A process that was forked makes its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any

from llmkg_otel._forks import in_child
from llmkg_otel.call import current_call
from llmkg_otel.config import OperationConfig, ProductionConfig
from llmkg_otel.engine.profiles import protected_name
from llmkg_otel.errors import EngineCancelledError
from llmkg_otel.instrumentation.defaults import completed, unlimited
from llmkg_otel.shutdown.budget import longest_shutdown
from llmkg_otel.system import ProductionSystem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.engine.profiles import Method, Profile

__all__ = ["Protection"]

POLL_SECONDS = 0.1
"""How often an uninstrumented system looks whether its last calls have ended."""


class Protection:
    """Runs instrumented calls under the configured policies. For any thread, loop and process.

    What the configuration says holds, of all or of an operation ("lightrag_query"); for the rest see
    `defaults`.
    A call inside a protected call, of this system or of the program's own, is not protected again.
    """

    def __init__(self, config: ProductionConfig, *, tracer_provider: Any, meter_provider: Any) -> None:
        self._config = unlimited(config)
        self._providers = {"tracer_provider": tracer_provider, "meter_provider": meter_provider}
        self._operations: dict[str, OperationConfig] = {}
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._over = False
        _protections.add(self)
        atexit.register(self._exit)

    def expect(self, profile: Profile, name: str, how: Method) -> None:
        """Take note of an operation and of what suits it."""
        operation = protected_name(profile, name, how)
        given = self._config.operations.get(operation, OperationConfig())
        config = completed(given, self._config, profile, how)
        with self._lock:
            self._operations[operation] = config
            if self._running is not None:
                self._running.system.configure_operation(operation, config)

    async def run(self, operation: str, body: Callable[[], Awaitable[Any]]) -> Any:
        """Run an async call under its operation's policies, in the caller's task and span."""
        if self._over or _protected():
            return await body()
        system = (self._running or self._start()).system
        try:
            return await system.execute_protected_operation(operation, body, enrich_current_span=True)
        except EngineCancelledError as own:
            raise _as_it_was(own) from None

    def run_sync(self, operation: str, body: Callable[[], Any]) -> Any:
        """Run a sync call in the calling thread; one that returns an awaitable is over when it does."""
        if self._over or _protected():
            return body()
        system = (self._running or self._start()).system
        try:
            return system.execute_protected_operation_sync(
                operation, lambda: (body(),), enrich_current_span=True
            )[0]
        except EngineCancelledError as own:
            raise _as_it_was(own) from None

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
        self._lock, self._running = threading.Lock(), None

    def _start(self) -> _Running:
        with self._lock:
            if self._running is None:
                config = self._config.model_copy(
                    update={"operations": {**self._config.operations, **self._operations}}
                )
                self._running = _Running(ProductionSystem(None, config, **self._providers))
            return self._running


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
    for protection in tuple(_protections):
        protection.forget()


in_child(_forget_all)


def _as_it_was(error: EngineCancelledError) -> BaseException:
    """Return what the engine raised: its caller knows nothing of this layer, and may wait for just that."""
    return error.__cause__ or error
