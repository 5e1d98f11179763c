"""Rate limits that all instances share: the store decides each call, in one script.

    call -> decide.lua, all rules at once -> admitted, or the rule that has room last
      store slow (50 ms) or down -> each rule by its on_store_failure, until the store answers again

While the store is up, the local buckets of a process are charged along, so that they are warm when they
are needed: a failing store is no gift of a full burst.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from llmkg_otel._storage import STORE_SECONDS
from llmkg_otel.errors import RateLimitedError
from llmkg_otel.limiting.pending import Pending
from llmkg_otel.limiting.plan import Levels, Plan, level_bits
from llmkg_otel.limiting.rates import RateLimits, rules_of
from llmkg_otel.limiting.store import KEY_PREFIX, RETRY_SECONDS, RateStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    from llmkg_otel.config import RateLimitConfig, RateLimitRule
    from llmkg_otel.limiting.plan import Limiter, Policy

__all__ = ["Shared", "SharedLevels", "SharedRateLimits"]


@dataclass(frozen=True, slots=True)
class Shared:
    """A plan as the store knows it: `whole` has the rules undivided.

    `places` are how each rule's key begins, and whether a user's hash ends it; `arguments` what decide.lua
    is told of the rules. A place has no limit in it: instances with the old and with the new one share it.
    It has the period of a window, whose counts mean nothing to one of another, and tells rules of one level
    and strategy apart by their order. `closed` and `open` are the levels of the rules that refuse, and that
    let through, without the store.
    """

    whole: Plan
    places: tuple[tuple[str, bool], ...]
    arguments: tuple[object, ...]
    closed: tuple[Policy, ...]
    open: tuple[Policy, ...]

    @classmethod
    def of(cls, operation: str, members: Iterable[tuple[RateLimitRule, Policy]]) -> Shared:
        """Compile rules with their levels."""
        rules, policies = tuple(zip(*members, strict=True)) or ((), ())
        places, arguments, alike = [], [], Counter[str]()
        for rule, policy in zip(rules, policies, strict=True):
            bucket = rule.strategy == "token_bucket"
            kind = f"{policy}:{rule.strategy}" if bucket else f"{policy}:{rule.strategy}:{rule.period:g}"
            whose = f"{operation}:" if policy == "operation" else ""
            places.append((f"{KEY_PREFIX}{kind}:{alike[kind]}:{whose}", policy == "user"))
            alike[kind] += 1
            arguments += [rule.strategy, rule.burst if bucket else int(rule.burst), rule.period * 1e6]
        by_mode = {
            mode: tuple(p for r, p in zip(rules, policies, strict=True) if r.on_store_failure == mode)
            for mode in ("fail_closed", "fail_open")
        }
        whole = Plan((), rules, policies, level_bits(policies))
        return cls(whole, tuple(places), tuple(arguments), by_mode["fail_closed"], by_mode["fail_open"])

    def keys_of(self, user: str) -> list[str]:
        """Return the store's keys; `user` is hashed already, or empty."""
        return [prefix + user if per_user else prefix for prefix, per_user in self.places]


class SharedLevels(Levels):
    """Local levels, for when the store is down, and those that the store decides."""

    __slots__ = ("shared_anonymous", "shared_known")

    def __init__(self, local: Levels, anonymous: Shared, known: Shared) -> None:
        self.rules, self.anonymous, self.known = local.rules, local.anonymous, local.known
        self.shared_anonymous, self.shared_known = anonymous, known

    def within(self, operation: str) -> SharedLevels:
        """Do the same for the store."""
        own = Shared.of(operation, [(rule, "operation") for rule in self.rules])
        return SharedLevels(super().within(operation), own, own)

    def shared_of(self, operation: str, user: str | None, cost: int) -> Shared:
        """Return what a call has to pass in the store; raise InvalidInputError for an impossible cost."""
        shared = self.shared_anonymous if user is None else self.shared_known
        if cost != 1:
            shared.whole.check_cost(operation, cost)
        return shared


class SharedRateLimits(RateLimits):
    """Admits a call if the store has room for it by every rule of every level, all decided at once.

    Nobody waits for more than STORE_SECONDS. Users are known to the store by a hash, keyed with
    `key_secret`; without one an address can be found again by who can read the store.
    """

    def __init__(self, config: RateLimitConfig) -> None:
        self._config = config
        super().__init__(config)
        assert config.storage_uri is not None  # noqa: S101 - see make_rate_limits
        self._store = RateStore(config.storage_uri.get_secret_value())
        secret = config.key_secret
        self._secret = b"" if secret is None else blake2b(secret.get_secret_value().encode()).digest()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._counts_locally = bool(self._shared or self._users)

    def levels(self, operation: str, rules: tuple[RateLimitRule, ...]) -> SharedLevels:
        """Return what calls of an operation with these rules of its own have to pass."""
        shared: list[tuple[RateLimitRule, Policy]] = [(rule, "global") for rule in self._config.all_global]
        shared += [(rule, "operation") for rule in rules]
        known = [*shared, *((rule, "user") for rule in rules_of(self._config.per_user))]
        local = super().levels(operation, rules)
        self._counts_locally = self._counts_locally or bool(local.known.rules)
        return SharedLevels(local, Shared.of(operation, shared), Shared.of(operation, known))

    @property
    def decisions(self) -> Mapping[tuple[str, str], int]:
        """Decisions since the start, "failed_open" and "failed_closed" among them."""
        with self._lock:
            failed = dict(self._failed)
        return {**super().decisions, **failed}

    @property
    def store_state(self) -> str | None:
        """How the shared store is: it decides, or local buckets do, or, down, nothing counts."""
        if not self._store.down:
            return "primary"
        return "fallback" if self._counts_locally else "unavailable"

    async def start(self) -> None:
        """Connect to the store; what goes wrong shows in `store_state`."""
        await asyncio.wrap_future(self._store.submit(self._store.connect()))

    def close(self) -> None:
        """End the store's thread. Calls that still come are decided as with the store down."""
        self._store.close()

    def check(
        self, operation: str, levels: Levels, user: str | None, now: float, cost: int = 1
    ) -> Pending | None:
        """Ask the store, or decide at once while it is down. Raises as RateLimits does."""
        assert isinstance(levels, SharedLevels)  # noqa: S101 - of this object's own making
        shared = levels.shared_of(operation, user, cost)
        call = SharedCall(operation, levels, shared, user, now, cost)
        if self._store.down:
            self._fall_back(call)
            return None
        keys = call.shared.keys_of("" if user is None else self._hashed(user))
        asked = self._store.ask("decide", keys, (cost, *call.shared.arguments))
        return Pending(asked, now + STORE_SECONDS, partial(self._decided, call, asked))

    def _decided(self, call: SharedCall, asked: Future[Any]) -> None:
        answer = asked.result() if asked.done() and not asked.cancelled() else None
        if answer is None:
            self._fall_back(call)
            return
        at, wait = int(answer[0]) - 1, float(answer[1]) / 1e6
        if at >= 0:
            self._refuse(call, at, wait)
        with self._lock:
            self._admitted(call.shared, call.local, call.now, call.cost, call.key)

    def _admitted(self, shared: Shared, local: Plan, now: float, cost: int, key: int) -> None:
        """Count a call that the store let through, and charge it to the local buckets. Under the lock."""
        self._acquired[shared.whole.levels] += 1
        for limiter in local.limiters:
            limiter.take(now, cost if cost == 1 else min(cost, int(limiter.rule.burst)), key)

    def _refuse(self, call: SharedCall, at: int, wait: float) -> None:
        whole = call.shared.whole
        with self._lock:
            self._rejected[whole.policies[at]] += 1
        raise whole.refusal(call.operation, at, wait)

    def _fall_back(self, call: SharedCall) -> None:
        """Decide without the store: each rule by its `on_store_failure`."""
        shared = call.shared
        if shared.closed:
            with self._lock:
                self._failed.update((policy, "failed_closed") for policy in set(shared.closed))
            raise _closed(call.operation, shared)
        most = min((int(rule.burst) for rule in call.local.rules), default=call.cost)
        super().check(call.operation, call.levels, call.user, call.now, min(call.cost, most))
        with self._lock:
            self._failed.update((policy, "failed_open") for policy in set(shared.open))

    def _members(
        self, rules: tuple[RateLimitRule, ...], policy: Policy
    ) -> tuple[tuple[Limiter, Policy], ...]:
        """Make the local limiters, of the rules that have some, each for this process's share."""
        local = (rule for rule in rules if rule.on_store_failure == "local")
        return super()._members(tuple(rule.divided_by(self._config.replicas) for rule in local), policy)

    def _hashed(self, user: str) -> str:
        return blake2b(user.encode(), digest_size=16, key=self._secret).hexdigest()


@dataclass(frozen=True, slots=True)
class SharedCall:
    """One call on its way through the store."""

    operation: str
    levels: SharedLevels
    shared: Shared
    user: str | None
    now: float
    cost: int

    @property
    def local(self) -> Plan:
        """The local limiters of its rules."""
        return self.levels.anonymous if self.user is None else self.levels.known

    @property
    def key(self) -> int:
        """The user's key in them."""
        return 0 if self.user is None else hash(self.user)


def _closed(operation: str, shared: Shared) -> RateLimitedError:
    scope = shared.closed[0]
    return RateLimitedError(
        f"{operation}: the {scope} rate limit cannot be counted, its store is down",
        operation=operation,
        scope=scope,
        retry_after=RETRY_SECONDS,
    )
