"""Instances of a fleet in one process: what one learns the others adopt, with and without the store."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from support.fleet import BROKEN, Instance, granted
from support.servers import wait_until
from support.time import Seen

from llmkg_otel.config import CircuitBreakerConfig, CircuitSharingConfig
from llmkg_otel.errors import CircuitOpenError
from llmkg_otel.recovery import fleet, shared
from llmkg_otel.recovery.breaker import CircuitBreaker
from llmkg_otel.recovery.fleet import FLEET_SECONDS, NO_WORD
from llmkg_otel.recovery.store import Word

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.redis import RedisServer


def test_a_circuit_that_opens_in_one_process_is_open_in_all(make: Callable[..., Instance]) -> None:
    one, other = make(), make()
    one.fail()
    other.becomes("open")
    assert other.breaker.retry_after == pytest.approx(one.breaker.retry_after, abs=1)
    with pytest.raises(CircuitOpenError, match="search has been failing") as caught:
        other.breaker.admit_sync()
    assert caught.value.limit == "failures in another process"


def test_a_process_that_starts_later_finds_the_circuit_open(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    make().fail_for_all(redis_server)
    assert make().breaker.state == "open"


def test_an_operation_that_is_first_used_later_finds_its_circuit_open(
    make: Callable[..., Instance], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make(), make()
    one.fail_for_all(redis_server)
    monkeypatch.setattr(fleet, "FLEET_SECONDS", 10)  # a busy machine is late now and then
    late = CircuitBreaker("search", CircuitBreakerConfig(), Seen())
    late.fleet = other.circuits.join(late)
    with pytest.raises(CircuitOpenError):
        late.admit_sync()


@pytest.mark.parametrize("trouble", ["kill", "pause"])
async def test_the_first_calls_of_an_operation_wait_50_ms_at_most_for_the_fleets_word(
    trouble: str, make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make()
    getattr(redis_server, trouble)()
    late = CircuitBreaker("late", CircuitBreakerConfig(), Seen())
    late.fleet = one.circuits.join(late)
    started = time.monotonic()
    tickets = [
        *await asyncio.gather(*(late.admit() for _ in range(20))),
        await asyncio.to_thread(late.admit_sync),
    ]
    assert time.monotonic() - started < 2 * FLEET_SECONDS + 0.1
    assert set(tickets) == {late._ticket}
    wait_until(lambda: late.door, "calls that do not wait any more")
    if trouble == "pause":
        redis_server.resume()


async def test_no_first_call_waits_longer_than_it_has_time(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make()
    redis_server.pause()
    late = CircuitBreaker("late", CircuitBreakerConfig(), Seen())
    late.fleet = one.circuits.join(late)
    started = time.monotonic()
    for _ in range(20):
        await late.admit(0.001)
        await asyncio.to_thread(late.admit_sync, 0.001)
    assert time.monotonic() - started < 40 * FLEET_SECONDS / 2
    redis_server.resume()


async def test_a_closed_circuit_of_the_fleet_is_asked_for_once(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make()
    wait_until(lambda: one.breaker.door, "the fleet's first word")
    before = redis_server.calls("evalsha")
    late = CircuitBreaker("late", CircuitBreakerConfig(), Seen())
    late.fleet = one.circuits.join(late)
    for _ in range(100):
        late.succeeded(await late.admit(), first=True)
    wait_until(lambda: late.door, "the fleet's first word")
    assert redis_server.calls("evalsha") == before + 1


def test_one_probe_at_a_time_for_the_whole_fleet_and_its_success_closes_every_circuit(
    make: Callable[..., Instance],
) -> None:
    one, other = make(recovery_timeout=0.1), make(recovery_timeout=0.1)
    one.fail()
    other.becomes("open")
    probe = one.probe_in_time()
    wait_until(lambda: other.breaker.retry_after == 0, "the recovery timeout there too")
    with pytest.raises(CircuitOpenError) as caught:
        other.breaker.admit_sync()
    assert caught.value.retry_after == pytest.approx(10, abs=1)  # the lease, as long as an attempt may take
    other.breaker._circuit.usual.note(0.2, 0.0)
    with pytest.raises(CircuitOpenError) as caught:
        other.breaker.admit_sync()
    assert caught.value.retry_after == 0.2  # what the probe should take
    one.breaker.succeeded(probe, first=True)
    other.becomes("closed")
    one.becomes("closed")


def test_successes_of_several_processes_count_together(make: Callable[..., Instance]) -> None:
    config = {"recovery_timeout": 0.1, "success_threshold": 2}
    one, other = make(**config), make(**config)
    one.fail()
    other.becomes("open")
    for instance in (one, other):
        instance.breaker.succeeded(instance.probe_in_time(), first=True)
    one.becomes("closed")
    other.becomes("closed")
    assert one.states == ["open", "half_open", "closed"]


def test_a_probe_that_fails_sends_the_whole_fleet_back_to_waiting(make: Callable[..., Instance]) -> None:
    one, other = make(recovery_timeout=0.3), make(recovery_timeout=0.3)
    one.fail()
    other.becomes("open")
    probe = one.probe_in_time()
    assert other.probe() is None
    one.breaker.failed(probe, BROKEN)
    wait_until(lambda: other.breaker.retry_after, "another time to wait")
    assert other.breaker.retry_after == pytest.approx(0.3, abs=0.1)


def test_a_cancelled_probe_lets_another_process_probe(make: Callable[..., Instance]) -> None:
    one, other = make(recovery_timeout=0.1), make(recovery_timeout=0.1)
    one.fail()
    other.becomes("open")
    one.breaker.ignored(one.probe_in_time())
    other.probe_in_time()


def test_other_prefixes_are_other_fleets(make: Callable[..., Instance], redis_server: RedisServer) -> None:
    one, other = make(), make(prefix="others")
    one.fail()
    wait_until(lambda: redis_server.client.keys() == [b"llmkg:circuit:search"], "the key")
    assert other.breaker.state == "closed"


def test_other_databases_of_one_server_are_other_fleets(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    zero, one, another = (make(uri=f"{redis_server.uri}/{database}") for database in (0, 1, 1))
    another.fail()
    one.becomes("open")
    another.breaker.force_close()
    one.becomes("closed")
    zero.fail()
    wait_until(redis_server.client.keys, "the key in database 0")
    zero.line.request_probe()
    wait_until(lambda: zero.line._answer is None, "an answer from the fleet")
    assert zero.states == ["open"]
    assert one.states == ["open", "closed"]


def test_a_closed_circuit_asks_and_tells_nothing(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make(failure_threshold=2)

    def exchanges() -> int:
        return sum(redis_server.calls(command) for command in ("evalsha", "eval", "publish", "hmget"))

    before = exchanges()
    for _ in range(1000):
        one.breaker.succeeded(one.breaker.admit_sync(), first=True)
        one.breaker.failed(one.breaker.admit_sync(), BROKEN)
        one.breaker.ignored(one.breaker.admit_sync())
        one.breaker.succeeded(one.breaker.admit_sync(), first=False)
    assert exchanges() == before
    one.fail()
    one.fail()
    wait_until(lambda: exchanges() > before, "an exchange when it opens")


def test_of_calls_that_come_together_one_asks_and_the_others_are_refused_at_once(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail_for_all(redis_server)
    before = redis_server.calls("evalsha")
    redis_server.pause()
    asked = one.line.request_probe()
    assert asked is not None
    others = [one.line.request_probe() for _ in range(100)]
    redis_server.resume()
    assert {other.result(0) for other in others if other is not None} == {NO_WORD}
    assert granted(asked)
    assert redis_server.calls("evalsha") == before + 1


def test_words_that_are_older_than_the_last_one_change_nothing(make: Callable[..., Instance]) -> None:
    one = make(started=False)
    one.line.hear(Word("search", "open", 7, 30.0))
    one.line.hear(Word("search", "closed", 6, 0.0))
    assert one.breaker.state == "open"
    one.line.hear(Word("search", "closed", 9, 0.0))
    one.line.hear(Word("search", "open", 8, 30.0))
    assert one.breaker.state == "closed"


def test_what_was_said_before_a_lease_does_not_end_it(make: Callable[..., Instance]) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail()
    probe = one.probe_in_time()
    assert probe.token is not None
    one.line.hear(Word("search", "open", probe.token - 1, 30.0))
    assert one.breaker.state == "half_open"


def test_an_instance_hears_itself_and_is_not_moved_by_it(make: Callable[..., Instance]) -> None:
    one, other = make(recovery_timeout=0.05), make()
    for _ in range(5):
        one.fail()
        other.becomes("open")
        one.breaker.succeeded(one.probe_in_time(), first=True)
        other.becomes("closed")
        one.becomes("closed")
    assert one.states == ["open", "half_open", "closed"] * 5


def test_force_close_closes_the_circuit_of_the_fleet(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, other = make(recovery_timeout=1e-6), make()
    one.fail()
    other.becomes("open")
    probe = one.probe_in_time()
    other.breaker.force_close()
    one.becomes("closed")
    one.breaker.failed(probe, BROKEN)  # sent before: its outcome changes nothing
    other.line.request_probe()
    wait_until(lambda: other.line._answer is None, "an answer from the fleet")
    assert (one.breaker.state, other.breaker.state) == ("closed", "closed")
    assert redis_server.client.hget("llmkg:circuit:search", "state") == b"closed"
    assert make().breaker.state == "closed"


@pytest.mark.parametrize("override", ["force_open", "disable"])
def test_an_override_outlasts_what_the_fleet_says_and_is_told_to_nobody(
    override: str, make: Callable[..., Instance]
) -> None:
    one, other = make(recovery_timeout=0.05), make()
    getattr(other.breaker, override)()
    overridden = other.breaker.state
    one.fail()
    wait_until(lambda: other.breaker._circuit.state == "open", "the fleet's word")
    assert other.breaker.state == overridden
    assert one.breaker.state == "open"
    one.breaker.succeeded(one.probe_in_time(), first=True)
    wait_until(lambda: other.breaker._circuit.state == "closed", "the fleet's word")
    assert other.breaker.state == overridden
    assert one.states == ["open", "half_open", "closed"]


@pytest.mark.parametrize(
    ("override", "outcome"), [("force_open", "failed"), ("disable", "failed"), ("disable", "succeeded")]
)
def test_the_outcome_of_the_fleets_probe_counts_also_where_it_was_overridden_meanwhile(
    override: str, outcome: str, make: Callable[..., Instance]
) -> None:
    one, other = make(recovery_timeout=0.05), make(recovery_timeout=0.05)
    one.fail()
    other.becomes("open")
    probe = one.probe_in_time()
    getattr(one.breaker, override)()
    if outcome == "failed":
        one.breaker.configure(make().breaker.config)  # open for a minute from now on
        one.breaker.failed(probe, BROKEN)
        wait_until(lambda: (other.breaker.retry_after or 0) > 1, "a minute")
    else:
        one.breaker.succeeded(probe, first=True)
        other.becomes("closed")


@pytest.mark.parametrize("override", ["force_open", "disable"])
def test_the_end_of_an_override_leaves_all_closed_also_where_the_fleet_opened_meanwhile(
    override: str, make: Callable[..., Instance]
) -> None:
    one, other = make(), make()
    getattr(other.breaker, override)()
    one.fail()
    wait_until(lambda: other.breaker._circuit.state == "open", "the fleet's word")
    other.breaker.force_close()
    one.becomes("closed")
    assert other.breaker.state == "closed"


def test_a_store_that_is_back_does_not_undo_a_force_close(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one, other = make(), make()
    one.fail()
    other.becomes("open")
    redis_server.pause()
    other.is_in("fallback")
    other.breaker.force_close()
    redis_server.resume()
    other.is_in("primary")
    one.becomes("closed")
    assert other.breaker.state == "closed"


def test_a_probe_that_is_out_at_the_end_is_given_back(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail()
    one.breaker.ignored(one.probe_in_time())  # as the end of the call that was cancelled does
    one.circuits.stop()
    assert redis_server.client.hget("llmkg:circuit:search", "token") == b"0"
    assert one.line.request_probe() is None


def test_what_is_asked_before_the_end_is_answered(make: Callable[..., Instance]) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail()
    asked = one.line.request_probe()
    one.circuits.stop()
    assert asked is not None
    assert granted(asked)


def test_a_line_that_was_never_started_can_be_stopped(make: Callable[..., Instance]) -> None:
    make(started=False).circuits.stop()


class TestWithoutTheStore:
    """Killed, hung, or never there: each process goes on alone."""

    def test_a_process_starts_without_it(
        self, make: Callable[..., Instance], redis_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        redis_server.kill()
        one = make(recovery_timeout=1e-6)
        one.fail()
        assert one.probe() is not None
        redis_server.restart()
        one.is_in("primary")
        records = [record for record in caplog.records if record.name == shared.__name__]
        (warning,) = [record.message for record in records if record.levelno == logging.WARNING]
        assert "each process decides alone" in warning

    @pytest.mark.parametrize("trouble", ["kill", "pause"])
    def test_an_opening_that_could_not_be_told_is_told_on_return(
        self, trouble: str, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one, other = make(), make()
        getattr(redis_server, trouble)()
        one.is_in("fallback")
        one.fail()
        assert other.breaker.state == "closed"
        (redis_server.restart if trouble == "kill" else redis_server.resume)()
        other.becomes("open")
        assert other.breaker.retry_after == pytest.approx(one.breaker.retry_after, abs=1)

    def test_of_an_opening_that_was_over_before_it_could_be_told_only_the_closing_is_told(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one, other = make(), make()
        redis_server.kill()
        one.is_in("fallback")
        other.is_in("fallback")
        one.fail()
        one.breaker.force_close()
        redis_server.restart()
        one.is_in("primary")
        other.is_in("primary")
        assert (one.breaker.state, other.breaker.state) == ("closed", "closed")
        assert redis_server.client.hget("llmkg:circuit:search", "state") == b"closed"

    def test_a_closing_that_came_later_wins_over_an_opening_that_could_not_be_told(
        self, make: Callable[..., Instance]
    ) -> None:
        alone = make(started=False)
        alone.fail()
        other = make(recovery_timeout=0.05)
        other.fail()
        other.breaker.succeeded(other.probe_in_time(), first=True)
        other.becomes("closed")
        alone.circuits.start()
        alone.becomes("closed")
        assert other.breaker.state == "closed"

    def test_the_later_of_two_openings_wins(self, make: Callable[..., Instance]) -> None:
        alone = make(started=False)
        alone.fail()
        alone.breaker.adopt_open(30)
        alone.line._last = "trip", time.monotonic() - 30
        other = make()
        other.fail()
        alone.circuits.start()
        wait_until(lambda: (alone.breaker.retry_after or 0) > 45, "the other's opening")
        assert other.breaker.retry_after == pytest.approx(alone.breaker.retry_after, abs=1)

    def test_an_open_circuit_survives_a_store_that_has_lost_its_data(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one = make()
        one.fail_for_all(redis_server)
        redis_server.kill()
        one.is_in("fallback")
        redis_server.restart()
        wait_until(redis_server.client.keys, "the key, again")
        assert make().breaker.retry_after == pytest.approx(one.breaker.retry_after, abs=1)

    @pytest.mark.parametrize("trouble", ["kill", "pause"])
    def test_a_closing_that_could_not_be_told_holds_for_the_fleet_on_return(
        self, trouble: str, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one, other = make(recovery_timeout=0.05), make()
        one.fail()
        other.becomes("open")
        getattr(redis_server, trouble)()
        one.is_in("fallback")
        other.is_in("fallback")
        one.breaker.succeeded(wait_until(one.probe, "a probe of its own"), first=True)
        assert (one.breaker.state, other.breaker.state) == ("closed", "open")
        (redis_server.restart if trouble == "kill" else redis_server.resume)()
        other.becomes("closed")
        one.is_in("primary")
        assert one.breaker.state == "closed"
        assert redis_server.client.hget("llmkg:circuit:search", "state") == b"closed"

    def test_an_opening_after_that_closing_wins_over_it(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one, other = make(recovery_timeout=0.05), make()
        one.fail()
        other.becomes("open")
        redis_server.kill()
        one.is_in("fallback")
        other.is_in("fallback")
        one.breaker.succeeded(wait_until(one.probe, "a probe of its own"), first=True)
        one.line._last = "close", time.monotonic() - 1  # more than what exchanges may differ by
        other.breaker.force_close()
        other.fail()
        redis_server.restart()
        one.becomes("open")
        assert other.breaker.state == "open"

    def test_a_closing_whose_report_was_lost_with_the_store_holds_too(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one = make(recovery_timeout=0.05)
        one.fail()
        probe = one.probe_in_time()
        assert probe.token is not None
        redis_server.pause()
        one.is_in("fallback")
        one.breaker.succeeded(probe, first=True)
        redis_server.resume()
        one.is_in("primary")
        closed = redis_server.client.hget
        wait_until(lambda: closed("llmkg:circuit:search", "state") == b"closed", "the closing in the store")
        assert one.breaker.state == "closed"

    async def test_calls_wait_50_ms_for_a_hung_store_until_it_counts_as_away_and_then_not_at_all(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one = make(recovery_timeout=1e-6, half_open_max_probes=100)
        one.fail_for_all(redis_server)
        redis_server.pause()
        while one.circuits.status != "fallback":
            started = time.monotonic()
            with suppress(CircuitOpenError):
                one.breaker.ignored(await one.breaker.admit())
            assert time.monotonic() - started < FLEET_SECONDS + 0.1
        started = time.monotonic()
        for _ in range(100):
            one.breaker.ignored(await one.breaker.admit())
        assert time.monotonic() - started < FLEET_SECONDS

    async def test_a_probe_that_was_granted_to_a_cancelled_call_is_given_back(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one = make(recovery_timeout=1e-6)
        one.fail_for_all(redis_server)
        redis_server.pause()
        call = asyncio.create_task(one.breaker.admit())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        redis_server.resume()
        one.circuits.stop()
        assert redis_server.client.hget("llmkg:circuit:search", "token") == b"0"

    def test_too_much_to_tell_counts_as_a_loss_of_the_store(
        self, make: Callable[..., Instance], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared, "MAX_JOBS", 3)
        one = make()
        redis_server.pause()
        for _ in range(6):
            one.line.released(1)
        assert one.circuits.status == "fallback"
        redis_server.resume()
        one.is_in("primary")

    def test_nothing_that_is_told_or_asked_raises_or_waits(
        self, make: Callable[..., Instance], redis_server: RedisServer
    ) -> None:
        one = make()
        redis_server.pause()
        started = time.monotonic()
        asked = one.line.request_probe()
        one.line.opened(None)
        one.line.succeeded(1)
        one.line.released(1)
        assert time.monotonic() - started < 0.01
        assert asked is not None
        assert asked.result(1) is None
        one.is_in("fallback")
        with ThreadPoolExecutor(4) as threads:
            assert set(threads.map(lambda _: one.line.request_probe(), range(20))) == {None}


def test_a_probe_that_comes_too_late_for_one_call_is_the_next_ones(
    make: Callable[..., Instance], redis_server: RedisServer
) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail_for_all(redis_server)
    redis_server.pause()
    first = one.line.request_probe()
    assert first is not None
    assert first.cancel()
    second = one.line.request_probe()
    redis_server.resume()
    assert second is not None
    assert granted(second)
    assert redis_server.client.hget("llmkg:circuit:search", "token") != b"0"


def test_a_store_that_answers_too_late_is_told_of_as_slow(
    make: Callable[..., Instance], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SLOW_SECONDS", 60)
    one = make(recovery_timeout=1e-6)
    one.fail_for_all(redis_server)
    redis_server.pause()
    assert one.probe() is None
    redis_server.resume()
    one.is_in("slow")


def test_a_process_without_word_in_time_refuses_and_sends_no_probe_of_its_own(
    make: Callable[..., Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(recovery_timeout=1e-6)
    one.fail()
    monkeypatch.setattr(one.line, "request_probe", Future)  # as if the answer never came
    with pytest.raises(CircuitOpenError) as caught:
        one.breaker.admit_sync()
    assert caught.value.retry_after == FLEET_SECONDS
    assert one.circuits.status == "primary"


def test_a_password_is_in_no_log_line(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uri = redis_server.uri.replace("//", "//:s3cret-of-the-house@")
    one = Instance(uri)  # the server wants none, and says so
    one.circuits.start()
    one.is_in("fallback")
    wait_until(lambda: caplog.records, "a warning")
    one.circuits.stop()
    assert "s3cret" not in caplog.text
    assert "s3cret" not in repr(CircuitSharingConfig(storage_uri=SecretStr(uri)))
