"""Circuits shared by all processes of a fleet, through Redis or Valkey; every decision stays local.

A closed circuit asks nobody and tells nothing. What opens or closes one is told to the store, which
tells everybody; an open one asks the store for the fleet's one probe. While the store is away each
process goes on alone; when it is back, the later transition holds for all.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from random import random as random_fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmkg_otel.config import RetryConfig
from llmkg_otel.recovery.backoff import backoff_seconds
from llmkg_otel.recovery.fleet import FLEET_SECONDS, NO_WORD, Permission
from llmkg_otel.recovery.store import CircuitStore, Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.config import CircuitSharingConfig
    from llmkg_otel.recovery.breaker import CircuitBreaker
    from llmkg_otel.recovery.store import Verb, Word

    Heard = Callable[[Word | None], None]
    Transition = tuple[Verb, float]
    Submit = Callable[[Question, Heard], bool]

__all__ = ["SharedCircuit", "SharedCircuits"]

MAX_JOBS = 1000
"""Questions that may wait for the store; one more, and it counts as down."""

STOP_SECONDS = 1.0
SLOW_SECONDS = 60.0
"""How long an answer that came too late is told of: longer than most scrape intervals."""

RECONNECT = RetryConfig(base_delay_ms=100, max_delay_ms=2000, jitter_factor=0.5)

_log = logging.getLogger(__name__)


def _answer_of(permission: Permission) -> Future[Permission | None]:
    answer: Future[Permission | None] = Future()
    answer.set_result(permission)
    return answer


_BEING_ASKED = _answer_of(NO_WORD)

_STATES: dict[Verb, tuple[str, ...]] = {
    "trip": ("open", "half_open"),
    "recall": ("open", "half_open"),
    "close": ("closed",),
}
"""In which states of the breaker its last transition still holds: one by hand is told to nobody."""


class SharedCircuit:
    """One circuit's line to the fleet (a `Fleet`): what it asks and tells, and what it hears.

    Thread-safe. The fence of the last word that was heard tells which words are older. `_last` is the last
    transition as the store has to know it, when it comes back: its verb, and when it was. `_late` is the
    token of a probe that came when no call waited for it, for the next that asks until `_usable_until`.
    """

    def __init__(self, breaker: CircuitBreaker, submit: Submit) -> None:
        self._breaker = breaker
        self._submit = submit
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._fence = 0
        self._last: Transition | None = None
        self._answer: Future[Permission | None] | None = None
        self._usable_until = 0.0
        self._late: int | None = None
        self._ended = False
        self.met: Future[None] = Future()
        self.met.set_running_or_notify_cancel()  # from now on nobody can cancel it

    def request_probe(self) -> Future[Permission | None] | None:
        """Ask for the fleet's one probe; None while the store is away.

        One call at a time asks: of those that come meanwhile none could have it. Where the one that asked
        has given up, the next takes its place; a probe that came when nobody waited is the next call's at
        once. So a probe also comes where each answer is late.
        """
        with self._asking:
            if self._answer is not None and not self._answer.cancelled():
                return _BEING_ASKED
            if self._answer is None:
                if (token := self._take_late()) is not None:
                    return _answer_of(Permission(token))
                until = time.monotonic() + self._breaker.config.timeout
                if not self._submit(self._question("probe"), self._answered):
                    return None
                self._usable_until = until
            self._answer = Future()
            return self._answer

    def opened(self, token: int | None) -> None:
        """Tell that the circuit opened here; if that cannot be told now, the next `merge` will."""
        last: Transition = ("trip", time.monotonic())
        self._last = last
        self._submit(self._question(*last, token=token), partial(self._heard, last))

    def closed(self, token: int | None) -> None:
        """Tell that the circuit closed here; if that cannot be told now, the next `merge` will."""
        last: Transition = ("close", time.monotonic())
        self._last = last
        verb: Verb = "close" if token is None else "succeeded"
        self._submit(self._question(verb, last[1], token=token), partial(self._heard, last))
        self._give_back_late()

    def succeeded(self, token: int) -> None:
        """Tell that the probe with this token succeeded."""
        self._submit(self._question("succeeded", token=token), self._reported)

    def released(self, token: int) -> None:
        """Give a probe back that says nothing."""
        self._submit(self._question("released", token=token), self._reported)

    def hear(self, word: Word) -> None:
        """Adopt the state that the store tells, unless it is older than what it told before."""
        with self._lock:
            if word.fence < self._fence:
                return
            self._fence = word.fence
            self._forget_late(word.fence)
            if word.state == "open":
                if self._last is None or self._last[0] != "trip":  # else it has yet to be told
                    opened_at = time.monotonic() + word.wait - self._breaker.config.recovery_timeout
                    self._last = "recall", opened_at
                self._breaker.adopt_open(word.wait)
            elif word.state == "closed" and self._breaker.state != "closed":
                self._last = None
                self._breaker.adopt_closed()

    def merge(self) -> tuple[Question, Heard]:
        """Return what brings circuit and store together, after they have lost sight of each other.

        The store is told of the last transition here, and the later of that and its own holds.
        """
        self._give_back_late()
        self._fence = 0  # another store may have taken over, with a clock that is behind
        last = self._last
        if last is None or self._breaker.state not in _STATES[last[0]]:
            return self._question("look"), partial(self._heard, None)
        return self._question(*last), partial(self._heard, last)

    def end(self) -> None:
        """Give a probe back that nobody has used yet, and those that still come."""
        with self._asking:
            self._ended = True
        self._give_back_late()

    def _answered(self, word: Word | None) -> None:
        """Hand the fleet's word on a probe to the call that waits for it, or keep the probe for the next."""
        permission = None
        if word is not None:
            granted = word.token > 0
            permission = Permission(word.token if granted else None, word.wait, lent=word.token < 0)
            if word.state == "closed":
                self.hear(word)
            elif granted:
                with self._lock:
                    self._fence = max(self._fence, word.fence)
        with self._asking:
            answer, self._answer = self._answer, None
            if answer is not None and answer.set_running_or_notify_cancel():
                answer.set_result(permission)
                return
            if permission is not None and permission.token == self._fence:  # nothing has happened since
                self._late = permission.token
            ended = self._ended
        if ended:
            self._give_back_late()

    def _take_late(self) -> int | None:
        """Return the probe that came late, unless its lease is nearly over, and have the lease begin anew.

        It is kept for as long as an attempt may take, from when it was asked for. The store lends it for
        AWAY_SECONDS more: as long as the news may take that it is used, or the store is away.
        """
        token = self._late
        if token is not None and time.monotonic() >= self._usable_until:
            self._late = token = None
        if token is None or not self._submit(self._question("used", token=token), self._reported):
            return None
        self._late = None
        return token

    def _give_back_late(self) -> None:
        with self._asking:
            token, self._late = self._late, None
        if token is not None:
            self.released(token)

    def _forget_late(self, fence: int) -> None:
        """Forget a late probe if the circuit has moved on since, which ended its lease."""
        with self._asking:
            if self._late is not None and self._late < fence:
                self._late = None

    def _heard(self, told: Transition | None, word: Word | None) -> None:
        """Adopt what the store says after it was told of a transition, which it now knows."""
        if word is not None:
            if told is not None and told[0] == "trip" and self._last is told:
                self._last = "recall", told[1]
            self.hear(word)
        self.meet()

    def meet(self) -> None:
        """Let the breaker go on: the fleet's first word has been heard, or cannot be had."""
        with suppress(InvalidStateError):  # it was done before
            self.met.set_result(None)

    def _reported(self, word: Word | None) -> None:
        if word is not None and word.state == "closed":  # an open circuit is still on trial here
            self.hear(word)

    def _question(self, verb: Verb, at: float | None = None, *, token: int | None = None) -> Question:
        return Question(verb, self._breaker.name, self._breaker.config, token or 0, at)


class _Job(NamedTuple):
    question: Question
    heard: Heard
    asked: float


class SharedCircuits:
    """The circuits of one system and their store, with a thread that asks and one that listens.

    Both are daemons; no caller waits for them, but for the answer to a probe, FLEET_SECONDS at most.
    Questions that come while others are answered go out together, in one round trip. `status` is primary
    while the store answers in time; slow for SLOW_SECONDS after an answer that came too late for the call
    that waited for it; else fallback: each failure is followed by new attempts, with back off, and a merge.
    Raises ConfigurationError for a URI that cannot be used. Logs a warning when the store is lost and an
    info when it is back.
    """

    def __init__(self, config: CircuitSharingConfig, random: Callable[[], float] = random_fraction) -> None:
        assert config.storage_uri is not None  # noqa: S101 - whoever shares has said where
        self._store = CircuitStore(config.storage_uri.get_secret_value(), config.key_prefix)
        self._random = random
        self._circuits: dict[str, SharedCircuit] = {}
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._reached = self._lost = False
        self._slow_until = 0.0
        self._tried, self._stopping = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"llmkg-circuits-{what}", daemon=True)
            for what, run in (("listen", self._listen), ("ask", self._work))
        ]

    @property
    def status(self) -> Literal["primary", "slow", "fallback"]:
        """How the store is."""
        if not self._reached:
            return "fallback"
        return "slow" if time.monotonic() < self._slow_until else "primary"

    def join(self, breaker: CircuitBreaker) -> SharedCircuit:
        """Share a breaker's circuit, by its name, from now on."""
        circuit = self._circuits[breaker.name] = SharedCircuit(breaker, self._submit)
        if not self._submit(*circuit.merge()):
            circuit.meet()
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

    def _submit(self, question: Question, heard: Heard) -> bool:
        """Queue a question; False if it cannot be put now."""
        with self._lock:
            if not self._reached:
                return False
            if self._jobs.qsize() < MAX_JOBS:
                self._jobs.put(_Job(question, heard, time.monotonic()))
                return True
        self._lose(OverflowError(f"more than {MAX_JOBS} questions are waiting"))
        return False

    def _work(self) -> None:
        going_on = True
        while going_on:
            jobs = [self._jobs.get(), *self._queued()]
            going_on = None not in jobs
            self._exchange(jobs)
        for circuit in tuple(self._circuits.values()):
            circuit.end()
        while jobs := self._queued():  # probes that were given back at the end, and what that brings
            self._exchange(jobs)
        with self._lock:
            self._reached = False
        self._exchange(self._queued())

    def _queued(self) -> list[_Job | None]:
        jobs = []
        with suppress(Empty):
            while True:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _exchange(self, queued: list[_Job | None]) -> None:
        """Put these questions in one round trip, and let each who asked hear the answer: None for none."""
        jobs = [job for job in queued if job is not None]
        words: list[Word | None] = [None] * len(jobs)
        if jobs and self._reached:
            try:
                words = [*self._store.exchange([job.question for job in jobs])]
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is of no use now
                self._lose(error)
            else:
                self._note_time(jobs)
        for job, word in zip(jobs, words, strict=True):
            job.heard(word)

    def _note_time(self, jobs: list[_Job]) -> None:
        now = time.monotonic()
        if now - jobs[0].asked > FLEET_SECONDS:
            if self.status == "primary":
                _log.warning(
                    "circuit sharing: the store answers late: a call asks for a probe, a later one is it"
                )
            self._slow_until = now + SLOW_SECONDS

    def _listen(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._store.subscribed() as next_word:
                    self._found()
                    failures = 0
                    while self._reached and not self._stopping.is_set():
                        if (word := next_word()) is not None and word.circuit in self._circuits:
                            self._circuits[word.circuit].hear(word)
            except Exception as error:  # noqa: BLE001
                self._lose(error)
            self._tried.set()
            failures += 1
            self._stopping.wait(backoff_seconds(RECONNECT, failures, self._random))

    def _found(self) -> None:
        self._store.prepare()
        with self._lock:
            if self._stopping.is_set():
                return
            self._reached = True  # before the merge: what happens from now on is told by itself
        merges = [circuit.merge() for circuit in tuple(self._circuits.values())]
        if merges:
            words = self._store.exchange([question for question, _ in merges])
            for (_, heard), word in zip(merges, words, strict=True):
                heard(word)
        if self._lost:
            self._lost = False
            _log.info("circuit sharing: the store is back")
        self._tried.set()

    def _lose(self, error: Exception) -> None:
        with self._lock:
            self._reached = False
            known, self._lost = self._lost, True
        if not known and not self._stopping.is_set():
            _log.warning("circuit sharing: the store is not reached (%s): each process decides alone", error)
