"""The scripts on a real server, their clock the test's, against the limiters in process."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkg_otel.config import RateLimitRule
from llmkg_otel.limiting.plan import make_limiter
from llmkg_otel.limiting.shared import Shared
from llmkg_otel.limiting.store import script_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.redis import RedisServer

STRATEGIES = ["token_bucket", "fixed_window", "moving_window", "sliding_window"]
# Keys expire by the server's own clock: periods are longer than an example takes.
RULES = st.builds(
    RateLimitRule,
    requests_per_second=st.sampled_from([1 / 1024, 1 / 64, 0.125]),
    burst_capacity=st.integers(8, 12),
    strategy=st.sampled_from(STRATEGIES),
)
GAPS = st.one_of(st.just(0.0), st.floats(0, 2)).map(lambda periods: round(periods * 64) / 64)
CALLS = st.lists(st.tuples(GAPS, st.integers(1, 8)), max_size=25)
START = 1_800_000_000.0
ON_REDIS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Run = Any
_fresh = count()


@pytest.fixture
def run(redis_server: RedisServer) -> Callable[[str], Run]:
    """Give a script as a function of the time (seconds), keys and arguments."""

    def script(name: str) -> Run:
        text = script_source(name).replace("redis.call('TIME')", "{table.remove(ARGV), table.remove(ARGV)}")
        registered = redis_server.client.register_script(text)

        def at(now: float, keys: list[str], *arguments: Any) -> Any:
            seconds, micros = divmod(round(now * 1e6), 1_000_000)
            return registered(keys=keys, args=[*arguments, micros, seconds])

        return at

    return script


def decision(run: Run, rules: list[RateLimitRule], name: str) -> Callable[[float, int], tuple[int, float]]:
    shared = Shared.of(name, [(rule, "operation") for rule in rules])

    def decide(now: float, cost: int) -> tuple[int, float]:
        at, wait = run(now, shared.keys_of(""), cost, *shared.arguments)
        return int(at), float(wait) / 1e6

    return decide


@ON_REDIS
@given(rule=RULES, calls=CALLS)
def test_a_script_decides_as_the_limiter_in_process_does(
    run: Callable[[str], Run], rule: RateLimitRule, calls: list[tuple[float, int]]
) -> None:
    ours = make_limiter(rule, "operation")
    theirs = decision(run("decide"), [rule], f"same{next(_fresh)}")
    now = START
    for gap, cost in calls:
        now += gap * rule.period
        near = abs(ours.wait(now - 1e-4, cost) - ours.wait(now + 1e-4, cost)) > 1e-2  # rounding may decide
        if near:
            now += 1e-3 * rule.period
        wait = ours.take(now, cost)
        at, their_wait = theirs(now, cost)
        assert (at == 0) is (wait == 0)
        assert their_wait == pytest.approx(wait, abs=1e-3)


@ON_REDIS
@given(rules=st.lists(RULES, min_size=1, max_size=4), calls=CALLS)
def test_whoever_waits_as_long_as_told_is_admitted_by_all_rules_and_a_refusal_costs_none(
    run: Callable[[str], Run], rules: list[RateLimitRule], calls: list[tuple[float, int]]
) -> None:
    decide, now = decision(run("decide"), rules, f"all{next(_fresh)}"), START
    for gap, cost in calls:
        now += gap * rules[0].period
        at, wait = decide(now, cost)
        if at:
            assert decide(now, cost) == (at, wait)
            assert decide(now + wait + 2e-6, cost)[0] == 0
            now += wait + 2e-6


@ON_REDIS
@given(rule=RULES, back=st.floats(1, 3600))
def test_a_server_clock_that_steps_back_mints_nothing_and_refuses_for_a_period_at_most(
    run: Callable[[str], Run], rule: RateLimitRule, back: float
) -> None:
    decide = decision(run("decide"), [rule], f"back{next(_fresh)}")
    burst = int(rule.burst)
    assert decide(START, burst)[0] == 0
    at, wait = decide(START - back, 1)
    assert at == 1
    assert wait <= 2 * rule.period  # a sliding window counts the one before as well
    assert decide(START - back + wait + 2e-6, 1)[0] == 0


def admits(rule: RateLimitRule, other: RateLimitRule, admitted: list[tuple[float, int]]) -> bool:
    """Say whether no stretch of time has more calls than the larger of both rules lets through."""
    most = max(rule.burst, other.burst) + 1e-3
    rate = max(rule.requests_per_second, other.requests_per_second)
    period = rule.period
    ends = range(1, len(admitted) + 1)
    if rule.strategy == "token_bucket":
        stretches = [admitted[first:end] for end in ends for first in range(end)]
        return all(sum(c for _, c in s) <= most + rate * (s[-1][0] - s[0][0]) for s in stretches)
    if rule.strategy == "moving_window":
        return all(
            sum(c for at, c in admitted[:end] if at + period > admitted[end - 1][0] + 1e-3) <= most
            for end in ends
        )
    by_window = Counter[int]()
    for at, cost in admitted:
        by_window[int(at // period)] += cost
    return all(count <= most for count in by_window.values())


@ON_REDIS
@given(
    rule=RULES,
    burst=st.integers(8, 24),
    factor=st.sampled_from([0.125, 1, 4]),
    calls=st.lists(st.tuples(GAPS, st.integers(1, 8), st.booleans()), max_size=40),
)
def test_instances_with_an_old_and_a_new_limit_together_admit_no_more_than_the_larger_one(
    run: Callable[[str], Run],
    rule: RateLimitRule,
    burst: int,
    factor: float,
    calls: list[tuple[float, int, bool]],
) -> None:
    if rule.strategy == "token_bucket":
        changes = {"burst_capacity": burst, "requests_per_second": rule.requests_per_second * factor}
    else:  # more in as long a window
        changes = {"burst_capacity": burst, "requests_per_second": burst / rule.period}
    new = RateLimitRule(**{**rule.model_dump(), **changes})
    name = f"rolled{next(_fresh)}"
    deciders, now = [decision(run("decide"), [each], name) for each in (rule, new)], START
    admitted: list[tuple[float, int]] = []
    for gap, cost, to_new in calls:
        now += gap * rule.period / 8
        if deciders[to_new](now, cost)[0] == 0:
            admitted.append((now, cost))
    assert admits(rule, new, admitted)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "give back", "use", "crash"]),
        st.integers(0, 2),
        st.integers(1, 9),
        GAPS,
    ),
    max_size=40,
)


@ON_REDIS
@given(rule=RULES, steps=STEPS)
def test_leases_conserve_tokens_whatever_processes_do_with_them(
    run: Callable[[str], Run], rule: RateLimitRule, steps: list[tuple[str, int, int, float]]
) -> None:
    """Three processes ask, use, give back and die: no more is ever used or held than came in."""
    lease, key = run("lease"), f"lease{next(_fresh)}"
    bucket = (rule.burst, rule.period * 1e6)
    held, used, now = Counter[int](), 0, START
    for step, who, tokens, gap in steps:
        now += gap * rule.period
        if step == "ask":
            granted, wait = lease(now, [key], *bucket, 1, tokens)
            assert 0 <= granted <= tokens
            assert (granted == 0) is (float(wait) > 0)
            held[who] += granted
        elif step == "give back":
            lease(now, [key], *bucket, 0, -held.pop(who, 0))
        elif step == "use":
            used += min(held[who], tokens)
            held[who] -= min(held[who], tokens)
        else:
            held.pop(who, None)  # lost, and minted for nobody
        came_in = rule.burst + rule.requests_per_second * (now - START)
        assert used + held.total() <= came_in + 1e-3


def test_a_bucket_that_was_leased_from_and_given_back_is_as_it_was(run: Callable[[str], Run]) -> None:
    lease, bucket = run("lease"), (10, 10e6)
    assert lease(START, ["b"], *bucket, 1, 4) == [4, b"0"]
    assert lease(START, ["b"], *bucket, 0, -4) == [-4, b"0"]
    assert lease(START, ["b"], *bucket, 1, 50) == [10, b"0"]
    assert lease(START, ["b"], *bucket, 1, 50) == [0, b"1000000"]
    assert lease(START, ["b"], *bucket, 3, 50) == [0, b"3000000"]
    assert lease(START + 1000, ["b"], *bucket, 0, -5) == [-5, b"0"]
    assert lease(START + 1000, ["b"], *bucket, 1, 50) == [10, b"0"]  # no fuller than full


def test_leases_and_exact_decisions_know_the_same_bucket(run: Callable[[str], Run]) -> None:
    rule = RateLimitRule(requests_per_second=1, burst_capacity=10)
    shared = Shared.of("op", [(rule, "operation")])
    assert run("lease")(START, shared.keys_of(""), 10, 10e6, 1, 9)[0] == 9
    decide = decision(run("decide"), [rule], "op")
    assert [decide(START, 1)[0] for _ in range(2)] == [0, 1]
