"""The rules a call has to pass, compiled: global, then of its operation, then of its user.

config (RateLimitRule) -> Levels, one for each operation -> Plan, with or without a user -> limiters
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from llmkg_otel.errors import InvalidInputError, RateLimitedError
from llmkg_otel.limiting.token_bucket import TokenBucket, TokenBuckets
from llmkg_otel.limiting.windows import FixedWindow, MovingWindow, SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmkg_otel.config import RateLimitRule

__all__ = ["POLICIES", "Levels", "Limiter", "Plan", "Policy", "make_limiter"]

Policy = Literal["global", "operation", "user"]
POLICIES: tuple[Policy, ...] = ("global", "operation", "user")


class Limiter(Protocol):
    """One rule with its state, for one key or for many. `now` is of the monotonic clock, in seconds.

    A cost is at most `rule.burst`.
    """

    rule: RateLimitRule

    def take(self, now: float, cost: int = 1, key: int = 0, /) -> float:
        """Admit and return 0.0, or return the seconds after which a call of that cost will be."""
        ...

    def wait(self, now: float, cost: int = 1, key: int = 0, /) -> float:
        """Return what `take` would, and change nothing."""
        ...

    def put_back(self, cost: int = 1, key: int = 0, /) -> None:
        """Undo the `take` that has just admitted, because another limit refused the same call."""
        ...


_WINDOWS: Mapping[str, type[FixedWindow | MovingWindow | SlidingWindow]] = {
    "fixed_window": FixedWindow,
    "moving_window": MovingWindow,
    "sliding_window": SlidingWindow,
}


def make_limiter(rule: RateLimitRule, policy: Policy) -> Limiter:
    """Return the rule's limiter; that of a user rule keeps its users apart."""
    if rule.strategy != "token_bucket":
        return _WINDOWS[rule.strategy](rule, keyed=policy == "user")
    return TokenBuckets(rule) if policy == "user" else TokenBucket(rule)


@dataclass(frozen=True, slots=True)
class Plan:
    """Limiters in the order of asking, and the level of each; `levels` has a bit for each level there is."""

    limiters: tuple[Limiter, ...]
    rules: tuple[RateLimitRule, ...]
    policies: tuple[Policy, ...]
    levels: int

    @classmethod
    def of(cls, members: Iterable[tuple[Limiter, Policy]]) -> Plan:
        """Compile limiters with their levels."""
        limiters, policies = tuple(zip(*members, strict=True)) or ((), ())
        return cls(limiters, tuple(each.rule for each in limiters), policies, level_bits(policies))

    def check_cost(self, operation: str, cost: int) -> None:
        """Raise InvalidInputError for a cost that no bucket could ever hold."""
        for rule, policy in zip(self.rules, self.policies, strict=True):
            if cost > rule.burst:
                raise InvalidInputError(
                    f"{operation}: cost = {cost}: the {policy} rate limit of {shown(rule)}"
                    f" lets at most {rule.burst:g} through at once"
                )

    def refusal(self, operation: str, at: int, wait: float) -> RateLimitedError:
        """Return the error of the limiter at an index, which has room again in `wait` seconds."""
        policy, limit = self.policies[at], shown(self.rules[at])
        return RateLimitedError(
            f"{operation}: the {policy} rate limit of {limit} is spent",
            operation=operation,
            scope=policy,
            limit=limit,
            retry_after=wait,
        )


class Levels:
    """What one operation's calls have to pass: those of a known user, and those of nobody."""

    __slots__ = ("anonymous", "known", "rules")

    def __init__(
        self,
        rules: tuple[RateLimitRule, ...],
        shared: tuple[tuple[Limiter, Policy], ...],
        users: tuple[tuple[Limiter, Policy], ...],
    ) -> None:
        self.rules = rules
        self.anonymous = Plan.of(shared)
        self.known = Plan.of((*shared, *users))

    def within(self, operation: str) -> Levels:  # noqa: ARG002 - for all
        """Return what a call of the operation within another has to pass: the operation's own rules alone."""
        members = zip(self.anonymous.limiters, self.anonymous.policies, strict=True)
        return Levels(self.rules, tuple(each for each in members if each[1] == "operation"), ())


def level_bits(policies: Iterable[Policy]) -> int:
    """Return the bits of levels."""
    return sum(1 << POLICIES.index(policy) for policy in set(policies))


def shown(rule: RateLimitRule) -> str:
    """Return a rule as people read it."""
    if rule.strategy == "token_bucket":
        return f"{rule.requests_per_second:g}/second (burst {rule.burst:g})"
    return f"{int(rule.burst)} per {rule.period:g} s ({rule.strategy.replace('_', ' ')})"
