"""Rate limits of three levels, decided together: global, per operation, per user."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from llmkg_otel.errors import RateLimitedError
from llmkg_otel.limiting.token_bucket import TokenBucket, TokenBuckets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmkg_otel.config import RateLimitConfig

__all__ = ["RateLimits"]

_POLICIES = ("global", "operation", "user")


class RateLimits:
    """Admits a call if every level has a token for it; a refusal by one level costs the others nothing.

    In process: each instance counts for itself. All levels are decided under one lock.
    """

    def __init__(self, config: RateLimitConfig) -> None:
        self._lock = threading.Lock()
        self._global = TokenBucket(config) if config.enabled else None
        self._users = TokenBuckets(config.per_user) if config.enabled and config.per_user else None
        self._acquired = [0, 0, 0]
        self._rejected = [0, 0, 0]

    @property
    def decisions(self) -> Mapping[tuple[str, str], int]:
        """Decisions since the start: (policy, "acquired" or "rejected") -> count.

        "acquired" counts calls that were let through, for each level that had a rule for them.
        """
        with self._lock:
            acquired = {(name, "acquired"): n for name, n in zip(_POLICIES, self._acquired, strict=True)}
            rejected = {(name, "rejected"): n for name, n in zip(_POLICIES, self._rejected, strict=True)}
        return acquired | rejected

    def check(self, operation: str, bucket: TokenBucket | None, user: str | None, now: float) -> None:
        """Admit one call, or raise RateLimitedError with the rule and the time to come back.

        `bucket` is the operation's own, None without a rule; `now` is of the monotonic clock. Waiting
        `retry_after` out, the call is admitted, unless another level refuses it or others took the token.
        """
        with self._lock:
            total, users = self._global, self._users
            if total is not None and (wait := total.take(now)):
                refused = 0
            elif bucket is not None and (wait := bucket.take(now)):
                refused = 1
                self._put_back(total)
            elif users is not None and user is not None and (wait := users.take(user, now)):
                refused = 2
                self._put_back(total, bucket)
            else:
                acquired = self._acquired
                acquired[0] += total is not None
                acquired[1] += bucket is not None
                acquired[2] += users is not None and user is not None
                return
            self._rejected[refused] += 1
        raise _refusal(operation, _POLICIES[refused], (total, bucket, users)[refused], wait)

    def _put_back(self, *buckets: TokenBucket | None) -> None:
        for bucket in buckets:
            if bucket is not None:
                bucket.put_back()


def _refusal(
    operation: str, policy: str, refused_by: TokenBucket | TokenBuckets | None, wait: float
) -> RateLimitedError:
    assert refused_by is not None  # noqa: S101 - it refused, so it is there
    rule = refused_by.rule
    limit = f"{rule.requests_per_second:g}/second (burst {rule.burst:g})"
    return RateLimitedError(
        f"{operation}: the {policy} rate limit of {limit} is spent",
        operation=operation,
        scope=policy,
        limit=limit,
        retry_after=wait,
    )
