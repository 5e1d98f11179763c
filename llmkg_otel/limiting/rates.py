"""Rate limits of three levels, decided together: global, per operation, per user."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from llmkg_otel.limiting.plan import POLICIES, Levels, make_limiter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.config import RateLimitConfig, RateLimitRule
    from llmkg_otel.limiting.pending import Pending
    from llmkg_otel.limiting.plan import Limiter, Policy

__all__ = ["RateLimits", "make_rate_limits", "rules_of"]


class RateLimits:
    """Admits a call if every rule of every level has room for it; a refusal by one costs the others nothing.

    In process: each instance counts for itself. All rules are decided under one lock, on the monotonic
    clock. Users are known by a hash under a key of this process (Python's own, SipHash).
    """

    def __init__(self, config: RateLimitConfig) -> None:
        self._enabled = config.enabled
        self._lock = threading.Lock()
        self._acquired = [0] * (1 << len(POLICIES))  # by the levels that took part, a bit each
        self._rejected = dict.fromkeys(POLICIES, 0)
        self._shared = self._members(config.all_global, "global") if config.enabled else ()
        self._users = self._members(rules_of(config.per_user), "user") if config.enabled else ()

    def levels(self, operation: str, rules: tuple[RateLimitRule, ...]) -> Levels:  # noqa: ARG002 - for all
        """Return what calls of an operation with these rules of its own have to pass."""
        own = self._members(rules, "operation") if self._enabled else ()
        return Levels(rules, (*self._shared, *own), self._users)

    @property
    def decisions(self) -> Mapping[tuple[str, str], int]:
        """Decisions since the start: (policy, "acquired" or "rejected") -> count.

        "acquired" counts calls that were let through, for each level that had a rule for them.
        """
        with self._lock:
            acquired, rejected = self._acquired.copy(), self._rejected.copy()
        counts: dict[tuple[str, str], int] = {(policy, "rejected"): n for policy, n in rejected.items()}
        for bit, policy in enumerate(POLICIES):
            counts[policy, "acquired"] = sum(n for levels, n in enumerate(acquired) if levels >> bit & 1)
        return counts

    def check(
        self, operation: str, levels: Levels, user: str | None, now: float, cost: int = 1
    ) -> Pending | None:
        """Admit one call of a weight, or raise RateLimitedError with the rule and the time to come back.

        None means that it is decided; else, with a shared store, settle what is returned. `now` is of the
        monotonic clock. The refusal is by the rule that has room last: after `retry_after` the call is
        admitted, unless others took the room. Raises InvalidInputError for a cost that a rule could never
        admit.
        """
        plan, key = (levels.anonymous, 0) if user is None else (levels.known, hash(user))
        if cost != 1:
            plan.check_cost(operation, cost)
        with self._lock:
            for limiter in plan.limiters:
                if wait := limiter.take(now, cost, key):
                    break
            else:
                self._acquired[plan.levels] += 1
                return None
            at = plan.limiters.index(limiter)
            for earlier in plan.limiters[:at]:
                earlier.put_back(cost, key)
            for later, other in enumerate(plan.limiters[at + 1 :], at + 1):
                if (longer := other.wait(now, cost, key)) > wait:
                    at, wait = later, longer
            self._rejected[plan.policies[at]] += 1
        raise plan.refusal(operation, at, wait)

    @property
    def store_state(self) -> str | None:
        """How the shared store is: "primary", "fallback" or "unavailable"; None without one."""
        return None

    async def start(self) -> None:
        """Make what the first call would have to wait for."""

    def close(self) -> None:
        """Give back what is held, and end what runs in the background. Blocks for 0.2 s at most."""

    def _members(
        self, rules: tuple[RateLimitRule, ...], policy: Policy
    ) -> tuple[tuple[Limiter, Policy], ...]:
        return tuple((make_limiter(rule, policy), policy) for rule in rules)


def rules_of(rules: RateLimitRule | tuple[RateLimitRule, ...] | None) -> tuple[RateLimitRule, ...]:
    """Return the rules of a level, however many were configured."""
    if rules is None:
        return ()
    return rules if isinstance(rules, tuple) else (rules,)


def make_rate_limits(config: RateLimitConfig) -> RateLimits:
    """Return the rate limits that are configured: in process, or shared through a store in either mode."""
    if config.storage_uri is None or not config.enabled:
        return RateLimits(config)
    # Its client libraries are an extra, and a tenth of the start-up time.
    from llmkg_otel.limiting.leases import LeasedRateLimits  # noqa: PLC0415
    from llmkg_otel.limiting.shared import SharedRateLimits  # noqa: PLC0415

    return (SharedRateLimits if config.storage_mode == "exact" else LeasedRateLimits)(config)
