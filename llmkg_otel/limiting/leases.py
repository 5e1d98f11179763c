"""Leases: tokens that this process has taken out of the shared buckets before the calls came.

    call -> every bucket's lease has tokens? -> admitted, in process
      one has none -> lease.lua: a batch for the next HORIZON, sized to this process's own recent rate
      the bucket has none either -> refused, and not asked again for PACE
      idle for IDLE_SECONDS, or closing -> what is left is given back

Tokens leave a bucket before they admit a call, so there are never more calls than tokens; a process that
dies takes its leases with it, and nobody else gets them. A lease is held for about HORIZON, so over any
stretch of time the calls of all processes exceed the rule by no more than what it lets through in that.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from llmkg_otel._storage import STORE_SECONDS
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.limiting.pending import Pending
from llmkg_otel.limiting.shared import Shared, SharedCall, SharedLevels, SharedRateLimits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from llmkg_otel.config import RateLimitConfig, RateLimitRule
    from llmkg_otel.limiting.plan import Levels

__all__ = ["Lease", "LeasedRateLimits"]

HORIZON = 0.4
"""Seconds of the recent rate that a lease is for..."""
SMALL_BATCH, LONG_HORIZON = 64, 2.0
"""...and for a slower rate up to so many tokens, or seconds: below 50 calls to a round trip, leases do
not pay."""
BUCKET_SHARE = 0.25
"""Most of a bucket that one lease may ask for."""
LOW = 0.25
"""Share of a batch below which the next one is asked for; leases of the same call that are below twice that
join the question."""
PACE = 0.25
"""Seconds between questions to a bucket that has run out, but at most half of what it takes to fill."""
IDLE_SECONDS = 1.0


class Lease:
    """What this process holds of one bucket, and how fast it has been using it. Not locked."""

    __slots__ = (
        "ask_again",
        "asking",
        "demand",
        "empty_until",
        "key",
        "left",
        "low",
        "rule",
        "since",
        "used_at",
        "wanted",
    )

    def __init__(self, key: str, rule: RateLimitRule, now: float) -> None:
        self.key = key
        self.rule = rule
        self.left = 0
        self.demand = 0  # calls by weight since the last question
        self.wanted = 0  # what was asked for then
        self.low = 0  # below this the next question is due
        self.since = self.used_at = now
        self.ask_again = self.empty_until = 0.0
        self.asking: Future[Any] | None = None

    def batch(self, least: int, now: float) -> int:
        """Return how many tokens to ask for now, at least `least`; begins a new measure of the rate."""
        rate = self.demand / max(now - self.since, 1e-3)
        size = max(rate * HORIZON, min(SMALL_BATCH, rate * LONG_HORIZON))
        size = min(size, self.rule.burst * BUCKET_SHARE, 4 * self.wanted + 1)
        self.demand, self.since = 0, now
        self.wanted = max(least, math.ceil(size) - self.left)
        self.low = int(self.wanted * LOW)
        return self.wanted

    def granted(self, tokens: int, wait: float, now: float, jitter: float) -> None:
        """Add what the bucket gave; if that was not all, leave it alone for a while."""
        self.left += tokens
        if tokens < self.wanted:
            pace = min(PACE, self.rule.period / 2)
            self.empty_until = now + max(wait, pace * jitter)
            self.ask_again = min(self.empty_until, now + IDLE_SECONDS)


class LeasedRateLimits(SharedRateLimits):
    """Admits calls on tokens that this process holds already; asks the store when they run low.

    At a steady rate one question serves 50 calls or more. A call whose lease is used up waits for the
    store, STORE_SECONDS at most. Token buckets only: a window's room cannot be used later.
    """

    def __init__(self, config: RateLimitConfig) -> None:
        self._leases: dict[tuple[str, int], Lease] = {}
        self._sweeping = False
        super().__init__(config)

    def levels(self, operation: str, rules: tuple[RateLimitRule, ...]) -> SharedLevels:
        """Return what calls of an operation have to pass; raise ConfigurationError for a window."""
        levels = super().levels(operation, rules)
        for rule in levels.shared_known.whole.rules:
            if rule.strategy != "token_bucket":
                raise ConfigurationError(
                    f"strategy = {rule.strategy!r}: storage_mode 'leases' has 'token_bucket' only"
                )
        return levels

    def check(
        self, operation: str, levels: Levels, user: str | None, now: float, cost: int = 1
    ) -> Pending | None:
        """Admit the call on what is held, or return what to wait for. Raises as RateLimits does."""
        assert isinstance(levels, SharedLevels)  # noqa: S101 - of this object's own making
        shared = levels.shared_of(operation, user, cost)
        key = 0 if user is None else hash(user)
        with self._lock:
            held, lacking = [], False
            for at, (prefix, per_user) in enumerate(shared.places):
                lease = self._leases.get((prefix, key if per_user else 0)) or self._opened(
                    shared, at, user, now
                )
                lease.demand += cost
                lease.used_at = now
                if lease.left < cost:
                    lacking = True
                held.append(lease)
            if not lacking:
                self._spend(held, cost, now)
                local = levels.anonymous if user is None else levels.known
                self._admitted(shared, local, now, cost, key)
                return None
        return self._try(SharedCall(operation, levels, shared, user, now, cost), held)

    def _try(self, call: SharedCall, held: Sequence[Lease]) -> Pending | None:
        now = time.monotonic()
        with self._lock:
            lacking = [lease for lease in held if lease.left < call.cost]
            if not lacking:
                self._spend(held, call.cost, now)
                self._admitted(call.shared, call.local, call.now, call.cost, call.key)
                return None
            paused = [lease for lease in lacking if now < lease.ask_again]
            late = self._store.down or now >= call.now + STORE_SECONDS
            if not late and not paused:
                asking = self._ask(lacking, call.cost, now)
                return Pending(asking, call.now + STORE_SECONDS, partial(self._try, call, held))
        if paused and not self._store.down:
            spent = max(paused, key=lambda lease: lease.empty_until)
            self._refuse(call, held.index(spent), spent.empty_until - now)
        self._fall_back(call)
        return None

    def _spend(self, held: Sequence[Lease], cost: int, now: float) -> None:
        """Take a call's tokens, and ask for more of what runs low. Under the lock."""
        low = False
        for lease in held:
            lease.left -= cost
            if lease.left < lease.low:
                low = True
        if low and not self._store.down:
            askable = [each for each in held if each.asking is None and now >= each.ask_again]
            if any(each.left < each.low for each in askable):
                self._ask([each for each in askable if each.left < 2 * each.low], 1, now)

    def _opened(self, shared: Shared, at: int, user: str | None, now: float) -> Lease:
        """Return a new lease, empty, of the rule at an index."""
        prefix, per_user = shared.places[at]
        whose, key = (self._hashed(user), hash(user)) if per_user and user is not None else ("", 0)
        lease = self._leases[prefix, key] = Lease(prefix + whose, shared.whole.rules[at], now)
        return lease

    def _ask(self, lacking: Sequence[Lease], cost: int, now: float) -> Future[Any]:
        """Ask for a batch for each lease that nobody asks for yet; return the question to wait for."""
        fresh = [lease for lease in lacking if lease.asking is None]
        if not fresh:
            assert lacking[0].asking is not None  # noqa: S101 - else it were fresh
            return lacking[0].asking
        missing = [(lease, max(1, cost - lease.left)) for lease in fresh]
        wanted = [(lease, least, lease.batch(least, now)) for lease, least in missing]
        asking = self._store.submit(self._refill(wanted))
        for lease in fresh:
            lease.asking = asking
        if not self._sweeping:
            self._sweeping = True
            self._store.submit(self._sweep())
        return asking

    async def _refill(self, wanted: Sequence[tuple[Lease, int, int]]) -> None:
        answer = await self._lease(wanted)
        now = time.monotonic()
        with self._lock:
            for at, (lease, _, _) in enumerate(wanted):
                lease.asking = None
                if answer is not None:
                    tokens, wait = int(answer[2 * at]), float(answer[2 * at + 1]) / 1e6
                    lease.granted(tokens, wait, now, random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    async def _lease(self, wanted: Sequence[tuple[Lease, int, int]]) -> list[Any] | None:
        arguments: list[object] = []
        for lease, least, tokens in wanted:
            arguments += [lease.rule.burst, lease.rule.period * 1e6, least, tokens]
        asked = self._store.ask("lease", [lease.key for lease, _, _ in wanted], arguments)
        answer: list[Any] | None = await asyncio.wrap_future(asked)
        return answer

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 2)
            await self._give_back(time.monotonic() - IDLE_SECONDS)

    async def _give_back(self, unused_since: float) -> None:
        """Drop the leases that nobody has used since then, and return what is left of them, once.

        An answer that does not come may mean that it was returned: doing it again could mint tokens.
        """
        with self._lock:
            idle = [
                place
                for place, lease in self._leases.items()
                if lease.used_at <= unused_since and lease.asking is None
            ]
            dropped = [self._leases.pop(place) for place in idle]
            returned = [(lease, 0, -lease.left) for lease in dropped if lease.left > 0]
            for lease in dropped:
                lease.left = 0
        for start in range(0, len(returned), 100):
            if not self._store.down:
                await self._lease(returned[start : start + 100])

    def close(self) -> None:
        """Give all leases back, as far as the store answers in time, and end the store's thread."""
        if self._sweeping and not self._store.down:
            returning = self._store.submit(self._give_back(math.inf))
            try:
                returning.result(2 * STORE_SECONDS)
            except TimeoutError:
                returning.cancel()
        super().close()
