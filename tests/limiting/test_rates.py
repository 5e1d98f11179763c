from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import RateLimitConfig, RateLimitRule
from llmkg_otel.errors import RateLimitedError
from llmkg_otel.limiting.rates import RateLimits
from llmkg_otel.limiting.token_bucket import TokenBucket

SLOW = 1e-3  # tokens a second: within a test, the burst is all there is


def limits(total: int, user: int | None = None, **options: Any) -> RateLimits:
    per_user = None if user is None else RateLimitRule(requests_per_second=SLOW, burst_capacity=user)
    config = RateLimitConfig(requests_per_second=SLOW, burst_capacity=total, per_user=per_user, **options)
    return RateLimits(config)


def bucket(burst: int) -> TokenBucket:
    return TokenBucket(RateLimitRule(requests_per_second=SLOW, burst_capacity=burst))


def refusal(
    rates: RateLimits, own: TokenBucket | None = None, user: str | None = None, now: float = 0.0
) -> RateLimitedError | None:
    try:
        rates.check("search", own, user, now)
    except RateLimitedError as error:
        return error
    return None


def scopes(answers: list[RateLimitedError | None]) -> list[str]:
    return ["" if answer is None else answer.scope for answer in answers]


def test_a_refusal_by_the_operation_costs_the_global_limit_nothing() -> None:
    rates, own = limits(total=3), bucket(1)
    assert scopes([refusal(rates, own) for _ in range(20)]) == ["", *["operation"] * 19]
    assert scopes([refusal(rates) for _ in range(3)]) == ["", "", "global"]


def test_a_refusal_by_the_user_limit_costs_the_others_nothing() -> None:
    rates, own = limits(total=3, user=1), bucket(3)
    assert scopes([refusal(rates, own, "a") for _ in range(20)]) == ["", *["user"] * 19]
    assert scopes([refusal(rates, own, name) for name in "bcd"]) == ["", "", "global"]


def test_a_refusal_by_the_global_limit_costs_the_operation_and_the_user_nothing() -> None:
    rates, own = limits(total=1, user=1), bucket(2)
    assert scopes([refusal(rates, own, "a"), *(refusal(rates, own, "b") for _ in range(9))]) == [
        "",
        *["global"] * 9,
    ]
    later = 1001.0  # one global token has come in
    rates.check("search", own, "b", later)


def test_users_do_not_share_and_calls_without_a_user_have_no_user_limit() -> None:
    rates = limits(total=100, user=1)
    assert scopes([refusal(rates, user=name) for name in ("a", "a", "b", None, None)]) == [
        "",
        "user",
        "",
        "",
        "",
    ]


def test_without_a_rule_for_users_only_the_global_limit_holds() -> None:
    rates = limits(total=2)
    assert scopes([refusal(rates, user="a") for _ in range(3)]) == ["", "", "global"]


def test_switched_off_nothing_is_limited_or_counted_but_what_an_operation_brings() -> None:
    rates = limits(total=1, user=1, enabled=False)
    assert scopes([refusal(rates, user="a") for _ in range(5)]) == [""] * 5
    assert set(rates.decisions.values()) == {0}
    assert scopes([refusal(rates, bucket(1)), refusal(rates, own := bucket(1)), refusal(rates, own)]) == [
        "",
        "",
        "operation",
    ]


@pytest.mark.parametrize(
    ("scope", "own", "user"), [("global", None, None), ("operation", bucket(1), None), ("user", None, "a")]
)
def test_a_refusal_names_the_operation_the_rule_its_limit_and_when_to_come_back(
    scope: str, own: TokenBucket | None, user: str | None
) -> None:
    rates = limits(total=1 if scope == "global" else 9, user=1)
    rates.check("search", own, user, 0.0)
    error = refusal(rates, own, user, 400.0)
    assert error is not None
    assert str(error) == f"search: the {scope} rate limit of 0.001/second (burst 1) is spent"
    assert (error.operation, error.scope, error.limit) == ("search", scope, "0.001/second (burst 1)")
    assert error.retry_after == pytest.approx(600.0)
    rates.check("search", own, user, 400.0 + (error.retry_after or 0.0))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", None])), max_size=40))
def test_every_decision_is_counted_once_for_each_level_that_took_part(
    calls: list[tuple[bool, str | None]],
) -> None:
    rates, own = limits(total=9, user=3), bucket(5)
    expected = dict.fromkeys(product(("global", "operation", "user"), ("acquired", "rejected")), 0)
    for with_rule, user in calls:
        refused = refusal(rates, own if with_rule else None, user)
        if refused is not None:
            expected[refused.scope, "rejected"] += 1
            continue
        expected["global", "acquired"] += 1
        expected["operation", "acquired"] += with_rule
        expected["user", "acquired"] += user is not None
    assert rates.decisions == expected


def test_threads_together_are_admitted_exactly_as_often_as_there_are_tokens() -> None:
    rates, own = limits(total=1000, user=150), bucket(500)
    start = threading.Barrier(8)

    def worker(number: int) -> int:
        start.wait(5)
        return sum(refusal(rates, own, f"user {number % 4}") is None for _ in range(400))

    with ThreadPoolExecutor(8) as threads:
        admitted = sum(threads.map(worker, range(8)))
    assert admitted == 500
    assert rates.decisions["global", "acquired"] == 500
    assert sum(rates.decisions[level, "rejected"] for level in ("global", "operation", "user")) == 2700
    assert scopes([refusal(rates) for _ in range(501)]) == [*[""] * 500, "global"]
