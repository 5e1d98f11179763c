"""The store that all instances share, reached from a thread of its own: nobody waits for it for long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmkg_otel._storage import STORE_SECONDS, open_async_storage

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from concurrent.futures import Future

__all__ = ["KEY_PREFIX", "RETRY_SECONDS", "RateStore"]

KEY_PREFIX = "llmkg:{rates}:"
"""In braces: all keys are in one slot of a cluster, so that one script can decide all rules of a call.

Every call meets the global limit, whose one key is on one node; the others cost that node little more."""

RETRY_SECONDS = 1.0
"""After a failure the store is left alone, and asked again this often, in the background."""

_CONNECTIONS = 16

_log = logging.getLogger(__name__)


class RateStore:
    """Runs Lua scripts on a store that a URI of `limits` names. For any thread and any loop.

    The client is asyncio's, on a loop and daemon thread of its own, started with the first script: so
    one pool of connections serves tasks and threads alike, and a caller's blocked loop makes no store
    look slow. A script that fails, or takes longer than STORE_SECONDS, takes the store `down` until a
    ping succeeds: while it is down nobody waits.
    """

    def __init__(self, uri: str) -> None:
        client: Any = open_async_storage(uri, KEY_PREFIX)
        self._client = client.bridge.get_connection()
        self._scripts = {name: self._client.register_script(_source(name)) for name in ("decide", "lease")}
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._retry: asyncio.Task[None] | None = None
        self.down = False

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> list[Any] | None:
        """Run a script on the store's loop and return its answer, None for a failure."""
        try:
            async with asyncio.timeout(STORE_SECONDS), self._slots:
                answer: list[Any] = await self._scripts[script](keys=keys, args=arguments)
        except Exception as error:  # noqa: BLE001 - whatever keeps it from answering
            self._failed(error)
            return None
        return answer

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin some work on the store's loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="llmkg-rate-store", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End the thread and close the connections. Blocks for STORE_SECONDS at most, and little more."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop, self.down = None, True
        if loop is None or thread is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._disconnect(), loop).result(2 * STORE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(1.0)
        loop.close()

    async def _disconnect(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=STORE_SECONDS) if others else None
        async with asyncio.timeout(STORE_SECONDS):
            await self._client.aclose()

    def _failed(self, error: Exception) -> None:
        if not self.down:
            self.down = True
            _log.warning("the store of the rate limits is down: %s", type(error).__name__)
            self._retry = asyncio.ensure_future(self._until_it_answers())

    async def _until_it_answers(self) -> None:
        while self.down:
            await asyncio.sleep(RETRY_SECONDS)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(STORE_SECONDS):
                    await self._client.ping()
                self.down = False
                _log.warning("the store of the rate limits answers again")


def _source(script: str) -> str:
    return files(__package__).joinpath("lua", f"{script}.lua").read_text(encoding="ascii")
