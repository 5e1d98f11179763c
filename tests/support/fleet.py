"""One process' share of a fleet: a breaker, and its line to the fleet."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from llmkg_otel.config import CircuitBreakerConfig, CircuitSharingConfig
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.events import BreakerTransitioned
from llmkg_otel.recovery.breaker import CircuitBreaker, Ticket
from llmkg_otel.recovery.shared import SharedCircuits
from support.servers import wait_until
from support.time import Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.recovery.fleet import Permission
    from support.redis import RedisServer

BROKEN = ConnectionError("broken")


class Answering:
    """A fleet that says what a test has it say; keeps what is given back."""

    def __init__(
        self, answer: Future[Permission | None] | None, when_asked: Callable[[], object] = lambda: None
    ) -> None:
        self.answer = answer
        self.when_asked = when_asked
        self.met: Future[None] = Future()
        self.met.set_result(None)
        self.given_back: list[int] = []

    def request_probe(self) -> Future[Permission | None] | None:
        self.when_asked()
        return self.answer

    def opened(self, token: int | None) -> None: ...

    def closed(self, token: int | None) -> None: ...

    def succeeded(self, token: int) -> None: ...

    def released(self, token: int) -> None:
        self.given_back.append(token)


class Instance:
    """A breaker that one failure opens, for a minute, and one success closes; and its line to the fleet."""

    def __init__(self, uri: str, prefix: str = "llmkg", **config: Any) -> None:
        once = {"failure_threshold": 1, "success_threshold": 1, "recovery_timeout": 60.0, **config}
        self.seen = Seen()
        self.breaker = CircuitBreaker("search", CircuitBreakerConfig(**once), self.seen)
        sharing = CircuitSharingConfig(storage_uri=SecretStr(uri), key_prefix=prefix)
        self.circuits = SharedCircuits(sharing)
        self.line = self.breaker.fleet = self.circuits.join(self.breaker)

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.seen if isinstance(event, BreakerTransitioned)]

    def fail(self) -> None:
        self.breaker.failed(self.breaker.admit_sync(), BROKEN)

    def fail_for_all(self, server: RedisServer) -> None:
        """Open the circuit, and wait until the store knows."""
        self.fail()
        wait_until(server.client.keys, "the key")

    def probe(self) -> Ticket | None:
        try:
            return self.breaker.admit_sync()
        except CircuitOpenError:
            return None

    def fleets_probe(self) -> Ticket | None:
        ticket = self.probe()
        if ticket is None or ticket.token is not None:
            return ticket
        self.breaker.ignored(ticket)  # on a busy machine the fleet's word came too late
        return None

    def probe_in_time(self) -> Ticket:
        ticket = wait_until(self.fleets_probe, "the fleet's probe")
        assert isinstance(ticket, Ticket)
        return ticket

    def becomes(self, state: str) -> None:
        wait_until(lambda: self.breaker.state == state, f"the state {state}")

    def is_in(self, status: str) -> None:
        wait_until(lambda: self.circuits.status == status, f"the status {status}")


def granted(asked: Future[Permission | None]) -> int:
    """Return the token of a probe that was asked for."""
    permission = asked.result(1)
    assert permission is not None
    assert permission.token is not None
    return permission.token
