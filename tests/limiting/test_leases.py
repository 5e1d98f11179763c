"""Leases on a real server: what a process holds, asks for, gives back, and loses when it dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from limiting.sharing import Make, ask, rule, scopes

from llmkg_otel.config import RateLimitRule
from llmkg_otel.limiting import leases as module
from llmkg_otel.limiting.leases import Lease

if TYPE_CHECKING:
    import pytest
    from support.redis import RedisServer

    from llmkg_otel.limiting.rates import RateLimits


def held(rates: Any) -> list[int]:
    return [lease.left for lease in rates._leases.values()]


async def admitted(rates: RateLimits, calls: int) -> int:
    levels = rates.levels("op", ())
    return scopes([await ask(rates, levels) for _ in range(calls)]).count("")


async def used_and_holding(rates: Any) -> int:
    """Call until some tokens are held and nothing is asked for; return how often it was admitted."""
    used = 0
    async with asyncio.timeout(5):
        while not sum(held(rates)) or any(lease.asking for lease in rates._leases.values()):
            if not sum(held(rates)):
                used += await admitted(rates, 1)
            await asyncio.sleep(0.001)
    return used


@given(st.lists(st.tuples(st.floats(1e-4, 10), st.integers(0, 5000)), min_size=1), st.integers(1, 500))
def test_a_batch_is_for_the_recent_rate_and_bounded(measures: list[tuple[float, int]], burst: int) -> None:
    lease, now = Lease("k", RateLimitRule(requests_per_second=burst, burst_capacity=burst), 0.0), 0.0
    for seconds, calls in measures:
        now += seconds
        lease.demand = calls
        before, rate = lease.wanted, calls / max(seconds, 1e-3)
        wanted = lease.batch(1, now)
        assert 1 <= wanted <= max(1, min(burst / 4, 4 * before + 1) + 1)
        assert wanted <= max(1, rate * module.LONG_HORIZON + 1)
        assert lease.batch(7, now) >= 7


async def test_a_steady_caller_asks_ever_less_often(make: Make, redis_server: RedisServer) -> None:
    rates = make(burst=10_000, requests_per_second=10_000, storage_mode="leases")
    assert await admitted(rates, 50) == 50
    redis_server.client.config_resetstat()
    assert await admitted(rates, 2000) == 2000
    assert redis_server.calls() <= 0.02 * 2000


async def test_instances_are_never_admitted_more_often_than_there_are_tokens(make: Make) -> None:
    instances = [make(burst=100, storage_mode="leases") for _ in range(3)]
    counts = await asyncio.gather(*(admitted(rates, 200) for rates in instances))
    assert sum(counts) + sum(sum(held(rates)) for rates in instances) <= 100
    assert sum(counts) >= 60


async def test_an_instance_that_closes_gives_back_what_it_holds(make: Make) -> None:
    one, other = (make(burst=40, storage_mode="leases") for _ in range(2))
    used = await used_and_holding(one)
    one.close()
    assert used + await admitted(other, 200) == 40


async def test_an_idle_instance_gives_back_what_it_holds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    one, other = (make(burst=40, storage_mode="leases") for _ in range(2))
    used = await used_and_holding(one)
    async with asyncio.timeout(5):
        while held(one):  # noqa: ASYNC110 - another thread gives it back
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)  # the way to the server
    assert used + await admitted(other, 200) == 40


async def test_what_a_dead_instance_held_is_lost_and_minted_for_nobody(make: Make) -> None:
    one, other = (make(burst=40, storage_mode="leases") for _ in range(2))
    used = await used_and_holding(one)
    lost = sum(held(one))
    assert used + await admitted(other, 200) == 40 - lost


async def test_a_users_lease_is_his_alone(make: Make) -> None:
    rates = make(burst=100, storage_mode="leases", per_user=rule(3))
    levels = rates.levels("op", ())
    assert scopes([await ask(rates, levels, user) for user in "aaaabbbb"]) == [*["", "", "", "user"] * 2]
