from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, combinations

from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.config import RateLimitRule
from llmkg_otel.limiting.token_bucket import TokenBucket, TokenBuckets

RULES = st.builds(
    RateLimitRule,
    requests_per_second=st.floats(0.01, 1000) | st.integers(1, 100).map(float),
    burst_capacity=st.none() | st.integers(1, 20),
)
STARTS = st.floats(0, 1e6)
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 5)), max_size=60)
ROUNDING = 1e-6  # seconds
HOUR = 3600.0


def moments(start: float, gaps: list[float]) -> list[float]:
    return list(accumulate(gaps, initial=start))


@given(RULES, STARTS, GAPS)
def test_in_no_window_are_more_calls_admitted_than_the_burst_and_what_came_in_since(
    rule: RateLimitRule, start: float, gaps: list[float]
) -> None:
    bucket = TokenBucket(rule)
    admitted = [now for now in moments(start, gaps) if not bucket.take(now)]
    for first, last in combinations(range(len(admitted)), 2):
        window = admitted[last] - admitted[first]
        assert last - first + 1 <= rule.burst + rule.requests_per_second * (window + 2 * ROUNDING)


@given(RULES, STARTS, GAPS)
def test_a_call_is_admitted_exactly_if_a_bucket_in_exact_arithmetic_has_a_token(
    rule: RateLimitRule, start: float, gaps: list[float]
) -> None:
    bucket, rate, burst = TokenBucket(rule), Fraction(rule.requests_per_second), Fraction(rule.burst)
    tokens, before = burst, Fraction(start)
    for now in moments(start, gaps):
        tokens = min(burst, tokens + (Fraction(now) - before) * rate)
        before = Fraction(now)
        admitted = bucket.take(now) == 0
        if abs(tokens - 1) > 2 * ROUNDING * rate:  # nearer than that, rounding may decide
            assert admitted is (tokens > 1)
        tokens -= admitted


@given(RULES, STARTS, GAPS)
def test_whoever_waits_as_long_as_told_is_admitted_and_not_a_moment_sooner(
    rule: RateLimitRule, start: float, gaps: list[float]
) -> None:
    bucket = TokenBucket(rule)
    now = start
    for gap in gaps:
        now += gap
        if wait := bucket.take(now):
            assert wait <= 1 / rule.requests_per_second + 2 * ROUNDING
            sooner = now + wait - 4 * ROUNDING
            assert sooner <= now or bucket.take(sooner) > 0
            now += wait
            assert bucket.take(now) == 0


@given(RULES, STARTS, st.integers(1, 5))
def test_a_token_put_back_can_be_taken_again_and_only_once(
    rule: RateLimitRule, now: float, times: int
) -> None:
    bucket = TokenBucket(rule)
    for _ in range(times):
        assert bucket.take(now, int(rule.burst)) == 0
        bucket.put_back(int(rule.burst))
    taken = sum(bucket.take(now) == 0 for _ in range(int(rule.burst) + 5))
    assert taken in {int(rule.burst), int(rule.burst + ROUNDING * rule.requests_per_second)}


def test_a_full_bucket_holds_no_more_than_the_burst_however_long_it_rested() -> None:
    bucket = TokenBucket(RateLimitRule(requests_per_second=10, burst_capacity=4))
    for now in (0.0, 1e5):
        assert [bucket.take(now) == 0 for _ in range(6)] == [True] * 4 + [False] * 2


def test_a_clock_that_goes_back_mints_nothing_and_refuses_until_it_has_caught_up() -> None:
    """The contract is a monotonic clock; should it break, the limit holds, at the cost of refusals."""
    rule = RateLimitRule(requests_per_second=10, burst_capacity=2)
    bucket, buckets = TokenBucket(rule), TokenBuckets(rule)
    assert [bucket.take(HOUR), bucket.take(HOUR), buckets.take(HOUR, 1, A), buckets.take(HOUR, 1, A)] == [
        0
    ] * 4
    for take in (bucket.take, lambda now: buckets.take(now, 1, A)):
        assert HOUR < take(0.0) < HOUR + 0.2
        assert 0 < take(HOUR) < 0.2
        assert take(HOUR + 0.1 + 2 * ROUNDING) == 0
        assert take(HOUR + 0.1 + 2 * ROUNDING) > 0


KEYS = A, B, C = 0, -(2**63), 2**63 - 1
KEYED = st.lists(
    st.tuples(st.sampled_from(KEYS), st.one_of(st.just(0.0), st.floats(0, 0.3), st.floats(0, 20)))
)


@given(RULES, STARTS, KEYED)
def test_each_key_fares_as_if_it_had_a_bucket_of_its_own_that_is_never_forgotten(
    rule: RateLimitRule, now: float, calls: list[tuple[int, float]]
) -> None:
    together, apart = TokenBuckets(rule), {key: TokenBucket(rule) for key in KEYS}
    for key, gap in calls:
        now += gap
        assert together.take(now, 1, key) == apart[key].take(now)


def test_a_key_is_not_forgotten_a_moment_before_its_bucket_is_full() -> None:
    buckets = TokenBuckets(RateLimitRule(requests_per_second=1, burst_capacity=2))
    for key, now in [(B, 0.0), (A, 0.9), (A, 0.9), (B, 1.0), (B, 2.0)]:
        assert buckets.take(now, 1, key) == 0
    assert buckets.take(2.0, 1, A) == 0
    assert buckets.take(2.0, 1, A) > 0


def test_keys_are_dropped_once_their_bucket_is_full_so_that_memory_is_bounded() -> None:
    rule = RateLimitRule(requests_per_second=1, burst_capacity=10)  # full again after at most 10 s
    buckets = TokenBuckets(rule)
    sizes = []
    for number in range(10_000):
        assert buckets.take(number / 10, 1, hash(f"user {number}")) == 0
        sizes.append(len(buckets))
    assert max(sizes) <= 2 * (10 * 10 + 1)  # two generations
    buckets.take(2000.0, 1, A)
    buckets.take(2011.0, 1, B)
    assert len(buckets) == 2
