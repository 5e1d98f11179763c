from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import RateLimitConfig, RateLimitRule
from llmkg_otel.errors import InvalidInputError, RateLimitedError
from llmkg_otel.limiting.rates import RateLimits

if TYPE_CHECKING:
    from llmkg_otel.limiting.plan import Levels

SLOW = 1e-3  # tokens a second: within a test, the burst is all there is


def limits(total: int, user: int | None = None, **options: Any) -> RateLimits:
    per_user = None if user is None else RateLimitRule(requests_per_second=SLOW, burst_capacity=user)
    config = RateLimitConfig(requests_per_second=SLOW, burst_capacity=total, per_user=per_user, **options)
    return RateLimits(config)


def rule(burst: int, **options: Any) -> RateLimitRule:
    return RateLimitRule(requests_per_second=SLOW, burst_capacity=burst, **options)


def refusal(
    rates: RateLimits, own: Levels | None = None, user: str | None = None, now: float = 0.0, cost: int = 1
) -> RateLimitedError | None:
    try:
        rates.check("search", own or rates.levels("search", ()), user, now, cost)
    except RateLimitedError as error:
        return error
    return None


def scopes(answers: list[RateLimitedError | None]) -> list[str]:
    return ["" if answer is None else answer.scope for answer in answers]


def test_a_refusal_by_the_operation_costs_the_global_limit_nothing() -> None:
    rates = limits(total=3)
    own = rates.levels("search", (rule(1),))
    assert scopes([refusal(rates, own) for _ in range(20)]) == ["", *["operation"] * 19]
    assert scopes([refusal(rates) for _ in range(3)]) == ["", "", "global"]


def test_a_refusal_by_the_user_limit_costs_the_others_nothing() -> None:
    rates = limits(total=3, user=1)
    own = rates.levels("search", (rule(3),))
    assert scopes([refusal(rates, own, "a") for _ in range(20)]) == ["", *["user"] * 19]
    assert scopes([refusal(rates, own, name) for name in "bcd"]) == ["", "", "global"]


def test_a_refusal_by_the_global_limit_costs_the_operation_and_the_user_nothing() -> None:
    rates = limits(total=1, user=1)
    own = rates.levels("search", (rule(2),))
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


def test_switched_off_nothing_is_limited_or_counted() -> None:
    rates = limits(total=1, user=1, enabled=False)
    own = rates.levels("search", (rule(1),))
    assert scopes([refusal(rates, own, user="a") for _ in range(5)]) == [""] * 5
    assert set(rates.decisions.values()) == {0}


def test_each_level_may_have_several_rules_of_any_strategy_and_all_hold() -> None:
    rates = RateLimits(
        RateLimitConfig(
            requests_per_second=SLOW,
            burst_capacity=9,
            also=(rule(7, strategy="fixed_window"),),
            per_user=(rule(6), rule(2, strategy="moving_window")),
        )
    )
    own = rates.levels("search", (rule(5, strategy="sliding_window"), rule(8)))
    asked = [refusal(rates, own, user) for user in ("a", "a", "a", "b", "b", "c", "c")]
    assert scopes(asked) == ["", "", "user", "", "", "", "operation"]
    assert scopes([refusal(rates) for _ in range(3)]) == ["", "", "global"]
    limits = [error.limit for error in (*asked, refusal(rates)) if error is not None]
    assert limits == [
        "2 per 2000 s (moving window)",
        "5 per 5000 s (sliding window)",
        "7 per 7000 s (fixed window)",
    ]


def test_a_call_counts_as_many_times_as_it_costs_and_a_refused_one_not_at_all() -> None:
    rates = limits(total=9, user=6)
    own = rates.levels("search", (rule(5, strategy="fixed_window"),))
    asked = [refusal(rates, own, "a", cost=cost) for cost in (3, 3, 2, 1)]
    assert scopes(asked) == ["", "operation", "", "operation"]
    assert scopes([refusal(rates, user="a", cost=cost) for cost in (2, 1, 1)]) == ["user", "", "user"]
    assert scopes([refusal(rates, user="b", cost=cost) for cost in (4, 3, 1)]) == ["global", "", "global"]


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        (6, "the operation rate limit of 0.001/second (burst 5) lets at most 5 through at once"),
        (5, None),
    ],
)
def test_a_cost_that_could_never_be_admitted_is_the_callers_mistake(cost: Any, told: str | None) -> None:
    rates = limits(total=9)
    own = rates.levels("search", (rule(5),))
    if told is None:
        rates.check("search", own, None, 0.0, cost)
        return
    with pytest.raises(InvalidInputError) as caught:
        rates.check("search", own, None, 0.0, cost)
    assert str(caught.value) == f"search: cost = {cost}: {told}"


STRATEGIES = ["token_bucket", "fixed_window", "moving_window", "sliding_window"]
RULES = st.lists(
    st.builds(
        RateLimitRule,
        requests_per_second=st.floats(0.1, 20),
        burst_capacity=st.integers(3, 9),
        strategy=st.sampled_from(STRATEGIES),
    ),
    max_size=3,
).map(tuple)


@given(RULES, RULES, RULES, st.lists(st.tuples(st.floats(0, 1), st.sampled_from("ab"), st.integers(1, 3))))
def test_whoever_waits_as_long_as_told_is_admitted_by_every_rule_of_every_level(
    also: Any, own_rules: Any, per_user: Any, calls: list[tuple[float, str, int]]
) -> None:
    rates = RateLimits(RateLimitConfig(burst_capacity=3, also=also, per_user=per_user))
    own, now = rates.levels("search", own_rules), 1000.0
    for gap, user, cost in calls:
        now += gap
        if (error := refusal(rates, own, user, now, cost)) is not None:
            assert error.retry_after is not None
            now += error.retry_after
            assert refusal(rates, own, user, now, cost) is None


@pytest.mark.parametrize(("scope", "user"), [("global", None), ("operation", None), ("user", "a")])
def test_a_refusal_names_the_operation_the_rule_its_limit_and_when_to_come_back(
    scope: str, user: str | None
) -> None:
    rates = limits(total=1 if scope == "global" else 9, user=1)
    own = rates.levels("search", (rule(1),) if scope == "operation" else ())
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
    rates = limits(total=9, user=3)
    own = rates.levels("search", (rule(5),))
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
    rates = limits(total=1000, user=150)
    own = rates.levels("search", (rule(500),))
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


def test_the_wall_clock_is_not_read_so_an_hour_back_changes_nothing() -> None:
    rates = limits(total=9, user=9, also=tuple(rule(9, strategy=strategy) for strategy in STRATEGIES))
    own = rates.levels("search", (rule(3),))
    with mock.patch.object(time, "time", side_effect=AssertionError):
        assert scopes([refusal(rates, own, "a", now) for now in (0.0, 0.0, 1.0, 1.0)]) == [
            "",
            "",
            "",
            "operation",
        ]
