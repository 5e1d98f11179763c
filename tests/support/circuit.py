"""The documented circuit breaker, written without locks and without pybreaker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from llmkg_otel.config import CircuitBreakerConfig

if TYPE_CHECKING:
    from llmkg_otel.recovery.breaker import CircuitBreaker, Ticket


class Model:
    """What a breaker should do with what it is told, one thing after the other."""

    def __init__(self, config: CircuitBreakerConfig) -> None:
        self.config = config
        self.circuit, self.override = "closed", ""
        self.failures = self.successes = self.epoch = 0
        self.opened_at = 0.0
        self.probes: dict[int, float] = {}
        self.moves: list[tuple[str, str]] = []
        self.window: list[tuple[float, bool, bool]] = []

    @property
    def state(self) -> str:
        return self.override or (self.circuit if self.config.enabled else "disabled")

    def become(self, **new: Any) -> None:
        """Change; whenever the state is another one afterwards, what was admitted before is void."""
        before = self.state
        vars(self).update(new)
        if self.state != before:
            self.moves.append((before, self.state))
            self.epoch += 1
            self.probes = {}
            self.window = []

    def reconfigure(self, config: CircuitBreakerConfig) -> None:
        kinds = [
            (
                each.window_calls,
                each.sliding_window_seconds,
                bool(each.failure_rate_threshold or each.slow_call_rate_threshold),
            )
            for each in (self.config, config)
        ]
        if kinds[0] != kinds[1]:
            self.window = []
        self.become(config=config)

    def reset(self) -> None:
        """Count from zero, closed."""
        self.become(override="")
        self.become(circuit="closed", failures=0)
        self.window = []

    def admit(self, number: int, now: float) -> tuple[bool, float | None]:
        """Return whether a call is let through, else the time until one may be (None: who knows)."""
        if self.state == "open" and now >= self.opened_at + self.config.recovery_timeout:
            self.become(circuit="half_open", successes=0)
        if self.state in ("closed", "disabled"):
            return True, None
        if self.state == "half_open":
            self.probes = {probe: end for probe, end in self.probes.items() if end > now}
            if len(self.probes) < max(1, self.config.probes - self.successes):
                self.probes[number] = now + self.config.timeout
                return True, None
            return False, min(self.probes.values()) - now
        return False, self.opened_at + self.config.recovery_timeout - now if self.state == "open" else None

    def report(self, number: int, epoch: int, outcome: str, now: float, seconds: float) -> None:
        self.probes.pop(number, None)
        if epoch != self.epoch or outcome == "ignored" or self.state not in ("closed", "half_open"):
            return
        slow = self.config.slow_call_rate_threshold is not None and seconds >= self.config.slow_call_seconds
        if self.state == "half_open" and slow:
            self.become(circuit="open", opened_at=now)
            self.failures += outcome == "failure"
            return
        was_closed = self.state == "closed"  # probes are in no window
        self.count(outcome, now)
        if was_closed and self.state == "closed":
            self.look_back(now, outcome == "failure", slow)

    def look_back(self, now: float, failed: bool, slow: bool) -> None:
        config = self.config
        if config.failure_rate_threshold is None and config.slow_call_rate_threshold is None:
            return
        self.window.append((now, failed, slow))
        self.forget(now)
        if len(self.window) < config.minimum_calls:
            return
        failures = sum(failed for _, failed, _ in self.window) / len(self.window)
        slows = sum(slow for _, _, slow in self.window) / len(self.window)
        if (config.failure_rate_threshold or 2) <= failures or (
            config.slow_call_rate_threshold or 2
        ) <= slows:
            self.become(circuit="open", opened_at=now)

    def forget(self, now: float) -> int:
        """Drop from the window what is too old; return how many attempts are left."""
        if (seconds := self.config.sliding_window_seconds) is None:
            self.window = self.window[-self.config.window_calls :]
        else:
            oldest = int(now / (seconds / 10)) - 9
            self.window = [each for each in self.window if int(each[0] / (seconds / 10)) >= oldest]
        return len(self.window)

    def count(self, outcome: str, now: float) -> None:
        if outcome == "failure":
            self.failures += 1
            if self.state == "half_open" or self.failures >= self.config.failure_threshold:
                self.become(circuit="open", opened_at=now)
        elif self.state == "half_open":
            self.successes += 1
            if self.successes >= self.config.success_threshold:
                self.become(circuit="closed", failures=0)
        else:
            self.failures = 0


RATES: list[dict[str, Any]] = [
    {},
    {"failure_rate_threshold": 0.5, "sliding_window_calls": 4, "minimum_calls": 2},
    {"failure_rate_threshold": 0.5, "sliding_window_seconds": 10, "minimum_calls": 3},
    {
        "slow_call_rate_threshold": 0.5,
        "slow_call_seconds": 0.25,
        "sliding_window_calls": 3,
        "minimum_calls": 3,
    },
]
CONFIGS = st.builds(
    lambda rates, success_threshold, more, **options: CircuitBreakerConfig(
        **rates,
        **options,
        success_threshold=success_threshold,
        half_open_max_probes=None if more is None else success_threshold + more,
    ),
    rates=st.sampled_from(RATES),
    enabled=st.sampled_from([True, True, True, False]),
    failure_threshold=st.sampled_from([1, 2, 3, 100]),
    recovery_timeout=st.sampled_from([1, 4]),
    success_threshold=st.integers(1, 3),
    more=st.sampled_from([None, 0, 1]),
    timeout=st.sampled_from([0.5, 2]),
)


def report(
    breaker: CircuitBreaker, ticket: Ticket, outcome: str, started: float, *, first: bool = True
) -> None:
    """Tell a breaker what became of an attempt."""
    if outcome == "success":
        breaker.succeeded(ticket, first=first, started=started)
    elif outcome == "failure":
        breaker.failed(ticket, ConnectionError("broken"), started=started)
    else:
        breaker.ignored(ticket)
