"""The options of rate limits: what a rule is, and where the rules of a system are kept and counted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from llmkg_otel._config_sources import Section, parse_rate
from llmkg_otel._config_types import Count, Number, RuleOrRules, StorageUri

__all__ = ["RateLimitConfig", "RateLimitRule", "RateLimitRules"]


class RateLimitRule(Section):
    """One rule: `requests_per_second` on average, and how much may come at once, by its `strategy`.

    A `token_bucket` lets `burst_capacity` through at once and `requests_per_second` from then on. The
    windows let `burst_capacity` through in every burst_capacity / requests_per_second seconds: a
    `fixed_window` in each such stretch of the clock, a `moving_window` in any (it keeps every call's
    time), a `sliding_window` in any, the stretch before counted by the share of it that still overlaps.
    `burst_capacity` None means one second's worth.

    Also accepts the `limits` library's notation: "100/second", or "600 per 5 minutes" with the whole
    amount as the burst. `on_store_failure` matters with a `storage_uri` only: what the rule does while
    the store is slow or down. `local` counts in this process, at the rule divided by `replicas`.
    """

    requests_per_second: Number = Field(default=100.0, ge=1e-9, allow_inf_nan=False)
    burst_capacity: Count | None = None
    strategy: Literal["token_bucket", "fixed_window", "moving_window", "sliding_window"] = "token_bucket"
    on_store_failure: Literal["local", "fail_open", "fail_closed"] = "local"

    @model_validator(mode="before")
    @classmethod
    def _from_notation(cls, value: object) -> object:
        return parse_rate(value) if isinstance(value, str) else value

    @property
    def burst(self) -> float:
        """Bucket size, or what a window holds, in calls."""
        return float(self.burst_capacity or max(1.0, self.requests_per_second))

    @property
    def period(self) -> float:
        """Seconds an empty bucket takes to fill, or the length of a window."""
        return self.burst / self.requests_per_second

    def divided_by(self, replicas: int) -> RateLimitRule:
        """Return the rule for one of so many processes that count each for itself."""
        return RateLimitRule(
            requests_per_second=max(1e-9, self.requests_per_second / replicas),
            burst_capacity=max(1, int(self.burst / replicas)),
            strategy=self.strategy,
        )


RateLimitRules = RuleOrRules[RateLimitRule]
"""One rule, or a list of them that all hold."""


class RateLimitConfig(RateLimitRule):
    """The global limit (with `also`: further global rules), and the one that each user gets.

    `per_user` None: users share the global limit. Without `storage_uri` each process counts for itself.
    With one, a URI of the `limits` library (redis://, rediss://, redis+unix://, redis+cluster://,
    redis+sentinel://, the same with valkey), all processes share the limits: in `storage_mode` `exact`
    the store decides each call; in `leases` (token buckets only) a process takes tokens in small batches.
    `replicas`: how many processes there are, for rules that go on locally while the store is down.
    `key_secret` keys the hashes of users in the store; all processes need the same one.
    """

    enabled: bool = True
    burst_capacity: Count | None = 200
    also: tuple[RateLimitRule, ...] = ()
    per_user: RateLimitRules | None = None
    storage_uri: StorageUri | None = None
    storage_mode: Literal["exact", "leases"] = "exact"
    replicas: Annotated[Count, Field(le=100_000)] = 1
    key_secret: SecretStr | None = Field(default=None, min_length=16)

    @property
    def all_global(self) -> tuple[RateLimitRule, ...]:
        """The global rules: these very options, and `also`."""
        return (self, *self.also)
