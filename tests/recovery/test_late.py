"""A store whose answers come when no call waits for them any more: the fleet still recovers."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support.fleet import BROKEN, granted
from support.servers import wait_until
from support.slow_proxy import slow_proxy

from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.recovery.fleet import NO_WORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.fleet import Instance
    from support.redis import RedisServer

KEY = "llmkg:circuit:search"


def ask_in_vain(one: Instance, server: RedisServer) -> int:
    """Have a probe asked for, given up and kept when it comes; return its token."""
    server.pause()
    asked = one.line.request_probe()
    assert asked is not None
    assert asked.cancel()
    server.resume()
    token = int(wait_until(lambda: int(server.client.hget(KEY, "token")), "the probe that nobody waits for"))
    wait_until(lambda: one.line._late, "the late probe")
    return token


def late(make: Callable[..., Instance], server: RedisServer, **config: Any) -> tuple[Instance, int]:
    """Return an instance that keeps a late probe, and its token."""
    one = make(recovery_timeout=1e-6, **config)
    one.fail_for_all(server)
    return one, ask_in_vain(one, server)


def test_a_probe_that_comes_when_nobody_waits_is_the_next_callers_and_only_its(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, token = late(make, redis_server)
    redis_server.pause()  # what is kept needs no answer
    first, second = one.line.request_probe(), one.line.request_probe()
    assert first is not None
    assert second is not None
    assert first.done()
    assert granted(first) == token
    assert not second.done()
    redis_server.resume()
    word = second.result(1)
    assert word is not None
    assert (word.token, word.lent) == (None, True)


def test_the_lease_of_a_late_probe_begins_anew_when_it_is_used(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, _ = late(make, redis_server, timeout=60)
    before = int(redis_server.client.hget(KEY, "expires"))
    assert one.line.request_probe()
    wait_until(lambda: int(redis_server.client.hget(KEY, "expires")) > before, "a longer lease")


def test_a_late_probe_whose_lease_is_nearly_over_is_asked_for_again(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, token = late(make, redis_server, timeout=0.2)
    until = one.line._usable_until
    wait_until(lambda: time.monotonic() > until, "the end of the time it is kept for")
    assert (one.probe_in_time().token or 0) > token


def test_a_late_probe_is_given_back_at_the_end(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, _ = late(make, redis_server)
    one.circuits.stop()
    assert redis_server.client.hget(KEY, "token") == b"0"


def test_a_probe_that_comes_late_during_the_end_is_given_back(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail_for_all(redis_server)
    asked = one.line.request_probe()
    assert asked is not None
    asked.cancel()
    one.circuits.stop()
    assert redis_server.client.hget(KEY, "token") == b"0"


def test_a_late_probe_is_forgotten_when_the_circuit_moves_on(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, other = make(recovery_timeout=1e-6), make()
    one.fail()
    other.becomes("open")
    ask_in_vain(one, redis_server)
    other.line.closed(None)
    one.becomes("closed")
    assert one.line._late is None


def test_a_late_probe_is_given_back_when_the_circuit_closes_here(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, _ = late(make, redis_server)
    one.breaker.force_close()
    assert one.line._late is None
    wait_until(lambda: redis_server.client.hget(KEY, "token") == b"0", "the probe's return")


def test_a_late_probe_is_no_probe_of_a_store_that_was_lost_meanwhile(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, _ = late(make, redis_server)
    redis_server.pause()
    one.is_in("fallback")
    assert one.line.request_probe() is None
    redis_server.resume()
    one.is_in("primary")
    one.probe_in_time()


@pytest.mark.parametrize("round_trip", [0.06, 0.12, 0.2])
async def test_behind_a_store_that_always_answers_late_a_fleet_probes_once_a_period_and_recovers(
    round_trip: float, make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    recovery, seconds, patience = 0.5, 2.5, 30.0
    probes: list[float] = []
    alive = False

    async def keep_calling(one: Instance, until: Callable[[], bool]) -> None:
        while not until():
            await asyncio.sleep(0.02)
            try:
                ticket = await one.breaker.admit()
            except CircuitOpenError:
                continue
            probes.append(time.monotonic())
            if alive:
                one.breaker.succeeded(ticket, first=True)
            else:
                one.breaker.failed(ticket, BROKEN)

    async with slow_proxy(redis_server.port, round_trip) as far:
        uri = f"redis://127.0.0.1:{far}/0"
        fleet = [make(uri=uri, started=False, recovery_timeout=recovery) for _ in range(3)]
        for one in fleet:
            await asyncio.to_thread(one.circuits.start)
            await asyncio.to_thread(one.is_in, "primary")
        fleet[0].fail()
        for one in fleet:
            await asyncio.to_thread(one.becomes, "open")
        end = time.monotonic() + seconds
        await asyncio.gather(*(keep_calling(one, lambda: time.monotonic() > end) for one in fleet))
        assert min(later - earlier for earlier, later in pairwise(probes)) >= recovery
        assert len(probes) >= seconds / (recovery + 3 * round_trip + 0.2) / 2
        alive, back = True, time.monotonic()
        breakers = [one.breaker for one in fleet]

        def over() -> bool:
            all_closed = all(breaker.state == "closed" for breaker in breakers)
            return all_closed or time.monotonic() > back + patience

        await asyncio.gather(*(keep_calling(one, over) for one in fleet))
        assert time.monotonic() - back < recovery + 4 * round_trip + 1
        assert {one.circuits.status for one in fleet} <= {"primary", "slow"}
        for one in fleet:
            await asyncio.to_thread(one.circuits.stop)


async def test_while_a_store_hangs_a_call_waits_for_nothing_that_was_late_and_each_process_decides_alone(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail_for_all(redis_server)
    redis_server.pause()
    asked = one.line.request_probe()
    assert asked is not None
    assert one.line.request_probe().result(0) == NO_WORD  # type: ignore[union-attr]
    asked.cancel()
    one.is_in("fallback")
    assert one.line._late is None
    assert one.line.request_probe() is None
    assert (await one.breaker.admit()).token is None
    redis_server.resume()
