"""The circuit's own state: pybreaker's states and storage, fed with outcomes that were judged elsewhere."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pybreaker

from llmkg_otel.recovery.patience import Usual
from llmkg_otel.recovery.window import make_window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmkg_otel.config import CircuitBreakerConfig
    from llmkg_otel.recovery.window import Window

__all__ = ["Circuit", "Moves"]

ROUNDING = 1e-9
"""0.55 of 100 calls is 55.00000000000001 in binary."""

Moves = list[tuple[str, str]]
"""Changes of state, in order: (from, to)."""


class _Transitions(pybreaker.CircuitBreakerListener):
    """Collects pybreaker's notifications, so that observers hear them after the lock is dropped."""

    def __init__(self) -> None:
        self.moves: Moves = []

    def state_change(self, _cb: object, old: Any, new: Any) -> None:
        self.moves.append((_name(old.name), _name(new.name)))


class _TrippedError(Exception):
    """Stands in for the failure: pybreaker raises what trips it, and would lengthen its traceback."""


def _name(state: str) -> str:
    return state.replace("-", "_")


class Circuit:
    """Closed, open or half open, and why. Not locked: its breaker does that.

    Times are of the given monotonic clock; `opened_at` is 0 before the circuit has opened, and
    `opened_by` says in words what opened it. Until `calm_until`, a success of the closed circuit that
    took less than `slow_from` changes nothing but the number of them: `quick_successes`, where its breaker
    counts it without a call, since eight threads queue up behind one that loses the interpreter in a lock.
    """

    def __init__(self, name: str, config: CircuitBreakerConfig, clock: Callable[[], float]) -> None:
        self.name = name
        self.opened_at = 0.0
        self.opened_by: str | None = None
        self.usual = Usual()
        self.config = config
        self._clock = clock
        self._transitions = _Transitions()
        self._storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        self.window: Window | None = None
        self.quick_successes = 0
        self.configure(config)

    def configure(self, config: CircuitBreakerConfig) -> None:
        """Apply new thresholds; state and counts stay, and the window if it is of the same kind."""
        if self.window is None or _window_of(self.config) != _window_of(config):
            self.window = make_window(config)
            self.quick_successes = 0
        self.config = config
        self._failed_share = config.failure_rate_threshold or math.inf
        self._slow_share = config.slow_call_rate_threshold or math.inf
        self.slow_from = math.inf if self._slow_share == math.inf else config.slow_call_seconds
        self._states = pybreaker.CircuitBreaker(
            fail_max=config.failure_threshold,
            reset_timeout=config.recovery_timeout,
            success_threshold=config.success_threshold,
            listeners=[self._transitions],
            state_storage=self._storage,
            name=self.name,
            throw_new_error_on_trip=False,
        )
        self._set_calm()

    @property
    def state(self) -> str:
        """One of closed, open, half_open."""
        return _name(self._storage.state)

    @property
    def failures(self) -> int:
        """Consecutive failures, while closed."""
        return int(self._storage.counter)

    @property
    def places(self) -> int:
        """Probes that a half-open circuit may have out at once, given those that have succeeded."""
        return max(1, self.config.probes - int(self._storage.success_counter))

    @property
    def rates(self) -> Mapping[str, float]:
        """Of the sliding window: its calls, and the shares that failed and were slow. Empty without one."""
        if (window := self.window) is None:
            return {}
        self._count_quick(window)
        window.forget(self._clock())
        total = window.total
        return {
            "calls": total,
            "failure_rate": window.failed / total if total else 0.0,
            "slow_call_rate": window.slow / total if total else 0.0,
        }

    def retry_after(self, now: float) -> float:
        """Return the seconds until an open circuit lets a probe through; 0 in any other state."""
        if self.state != "open":
            return 0.0
        return max(0.0, self.opened_at + self.config.recovery_timeout - now)

    def taken(self) -> Moves:
        """Return the changes of state since the last time."""
        moves, self._transitions.moves = self._transitions.moves, []
        return moves

    def succeeded(self, started: float) -> None:
        """Count a success while closed; it opens the circuit if enough calls have failed or were slow."""
        self._storage.reset_counter()
        now = self._clock()
        self.usual.note(now - started, now)
        self._note(started, failed=False)

    def probe_succeeded(self, started: float) -> None:
        """Count a success while half open; one that was slow opens the circuit again."""
        now = self._clock()
        self.usual.note(now - started, now)
        if self._is_slow(started, now):
            self.open("a slow probe")
        else:
            self._storage.reset_counter()
            self._states.state.on_success()

    def failed(self, started: float) -> None:
        """Count a failure; it may be the one that opens the circuit."""
        self._storage.increment_counter()
        before = self.state
        with suppress(_TrippedError):
            self._states.state.on_failure(_TrippedError())
        if self.state == "open":
            self.opened_at = self._clock()
            if before == "closed":
                self.opened_by = f"{self.config.failure_threshold} consecutive failures"
        else:
            self._note(started, failed=True)

    def half_open(self) -> None:
        """Let probes through."""
        self._states.half_open()

    def open(self, why: str, retry_after: float | None = None) -> None:
        """Open, or keep open, for `retry_after` seconds from now (None: the recovery timeout)."""
        if self.state != "open":
            self._states.open()
            self.opened_by = why
        recovery = self.config.recovery_timeout
        self.opened_at = self._clock() - recovery + (recovery if retry_after is None else retry_after)

    def close(self) -> None:
        """Close, and count from zero."""
        self._storage.reset_counter()
        if self.state != "closed":
            self._states.close()
        self.clear_window()

    def clear_window(self) -> None:
        """Forget the attempts of an earlier state."""
        self.quick_successes = 0
        if self.window is not None:
            self.window.clear()
        self._set_calm()

    def _note(self, started: float, *, failed: bool) -> None:
        """Add an attempt to the window, if there is one, and open the circuit if its rates say so."""
        if (window := self.window) is not None:
            now = self._clock()
            self._count_quick(window)
            window.record(now, failed=failed, slow=self._is_slow(started, now))
            if (why := self._too_many()) is not None:
                self.open(why)
        self._set_calm()

    def _count_quick(self, window: Window) -> None:
        window.succeeded(self.quick_successes)
        self.quick_successes = 0

    def _set_calm(self) -> None:
        """Look ahead: quick successes only lower the rates, once the window is full enough to be judged."""
        self.calm_until = min(self._calm_until(), self.usual.next_at)

    def _calm_until(self) -> float:
        window = self.window
        if self.failures:
            return -math.inf
        if window is None:
            return math.inf
        judged = window.total >= self.config.minimum_calls and self._too_many() is None
        clean = window.failed == window.slow == 0
        return window.steady_until if judged or clean else -math.inf

    def _too_many(self) -> str | None:
        """Say which share of the window's calls opens the circuit, if one does."""
        window = self.window
        if window is None or window.total < self.config.minimum_calls:
            return None
        if window.failed >= self._failed_share * window.total - ROUNDING:
            return f"{self._failed_share:.0%} of calls failed"
        if window.slow >= self._slow_share * window.total - ROUNDING:
            return f"{self._slow_share:.0%} of calls were slow"
        return None

    def _is_slow(self, started: float, now: float) -> bool:
        return now - started >= self.slow_from


def _window_of(config: CircuitBreakerConfig) -> tuple[object, ...]:
    rates = (config.failure_rate_threshold, config.slow_call_rate_threshold)
    return config.window_calls, config.sliding_window_seconds, rates != (None, None)
