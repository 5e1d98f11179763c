"""A circuit breaker: pybreaker's states and storage, our own admission.

pybreaker holds its lock while the guarded function runs (8 threads of 0.1 s took 0.8 s), so only its
state machine is used: a call is admitted under a short lock, runs outside it, and reports back.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from llmkg_otel.errors import CircuitOpenError, error_type
from llmkg_otel.events import BreakerTransitioned, Observer
from llmkg_otel.recovery.circuit import Circuit, Moves
from llmkg_otel.recovery.failures import every_is
from llmkg_otel.recovery.fleet import ask, ask_sync, meet, meet_sync
from llmkg_otel.recovery.patience import LEAST_SECONDS, patience_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.config import CircuitBreakerConfig
    from llmkg_otel.recovery.fleet import Fleet, Permission

__all__ = ["CircuitBreaker", "Ticket"]


class Ticket:
    """Permission for one attempt; given back exactly once, with its outcome.

    `epoch` tells results of an earlier state from those of the present one. A half-open probe is a
    lease: past `expires_at` another may take its place, should its holder never come back. `token` is
    the fleet's, if it lent the probe.
    """

    __slots__ = ("epoch", "expires_at", "token")

    def __init__(self, epoch: int, expires_at: float = math.inf, token: int | None = None) -> None:
        self.epoch = epoch
        self.expires_at = expires_at
        self.token = token


class CircuitBreaker:
    """Refuses attempts while an operation keeps failing. For tasks and threads alike.

    `admit` before an attempt; then exactly one of `succeeded`, `failed` or `ignored`. `door` is the
    ticket that everybody gets, without asking, while nothing holds calls back; else None. Emits
    BreakerTransitioned after each change of state, outside the lock and in the context that caused it: those
    of two threads may cross. Times are of the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._fleet: Fleet | None = None
        self._observer = observer
        self._clock = clock
        self._config = config
        self._lock = threading.Lock()
        self._circuit = Circuit(name, config, clock)
        self._counts = False
        self._probes: list[Ticket] = []
        self._override: str | None = None
        self._ticket = Ticket(0)
        self.door: Ticket | None = None
        self._first_tries = self._recoveries = self._failures = self._ignored = self._rejected = 0
        self._set_door()

    def configure(self, config: CircuitBreakerConfig) -> None:
        """Apply new thresholds and times; state and counts stay as they are."""
        with self._lock:
            before, self._config = self.state, config
            self._circuit.configure(config)
            moves = self._moved_from(before)
        self._announce(moves)

    @property
    def fleet(self) -> Fleet | None:
        """The same circuit in other processes: asked for probes, and told what happens here.

        The first calls wait until it is known how the circuit is there, FLEET_SECONDS at most.
        """
        return self._fleet

    @fleet.setter
    def fleet(self, fleet: Fleet | None) -> None:
        with self._lock:
            self._fleet = fleet
            self._set_door()
        if fleet is not None:
            fleet.met.add_done_callback(lambda _: self._enter())

    def _enter(self) -> None:
        with self._lock:
            self._set_door()

    @property
    def config(self) -> CircuitBreakerConfig:
        """The present thresholds and times."""
        return self._config

    @property
    def state(self) -> str:
        """One of closed, open, half_open, forced_open, disabled."""
        if self._override is not None:
            return self._override
        return self._circuit.state if self._config.enabled else "disabled"

    @property
    def consecutive_failures(self) -> int:
        """Failures since the last success, while closed."""
        return self._circuit.failures

    @property
    def opened_by(self) -> str | None:
        """What opened the circuit, in words, while it is open or half open; else None."""
        return self._circuit.opened_by if self._circuit.state != "closed" else None

    @property
    def rates(self) -> Mapping[str, float]:
        """Of the sliding window: its calls, and the shares that failed and were slow. Empty without one."""
        with self._lock:
            return self._circuit.rates

    @property
    def retry_after(self) -> float | None:
        """Seconds until an open circuit lets a probe through; None in any other state."""
        return self._circuit.retry_after(self._clock()) if self.state == "open" else None

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

    def patience(self, allowed: float) -> float:
        """Return from how many seconds on an attempt that was cut short is a failure (see patience.py)."""
        with self._lock:
            return patience_seconds(self._circuit.usual.seconds, allowed)

    async def admit(self, left: float = math.inf) -> Ticket:
        """Return the ticket for one attempt, or raise CircuitOpenError with the time to come back.

        Before a probe the fleet, if there is one, is asked, for FLEET_SECONDS at most, and no longer than
        the `left` seconds that the call has.
        """
        if self.door is None:
            left = await meet(self._fleet, left)
        return self.door or self._admit(now := self._clock(), await ask(self._asked(now), left))

    def admit_sync(self, left: float = math.inf) -> Ticket:
        """Do the same in the calling thread."""
        if self.door is None:
            left = meet_sync(self._fleet, left)
        return self.door or self._admit(now := self._clock(), ask_sync(self._asked(now), left))

    def _asked(self, now: float) -> Fleet | None:
        """Return the fleet if its word is needed: when this circuit is about to send a probe."""
        due = self.state in ("open", "half_open") and not self._circuit.retry_after(now)
        return self._fleet if due else None

    def _admit(self, now: float, word: Permission | None) -> Ticket:
        """Decide on a call that came at `now`: by then no probe was due, or the fleet was asked for one."""
        with self._lock:
            ticket, wait = self._admit_unless_open(now, word)
            self._rejected += ticket is None
            moves = self._circuit.taken()
        self._announce(moves)
        token = None if word is None else word.token
        if token is not None and (ticket is None or ticket.token != token):
            self._tell_fleet(token)  # the circuit has moved on while the fleet was asked
        if ticket is None:
            raise self._refusal(wait)
        return ticket

    def _refusal(self, wait: float | None) -> CircuitOpenError:
        state, by_hand = self.state.replace("_", " "), self._override is not None
        return CircuitOpenError(
            f"{self.name} {'was shut off' if by_hand else 'has been failing'}: its circuit is {state}",
            operation=self.name,
            scope="circuit_breaker",
            limit=None if by_hand else self._circuit.opened_by,
            retry_after=wait,
        )

    def _admit_unless_open(self, now: float, word: Permission | None) -> tuple[Ticket | None, float | None]:
        if self.state in ("closed", "disabled"):  # by now, or the fleet has not said in time how it is there
            return self._ticket, None
        if self._override == "forced_open":
            return None, None
        if word is not None and word.token is None:
            return None, self._until_returned(word.retry_after) if word.lent else word.retry_after
        if wait := self._circuit.retry_after(now):
            return None, wait
        if self._circuit.state == "open":
            self._step(self._circuit.half_open)
        return self._lend_probe(now, None if word is None else word.token)

    def _lend_probe(self, now: float, token: int | None) -> tuple[Ticket | None, float | None]:
        self._probes = [p for p in self._probes if p.expires_at > now]
        if token is None and len(self._probes) >= self._circuit.places:
            return None, self._until_returned(min(p.expires_at for p in self._probes) - now)
        probe = Ticket(self._ticket.epoch, now + self._config.timeout, token)
        self._probes.append(probe)
        return probe, None

    def _until_returned(self, lease: float) -> float:
        """Return when a probe that is out should be back, as far as is known: leases are for the worst."""
        usual = self._circuit.usual.seconds
        return lease if usual is None else min(lease, max(LEAST_SECONDS, usual))

    def succeeded(self, ticket: Ticket, *, first: bool, started: float = math.inf) -> None:
        """Report an attempt that returned; whether it was its call's first, and when it started."""
        now = self._clock()
        with self._lock:
            if first:
                self._first_tries += 1
            else:
                self._recoveries += 1
            if ticket is self._ticket:  # through the door
                circuit = self._circuit
                if now < circuit.calm_until and now - started < circuit.slow_from:
                    circuit.quick_successes += self._counts
                    return
                if not self._counts:
                    return
                self._step(circuit.succeeded, started)
            elif self._returned(ticket):
                self._step(self._circuit.probe_succeeded, started)
            moves = self._circuit.taken()
        self._announce(moves, ticket=ticket, succeeded=True)

    def failed(self, ticket: Ticket, error: Exception, *, started: float = math.inf) -> None:
        """Report an attempt that failed, and when it started; an excluded exception counts for nothing."""
        if every_is(error, self._config.excluded_exceptions):
            self.ignored(ticket)
            return
        with self._lock:
            self._failures += 1
            if self._returned(ticket):
                self._step(self._circuit.failed, started)
            moves = self._circuit.taken()
        self._announce(moves, error, ticket=ticket)

    def ignored(self, ticket: Ticket) -> None:
        """Report an attempt that says nothing of the engine: cancelled, or the caller's mistake."""
        with self._lock:
            self._ignored += 1
            self._returned(ticket)
        self._announce([], ticket=ticket)

    def force_open(self) -> None:
        """Refuse every attempt until `force_close`, whatever the outcomes. In this process."""
        self._set_override("forced_open")

    def disable(self) -> None:
        """Admit every attempt until `force_close`, whatever the outcomes. In this process."""
        self._set_override("disabled")

    def force_close(self) -> None:
        """End an override, close the circuit, and count from zero; with a fleet, close its circuit too.

        Else the fleet's next word would open it again. Overrides of other processes stay.
        """
        self._set_override(None)
        self.adopt_closed()
        if self._fleet is not None:
            self._fleet.closed(None)

    def adopt_closed(self) -> None:
        """Close the circuit: the fleet's is."""
        self._adopt(self._circuit.close)

    def adopt_open(self, retry_after: float) -> None:
        """Open the circuit, or keep it open, for so many seconds: the fleet's is open."""
        self._adopt(self._circuit.open, "failures in another process", retry_after)

    def _adopt(self, step: Callable[..., None], *arguments: object) -> None:
        with self._lock:
            self._step(step, *arguments)
            moves = self._circuit.taken()
        if self._override is None and self._config.enabled:  # else it was and stays what it was
            self._announce(moves, told=True)

    def _set_override(self, override: str | None) -> None:
        with self._lock:
            before, self._override = self.state, override
            moves = self._moved_from(before)
        self._announce(moves, told=True)

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

    def _step(self, step: Callable[..., None], *arguments: object) -> None:
        before = self._circuit.state
        step(*arguments)
        if self._circuit.state != before:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        """Make every ticket that is out void: its outcome says nothing of the state that begins."""
        self._ticket = Ticket(self._ticket.epoch + 1)
        self._probes = []
        self._circuit.clear_window()
        self._set_door()

    def _set_door(self) -> None:
        """Open or shut the door.

        It is read without the lock: a call may see a state that ended a moment ago, as it would have
        had it come a moment earlier, and its ticket's epoch keeps its outcome out of the new one.
        """
        state = self.state
        self._counts = state == "closed"
        known = state == "disabled" or self._fleet is None or self._fleet.met.done()
        self.door = self._ticket if known and state in ("closed", "disabled") else None

    def _announce(
        self,
        moves: Moves,
        error: Exception | None = None,
        *,
        ticket: Ticket | None = None,
        succeeded: bool = False,
        told: bool = False,
    ) -> None:
        """Tell observers of the moves, and the fleet of what it does not know yet."""
        kind = None if error is None else error_type(error)
        for previous, state in moves:
            self._observer.on_event(BreakerTransitioned(self.name, previous, state, kind))
        if self._fleet is None or told:
            return
        token, states = None if ticket is None else ticket.token, [state for _, state in moves]
        if "open" in states or (token is not None and error is not None):
            self._fleet.opened(token)
        elif "closed" in states:
            self._fleet.closed(token)
        elif token is not None:
            self._tell_fleet(token, succeeded=succeeded)

    def _tell_fleet(self, token: int, *, succeeded: bool = False) -> None:
        if self._fleet is not None:
            (self._fleet.succeeded if succeeded else self._fleet.released)(token)
