"""Protection for instrumented calls: one ProductionSystem for the process, made at the first call.

It has an event loop and a thread of its own for what runs in the background, so that calls may come from
any loop and any thread; each call runs where it was made. A process that was forked makes its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from llmkg_otel.call import current_call
from llmkg_otel.config import OperationConfig, ProductionConfig
from llmkg_otel.errors import EngineCancelledError
from llmkg_otel.instrumentation.defaults import completed, unlimited
from llmkg_otel.shutdown.budget import longest_shutdown
from llmkg_otel.system import ProductionSystem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmkg_otel.engine.profiles import Method, Profile

__all__ = ["Protection"]


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
        _protections.add(self)

    def expect(self, profile: Profile, name: str, how: Method) -> None:
        """Take note of an operation and of what suits it."""
        operation = f"{profile.name}_{how.operation or name}"
        given = self._config.operations.get(operation, OperationConfig())
        config = completed(given, self._config, profile, how)
        with self._lock:
            self._operations[operation] = config
            if self._running is not None:
                self._running.system.configure_operation(operation, config)

    async def run(self, operation: str, body: Callable[[], Awaitable[Any]]) -> Any:
        """Run an async call under its operation's policies, in the caller's task and span."""
        if _protected():
            return await body()
        system = (self._running or self._start()).system
        try:
            return await system.execute_protected_operation(operation, body, enrich_current_span=True)
        except EngineCancelledError as own:
            raise _as_it_was(own) from None

    def run_sync(self, operation: str, body: Callable[[], Any]) -> Any:
        """Run a sync call in the calling thread; one that returns an awaitable is over when it does."""
        if _protected():
            return body()
        system = (self._running or self._start()).system
        try:
            return system.execute_protected_operation_sync(
                operation, lambda: (body(),), enrich_current_span=True
            )[0]
        except EngineCancelledError as own:
            raise _as_it_was(own) from None

    def stop(self) -> None:
        """Shut the system down in the background; a call that comes later starts another one."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.end()

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
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="llmkg-protection", daemon=True)
        self._thread.start()
        atexit.register(self._exit)

    def end(self) -> None:
        """Begin to shut down: calls in flight end by themselves or are cancelled after their time."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ending.set)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self.system:
            await self._ending.wait()

    def _exit(self) -> None:
        """Shut down at exit; threads that still call are not waited for, since the interpreter does not."""
        if self._process != os.getpid() or self._loop.is_closed():
            return
        if len(self.system.calls):
            self._loop.call_soon_threadsafe(self.system.force_shutdown)
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


os.register_at_fork(after_in_child=_forget_all)


def _as_it_was(error: EngineCancelledError) -> BaseException:
    """Return what the engine raised: its caller knows nothing of this layer, and may wait for just that."""
    return error.__cause__ or error
