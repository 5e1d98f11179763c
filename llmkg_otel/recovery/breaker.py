"""A circuit breaker: pybreaker's states and storage, our own admission.

pybreaker holds its lock while the guarded function runs (8 threads of 0.1 s took 0.8 s), so only its
state machine is used: a call is admitted under a short lock, runs outside it, and reports back.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pybreaker

from llmkg_otel.errors import CircuitOpenError, error_type
from llmkg_otel.events import BreakerTransitioned, Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.config import CircuitBreakerConfig

__all__ = ["CircuitBreaker", "Ticket"]

CLOSED = pybreaker.STATE_CLOSED
OPEN = pybreaker.STATE_OPEN
HALF_OPEN = pybreaker.STATE_HALF_OPEN


class Ticket:
    """Permission for one attempt; given back exactly once, with its outcome.

    `epoch` tells results of an earlier state from those of the present one. A half-open probe is a
    lease: past `expires_at` another may take its place, should its holder never come back.
    """

    __slots__ = ("epoch", "expires_at")

    def __init__(self, epoch: int, expires_at: float = math.inf) -> None:
        self.epoch = epoch
        self.expires_at = expires_at


Moves = list[tuple[str, str]]


class _Transitions(pybreaker.CircuitBreakerListener):
    """Collects pybreaker's notifications, so that observers hear them after the lock is dropped."""

    def __init__(self) -> None:
        self.moves: Moves = []

    def state_change(self, _cb: object, old: Any, new: Any) -> None:
        self.moves.append((_name(old.name), _name(new.name)))

    def taken(self) -> Moves:
        moves, self.moves = self.moves, []
        return moves


class _TrippedError(Exception):
    """Stands in for the failure: pybreaker raises what trips it, and would lengthen its traceback."""


def _name(state: str) -> str:
    return state.replace("-", "_")


class CircuitBreaker:
    """Refuses attempts while an operation keeps failing. For tasks and threads alike.

    `try_admit` before an attempt; then exactly one of `succeeded`, `failed` or `ignored`. Emits
    BreakerTransitioned after each change of state, outside the lock. Times are of the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._observer = observer
        self._clock = clock
        self._config = config
        self._lock = threading.Lock()
        self._transitions = _Transitions()
        self._storage = pybreaker.CircuitMemoryStorage(CLOSED)
        self._probes: list[Ticket] = []
        self._opened_at = 0.0
        self._override: str | None = None
        self._ticket = Ticket(0)
        self._door: Ticket | None = self._ticket
        self._first_tries = self._recoveries = self._failures = self._ignored = self._rejected = 0
        self.configure(config)

    def configure(self, config: CircuitBreakerConfig) -> None:
        """Apply new thresholds and times; state and counts stay as they are."""
        with self._lock:
            before, self._config = self.state, config
            self._circuit = pybreaker.CircuitBreaker(
                fail_max=config.failure_threshold,
                reset_timeout=config.recovery_timeout,
                success_threshold=config.success_threshold,
                listeners=[self._transitions],
                state_storage=self._storage,
                name=self.name,
                throw_new_error_on_trip=False,
            )
            moves = self._moved_from(before)
        self._announce(moves)

    @property
    def state(self) -> str:
        """One of closed, open, half_open, forced_open, disabled."""
        if self._override is not None:
            return self._override
        return _name(self._storage.state) if self._config.enabled else "disabled"

    @property
    def consecutive_failures(self) -> int:
        """Failures since the last success, while closed."""
        return int(self._storage.counter)

    @property
    def calls(self) -> Mapping[str, int]:
        """Attempts since the start, by outcome: success, failure, ignored, rejected."""
        with self._lock:
            return {
                "success": self._first_tries + self._recoveries,
                "failure": self._failures,
                "ignored": self._ignored,
                "rejected": self._rejected,
            }

    @property
    def first_tries(self) -> int:
        """Calls whose first attempt returned: counted here, where a lock is held anyway."""
        return self._first_tries

    def admit(self) -> Ticket:
        """Return the ticket for one attempt, or raise CircuitOpenError with the time to come back."""
        door = self._door
        if door is not None:
            return door
        with self._lock:
            ticket, wait = self._admit_unless_open(self._clock())
            self._rejected += ticket is None
            moves = self._transitions.taken()
        self._announce(moves)
        if ticket is None:
            raise CircuitOpenError(
                f"{self.name} has been failing: its circuit is {self.state.replace('_', ' ')}",
                operation=self.name,
                scope="circuit_breaker",
                limit=f"{self._config.failure_threshold} consecutive failures",
                retry_after=wait,
            )
        return ticket

    def _admit_unless_open(self, now: float) -> tuple[Ticket | None, float | None]:
        if self._door is not None:  # opened while this call waited for the lock
            return self._door, None
        if self._override == "forced_open":
            return None, None
        if self._storage.state == OPEN:
            wait = self._opened_at + self._config.recovery_timeout - now
            if wait > 0:
                return None, wait
            self._change(self._circuit.half_open)
        return self._lend_probe(now)

    def _lend_probe(self, now: float) -> tuple[Ticket | None, float | None]:
        self._probes = [p for p in self._probes if p.expires_at > now]
        if len(self._probes) >= self._config.half_open_max_probes:
            return None, min(p.expires_at for p in self._probes) - now
        probe = Ticket(self._ticket.epoch, now + self._config.timeout)
        self._probes.append(probe)
        return probe, None

    def succeeded(self, ticket: Ticket, *, first: bool) -> None:
        """Report an attempt that returned, and whether it was its call's first."""
        with self._lock:
            if first:
                self._first_tries += 1
            else:
                self._recoveries += 1
            if not self._returned(ticket) or (ticket is self._ticket and self._storage.counter == 0):
                return
            self._storage.reset_counter()
            self._change(self._circuit.state.on_success)
            moves = self._transitions.taken()
        self._announce(moves)

    def failed(self, ticket: Ticket, error: Exception) -> None:
        """Report an attempt that failed in a way that speaks against the engine."""
        with self._lock:
            self._failures += 1
            if not self._returned(ticket):
                return
            self._storage.increment_counter()
            self._change(self._circuit.state.on_failure, _TrippedError())
            moves = self._transitions.taken()
        self._announce(moves, error)

    def ignored(self, ticket: Ticket) -> None:
        """Report an attempt that says nothing of the engine: cancelled, or the caller's mistake."""
        with self._lock:
            self._ignored += 1
            self._returned(ticket)

    def force_open(self) -> None:
        """Refuse every attempt until `reset`, whatever the outcomes."""
        self._set_override("forced_open")

    def disable(self) -> None:
        """Admit every attempt until `reset`, whatever the outcomes."""
        self._set_override("disabled")

    def reset(self) -> None:
        """End an override and close the circuit."""
        self._set_override(None)
        with self._lock:
            self._storage.reset_counter()
            if self._storage.state != CLOSED:
                self._change(self._circuit.close)
            moves = self._transitions.taken()
        if self._config.enabled:  # else it was and stays disabled
            self._announce(moves)

    def _set_override(self, override: str | None) -> None:
        with self._lock:
            before, self._override = self.state, override
            moves = self._moved_from(before)
        self._announce(moves)

    def _moved_from(self, before: str) -> Moves:
        if self.state == before:
            return []
        self._begin_epoch()
        return [(before, self.state)]

    def _returned(self, ticket: Ticket) -> bool:
        """Take a ticket back; say whether its outcome counts in the present state."""
        if ticket in self._probes:
            self._probes.remove(ticket)
        counts = self._override is None and self._config.enabled
        return counts and ticket.epoch == self._ticket.epoch

    def _change(self, step: Callable[..., object], *failure: Exception) -> None:
        """Let pybreaker take a step."""
        before = self._storage.state
        with suppress(_TrippedError):
            step(*failure)
        if self._storage.state == before:
            return
        if self._storage.state == OPEN:
            self._opened_at = self._clock()
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """Make every ticket that is out void: its outcome says nothing of the state that begins."""
        self._ticket = Ticket(self._ticket.epoch + 1)
        self._probes = []
        self._set_door()

    def _set_door(self) -> None:
        """Publish the ticket that everybody gets while nothing holds calls back; else None.

        `admit` reads it without the lock: a call may see a state that ended a moment ago, as it would
        have had it come a moment earlier, and its ticket's epoch keeps its outcome out of the new one.
        """
        self._door = self._ticket if self.state in ("closed", "disabled") else None

    def _announce(self, moves: Moves, error: Exception | None = None) -> None:
        kind = None if error is None else error_type(error)
        for previous, state in moves:
            self._observer.on_event(BreakerTransitioned(self.name, previous, state, kind))
