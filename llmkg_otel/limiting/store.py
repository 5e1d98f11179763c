"""The store that all instances share, reached from a thread of its own: nobody waits for it for long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from llmkg_otel._storage import STORE_SECONDS, clients_of, open_async_storage

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

__all__ = ["KEY_PREFIX", "RETRY_SECONDS", "RateStore", "script_source"]

KEY_PREFIX = "llmkg:{rates}:"
"""In braces: all keys are in one slot of a cluster, so that one script can decide all rules of a call.

Every call meets the global limit, whose one key is on one node; the others cost that node little more."""

RETRY_SECONDS = 1.0
"""After a failure the store is left alone, and asked again this often, in the background."""

CONNECT_SECONDS = 2.0
"""How long `connect` may take, which no call waits for: the first use of a client is slow."""

_BATCH = 128

_log = logging.getLogger(__name__)

Script = Literal["decide", "lease"]


@dataclass(frozen=True, slots=True)
class _Question:
    script: Script
    keys: Sequence[str]
    arguments: Sequence[object]
    answer: Future[list[Any] | None] = field(default_factory=Future)

    def tell(self, answer: list[Any] | None) -> None:
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(answer)


class RateStore:
    """Runs Lua scripts on a store that a URI of `limits` names. For any thread and any loop.

    The client is asyncio's, on a loop and daemon thread of its own, begun with the first question: so it
    serves tasks and threads alike, and a caller's blocked loop makes no store look slow. Questions that
    come while others are answered go out together, in one exchange. One that fails, or takes longer than
    STORE_SECONDS, takes the store `down` until a ping succeeds: while it is down nobody waits.
    """

    def __init__(self, uri: str) -> None:
        storage: Any = open_async_storage(uri, KEY_PREFIX)
        self._client = storage.bridge.get_connection()
        self._scripts = {name: self._client.register_script(script_source(name)) for name in _SCRIPTS}
        self._queue: deque[_Question] = deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._asked = asyncio.Event()
        self._retry: asyncio.Task[None] | None = None
        self.down = False

    def ask(self, script: Script, keys: Sequence[str], arguments: Sequence[object]) -> Future[Any]:
        """Put a question; its answer is the script's, None for a failure. Never blocks."""
        question = _Question(script, keys, arguments)
        self._queue.append(question)
        loop = self._loop or self._begun()
        if not self._asked.is_set():
            with contextlib.suppress(RuntimeError):  # closed: whoever asks waits in vain, as for a slow store
                loop.call_soon_threadsafe(self._asked.set)
        return question.answer

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin some other work on the store's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop or self._begun())

    async def connect(self) -> None:
        """Connect before the first call needs it. On the store's loop; never raises."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._load()
        except Exception as error:  # noqa: BLE001 - whatever keeps it from answering
            self._failed(error)

    def close(self) -> None:
        """End the thread and close the connections; what is asked from now on is not answered.

        Blocks for 0.1 s at most.
        """
        with self._lock:
            self.down = True
            if self._loop is None or self._thread is None or self._thread is threading.current_thread():
                return
            with contextlib.suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2 * STORE_SECONDS)

    def _begun(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._live, args=(loop,), name="llmkg-rate-store", daemon=True
                )
                self._thread.start()
                self._loop = loop
            return self._loop

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(self._answer_all())
        loop.run_forever()
        loop.run_until_complete(self._disconnect())
        loop.close()

    async def _answer_all(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
                answers = [None] * len(batch) if self.down else await self._exchange(batch)
                for question, answer in zip(batch, answers, strict=True):
                    question.tell(answer)

    async def _exchange(self, batch: Sequence[_Question]) -> Sequence[list[Any] | None]:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                answers = await self._run(batch)
                if any(type(answer).__name__ == "NoScriptError" for answer in answers):
                    await self._load()  # the server was started again, or is another one
                    answers = await self._run(batch)
        except Exception as error:  # noqa: BLE001 - whatever keeps it from answering
            answers = [error] * len(batch)
        for answer in answers:
            if isinstance(answer, Exception):
                self._failed(answer)
        return [None if isinstance(answer, Exception) else answer for answer in answers]

    async def _run(self, batch: Sequence[_Question]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for each in batch:
            sha = self._scripts[each.script].sha
            pipeline.execute_command("EVALSHA", sha, len(each.keys), *each.keys, *each.arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _load(self) -> None:
        for script in self._scripts.values():
            await self._client.script_load(script.script)

    async def _disconnect(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(STORE_SECONDS):
                await asyncio.gather(*others, return_exceptions=True)
                for client in clients_of(self._client):
                    await client.aclose()
        while self._queue:
            self._queue.popleft().tell(None)

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


_SCRIPTS: tuple[Script, ...] = ("decide", "lease")


def script_source(script: str) -> str:
    """Return a script's text."""
    return files(__package__).joinpath("lua", f"{script}.lua").read_text(encoding="ascii")
