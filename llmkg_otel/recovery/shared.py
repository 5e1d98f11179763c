"""Circuits shared by all processes of a fleet, through Redis or Valkey; every decision stays local.

A closed circuit asks nobody and tells nothing. What opens or closes one is told to the store, which
tells everybody; an open one asks the store for the fleet's one probe. While the store is down, or slow,
each process goes on alone, and merges what has happened meanwhile when it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from random import random as random_fraction
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llmkg_otel.config import RetryConfig
from llmkg_otel.recovery.backoff import backoff_seconds
from llmkg_otel.recovery.fleet import FLEET_SECONDS, Permission
from llmkg_otel.recovery.store import CircuitStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.config import CircuitSharingConfig
    from llmkg_otel.recovery.breaker import CircuitBreaker
    from llmkg_otel.recovery.store import Verb, Word

    Submit = Callable[[Callable[[], Any]], Future[Any] | None]

__all__ = ["SharedCircuit", "SharedCircuits"]

MAX_JOBS = 1000
"""Exchanges that may wait for the store; one more, and it counts as down."""

STOP_SECONDS = 1.0
RECONNECT = RetryConfig(base_delay_ms=100, max_delay_ms=2000, jitter_factor=0.5)

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BEING_ASKED: Future[Permission] = Future()
_BEING_ASKED.set_result(Permission(None, FLEET_SECONDS))


class SharedCircuit:
    """One circuit's line to the fleet (a `Fleet`): what it asks and tells, and what it hears.

    Thread-safe. The fence of the last word that was heard tells which words are older.
    """

    def __init__(self, breaker: CircuitBreaker, store: CircuitStore, submit: Submit) -> None:
        self._breaker = breaker
        self._store = store
        self._submit = submit
        self._lock = threading.Lock()
        self._fence = 0
        self._untold: float | None = None
        self._asked: Future[Permission] | None = None

    def request_probe(self) -> Future[Permission] | None:
        """Ask for the fleet's one probe; None while the store is down.

        One call at a time asks: of those that come meanwhile none could have it.
        """
        if self._asked is not None and not self._asked.done():
            return _BEING_ASKED
        self._asked = self._submit(self._ask)
        return self._asked

    def opened(self, token: int | None) -> None:
        """Tell that the circuit opened here; if that cannot be told now, the next `merge` will."""
        self._untold = opened_at = time.monotonic()
        self._submit(partial(self._tell_opened, opened_at, token or 0))

    def succeeded(self, token: int) -> None:
        """Tell that the probe with this token succeeded."""
        self._submit(partial(self._report, "succeeded", token))

    def released(self, token: int) -> None:
        """Give a probe back that says nothing."""
        self._submit(partial(self._report, "released", token))

    def hear(self, word: Word) -> None:
        """Adopt the state that the store tells, unless it is older than what it told before."""
        with self._lock:
            if word.fence < self._fence:
                return
            self._fence = word.fence
            if word.state == "open":
                self._breaker.adopt_open(word.wait)
            elif word.state == "closed" and self._breaker.state != "closed":
                self._breaker.adopt_closed()

    def merge(self) -> None:
        """Bring circuit and store together, after they have lost sight of each other.

        What happened last holds: an opening that could not be told is told now, unless the fleet's
        circuit has opened or closed since; a store that knows nothing learns of an open circuit.
        """
        self._fence = 0  # another store may have taken over, with a clock that is behind
        word = self._exchange("look")
        if self._breaker.state not in ("open", "half_open"):
            self._untold = None  # it has closed since, by its own probes or by hand
        if (opened_at := self._untold) is not None:
            self._tell_opened(opened_at, 0)
        elif word.state == "absent" and self._breaker.state in ("open", "half_open"):
            age = self._breaker.config.recovery_timeout - (self._breaker.retry_after or 0.0)
            self.hear(self._exchange("trip", age=age))
        else:
            self.hear(word)

    def _ask(self) -> Permission:
        word = self._exchange("probe")
        if word.token:
            with self._lock:
                self._fence = max(self._fence, word.fence)
            return Permission(word.token)
        if word.state == "closed":
            self.hear(word)
        return Permission(None, word.wait)

    def _tell_opened(self, opened_at: float, token: int) -> None:
        word = self._exchange("trip", token=token, age=time.monotonic() - opened_at)
        if self._untold == opened_at:
            self._untold = None
        self.hear(word)

    def _report(self, verb: Verb, token: int) -> None:
        word = self._exchange(verb, token=token)
        if word.state == "closed":  # an open circuit is still on trial here
            self.hear(word)

    def _exchange(self, verb: Verb, *, token: int = 0, age: float = 0.0) -> Word:
        return self._store.exchange(verb, self._breaker.name, self._breaker.config, token=token, age=age)


class SharedCircuits:
    """The circuits of one system and their store, with a thread that asks and one that listens.

    Both are daemons; no caller waits for them, but for the answer to a probe, FLEET_SECONDS at most.
    `status` is primary while the store answers in time, else fallback: each failure is followed by new
    attempts, with back off, and a merge. Raises ConfigurationError for a URI that cannot be used. Logs
    a warning when the store is lost and an info when it is back.
    """

    def __init__(self, config: CircuitSharingConfig, random: Callable[[], float] = random_fraction) -> None:
        assert config.storage_uri is not None  # noqa: S101 - whoever shares has said where
        self.status: Literal["primary", "fallback"] = "fallback"
        self._store = CircuitStore(config.storage_uri.get_secret_value(), config.key_prefix)
        self._random = random
        self._circuits: dict[str, SharedCircuit] = {}
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._lost = False
        self._tried, self._stopping = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"llmkg-circuits-{what}", daemon=True)
            for what, run in (("listen", self._listen), ("ask", self._work))
        ]

    def join(self, breaker: CircuitBreaker) -> SharedCircuit:
        """Share a breaker's circuit, by its name, from now on."""
        circuit = self._circuits[breaker.name] = SharedCircuit(breaker, self._store, self._submit)
        self._submit(circuit.merge)
        return circuit

    def start(self) -> None:
        """Begin, and wait for the first attempt to reach the store, STOP_SECONDS at most."""
        for thread in self._threads:
            thread.start()
        self._tried.wait(STOP_SECONDS)

    def stop(self) -> None:
        """Tell the store what is still to be told, and end; waits STOP_SECONDS at most for each thread."""
        self._stopping.set()
        self._jobs.put(None)
        for thread in self._threads[::-1]:
            if thread.ident is not None:
                thread.join(STOP_SECONDS)
        if not any(thread.is_alive() for thread in self._threads):
            self._store.close()

    def _submit(self, work: Callable[[], T]) -> Future[T] | None:
        """Queue an exchange; None if it cannot be made now."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()
        with self._lock:
            if self.status == "fallback":
                return None
            if self._jobs.qsize() < MAX_JOBS:
                self._jobs.put((work, done))
                return done
        self._lose(OverflowError(f"more than {MAX_JOBS} exchanges are waiting"))
        return None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(*job)
        self._run_remaining()  # probes that calls have given back at the end, and what that brings
        with self._lock:
            self.status = "fallback"
        self._run_remaining()

    def _run_remaining(self) -> None:
        with suppress(Empty):
            while (job := self._jobs.get_nowait()) is not None:
                self._run(*job)

    def _run(self, work: Callable[[], T], done: Future[T]) -> None:
        try:
            if self.status == "fallback":
                raise ConnectionError("the store is not reached")  # noqa: TRY301 - as if it had been tried
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, the store is of no use now
            done.set_exception(error)
            self._lose(error)

    def _listen(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._store.subscribed() as next_word:
                    self._found()
                    failures = 0
                    while self.status == "primary" and not self._stopping.is_set():
                        if (word := next_word()) is not None and word.circuit in self._circuits:
                            self._circuits[word.circuit].hear(word)
            except Exception as error:  # noqa: BLE001
                self._lose(error)
            self._tried.set()
            failures += 1
            self._stopping.wait(backoff_seconds(RECONNECT, failures, self._random))

    def _found(self) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self.status = "primary"  # before the merge: what happens from now on is told by itself
        for circuit in tuple(self._circuits.values()):
            circuit.merge()
        if self._lost:
            self._lost = False
            _log.info("circuit sharing: the store is back")
        self._tried.set()

    def _lose(self, error: Exception) -> None:
        with self._lock:
            self.status = "fallback"
            known, self._lost = self._lost, True
        if not known and not self._stopping.is_set():
            _log.warning("circuit sharing: the store is not reached (%s): each process decides alone", error)
