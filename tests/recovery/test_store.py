"""Each verb of the script, on a real server, with the clients of Redis and of Valkey."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.redis import RedisServer
from support.servers import wait_until

from llmkg_otel.config import CircuitBreakerConfig
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.recovery.store import AWAY_SECONDS, CircuitStore, Question, Verb, Word

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = CircuitBreakerConfig(recovery_timeout=60, success_threshold=2, timeout=10)
NAME = "ask a question: é"


@pytest.fixture(params=["redis", "valkey"])
def store(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[CircuitStore]:
    store = CircuitStore(redis_server.uri.replace("redis", request.param), "fleet-1")
    yield store
    store.close()


def run(store: CircuitStore, verb: Verb, config: CircuitBreakerConfig = CONFIG, **options: float) -> Word:
    at = time.monotonic() - options["age"] if "age" in options else None
    (word,) = store.exchange([Question(verb, NAME, config, int(options.get("token", 0)), at)])
    return word


def opened_long_ago(store: CircuitStore) -> None:
    run(store, "trip", age=61)


def test_of_an_unknown_circuit_nothing_is_kept(store: CircuitStore, redis_server: RedisServer) -> None:
    assert run(store, "look") == Word(NAME, "absent", 0, 0.0)
    assert redis_server.client.keys() == []


def test_an_opening_is_told_to_everybody_with_the_time_that_is_left(store: CircuitStore) -> None:
    with store.subscribed() as next_word:
        told = run(store, "trip", age=20)
        assert next_word() == told
    assert told.state == "open"
    assert told.wait == pytest.approx(40, abs=1)
    assert run(store, "look").wait == pytest.approx(40, abs=1)


def test_silence_on_the_channel_is_none(store: CircuitStore) -> None:
    with store.subscribed() as next_word:
        assert [next_word(), next_word()] == [None, None]


def test_no_probe_is_lent_before_the_recovery_timeout(store: CircuitStore) -> None:
    run(store, "trip", age=20)
    refused = run(store, "probe")
    assert refused.token == 0
    assert refused.wait == pytest.approx(40, abs=1)


def test_of_many_that_ask_one_gets_the_probe_and_the_others_hear_how_long_it_is_lent(
    store: CircuitStore,
) -> None:
    opened_long_ago(store)
    with ThreadPoolExecutor(8) as threads:
        words = list(threads.map(lambda _: run(store, "probe"), range(16)))
    tokens = sorted(word.token for word in words)
    assert tokens[:15] == [-1] * 15
    assert tokens[15] > 0
    assert {round(word.wait) for word in words if word.token < 0} == {10}


def test_a_lease_outlasts_an_attempt_that_takes_all_its_time_and_the_ways_to_the_store(
    store: CircuitStore,
) -> None:
    opened_long_ago(store)
    run(store, "probe")
    lent = run(store, "probe")
    assert lent.wait == pytest.approx(10 + AWAY_SECONDS, abs=0.3)


def test_a_lease_begins_anew_when_its_probe_is_used_and_only_for_its_holder(
    store: CircuitStore, redis_server: RedisServer
) -> None:
    opened_long_ago(store)
    hasty = CONFIG.model_copy(update={"timeout": 1})
    token = run(store, "probe", hasty).token
    run(store, "used", token=token - 1)
    assert run(store, "probe").wait < 2
    run(store, "used", token=token)
    assert run(store, "probe").wait > 9


def set_back_an_hour(server: RedisServer) -> None:
    """Make what the store knows an hour younger, as if its clock had been set back since."""
    key = f"fleet-1:circuit:{NAME}"
    held = {
        field.decode(): int(value) for field, value in server.client.hgetall(key).items() if value.isdigit()
    }
    server.client.hset(key, mapping={name: value + 3600_000_000 for name, value in held.items() if value})


@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_transition_wins_over_those_that_are_to_come_by_a_clock_that_was_set_back(
    state: str, store: CircuitStore, redis_server: RedisServer
) -> None:
    run(store, "trip")
    if state == "closed":
        run(store, "close")
    set_back_an_hour(redis_server)
    before = run(store, "look")
    told = run(store, "trip")
    assert told.state == "open"
    assert told.wait == pytest.approx(60, abs=1)
    assert told.fence > before.fence


def test_a_clock_that_is_set_back_keeps_no_circuit_open_and_no_probe_lent(
    store: CircuitStore, redis_server: RedisServer
) -> None:
    opened_long_ago(store)
    run(store, "probe")
    run(store, "trip")
    set_back_an_hour(redis_server)
    again = run(store, "probe")
    assert again.token > 0
    assert run(store, "probe").token == -1
    assert run(store, "trip", token=again.token).wait == 60.0


@pytest.mark.parametrize("verb", ["trip", "succeeded", "released"])
def test_the_token_of_a_lease_that_another_has_taken_over_changes_nothing(
    verb: Verb, store: CircuitStore, redis_server: RedisServer
) -> None:
    opened_long_ago(store)
    hasty = CONFIG.model_copy(update={"timeout": 0.001})
    stale = run(store, "probe", hasty).token
    fresh: Word = wait_until(lambda: (word := run(store, "probe")).token > 0 and word, "the end of the lease")
    assert fresh.token > stale
    before = redis_server.client.hgetall(f"fleet-1:circuit:{NAME}")
    run(store, verb, token=stale)
    assert redis_server.client.hgetall(f"fleet-1:circuit:{NAME}") == before


def test_enough_successes_close_the_circuit_for_everybody(store: CircuitStore) -> None:
    opened_long_ago(store)
    with store.subscribed() as next_word:
        words = [run(store, "succeeded", token=run(store, "probe").token) for _ in range(2)]
        assert next_word() == words[1]
    assert [word.state for word in words] == ["open", "closed"]
    assert words[1].fence > words[0].fence
    assert run(store, "probe").state == "closed"


def test_a_probe_that_fails_opens_the_circuit_anew_and_successes_count_from_zero(store: CircuitStore) -> None:
    opened_long_ago(store)
    run(store, "succeeded", token=run(store, "probe").token)
    again = run(store, "trip", token=run(store, "probe").token)
    assert (again.state, again.wait) == ("open", 60.0)
    at_once = CONFIG.model_copy(update={"recovery_timeout": 1e-6})
    assert run(store, "succeeded", token=run(store, "probe", at_once).token).state == "open"


def test_a_probe_that_is_given_back_can_be_had_at_once(store: CircuitStore) -> None:
    opened_long_ago(store)
    first = run(store, "probe").token
    run(store, "released", token=first)
    assert run(store, "probe").token > first


def test_the_later_of_two_openings_wins_and_ends_the_lease(store: CircuitStore) -> None:
    later = run(store, "trip", age=20)
    assert run(store, "trip", age=30).fence == later.fence
    assert run(store, "trip", age=10).wait == pytest.approx(50, abs=1)
    opened_long_ago(store)
    assert run(store, "look").wait == pytest.approx(50, abs=1)


def test_an_opening_that_comes_before_the_closing_changes_nothing(store: CircuitStore) -> None:
    opened_long_ago(store)
    for _ in range(2):
        closed = run(store, "succeeded", token=run(store, "probe").token)
    assert run(store, "trip", age=30) == closed
    assert run(store, "trip").state == "open"


def test_many_questions_take_one_round_trip_and_are_answered_in_order(
    store: CircuitStore, redis_server: RedisServer
) -> None:
    store.prepare()
    before = redis_server.calls("evalsha")
    words = store.exchange([Question("trip", f"operation {number}", CONFIG) for number in range(100)])
    assert [word.circuit for word in words] == [f"operation {number}" for number in range(100)]
    assert redis_server.calls("evalsha") == before + 100
    redis_server.client.script_flush()
    assert store.exchange([Question("look", words[7].circuit, CONFIG)])[0][:3] == words[7][:3]


def test_the_later_of_an_opening_and_a_closing_holds_whichever_is_told_first(store: CircuitStore) -> None:
    run(store, "trip", age=20)
    assert run(store, "close", age=30).state == "open"
    closed = run(store, "close", age=10)
    assert (closed.state, closed.wait) == ("closed", 0.0)
    assert run(store, "close", age=5) == closed
    assert run(store, "trip", age=15) == closed
    assert run(store, "trip", age=5).state == "open"


def test_a_closing_is_told_to_everybody_and_ends_the_lease(store: CircuitStore) -> None:
    opened_long_ago(store)
    token = run(store, "probe").token
    with store.subscribed() as next_word:
        closed = run(store, "close")
        assert next_word() == closed
    assert run(store, "trip", token=token) == closed


def test_a_closing_is_kept_by_a_store_that_does_not_know_of_the_opening_yet(store: CircuitStore) -> None:
    closed = run(store, "close", age=10)
    assert closed.state == "closed"
    assert run(store, "trip", age=20) == closed


def test_an_opening_that_was_told_before_is_told_again_only_to_a_store_that_has_lost_it(
    store: CircuitStore,
) -> None:
    first = run(store, "recall", age=20)
    assert first.state == "open"
    assert run(store, "recall", age=10).fence == first.fence
    closed = run(store, "close")
    assert run(store, "recall") == closed


def test_where_nothing_is_known_the_word_of_who_asks_is_taken(store: CircuitStore) -> None:
    assert run(store, "probe").token > 0
    assert run(store, "look").state == "open"


def test_a_failed_probe_opens_a_circuit_that_the_store_has_forgotten(
    store: CircuitStore, redis_server: RedisServer
) -> None:
    opened_long_ago(store)
    token = run(store, "probe").token
    redis_server.client.flushall()
    assert run(store, "trip", token=token).wait == 60.0


def test_fences_go_on_growing_after_the_store_has_lost_its_data(
    store: CircuitStore, redis_server: RedisServer
) -> None:
    before = run(store, "trip").fence
    redis_server.client.flushall()
    assert run(store, "trip").fence > before


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        (CONFIG, 3600),
        (CircuitBreakerConfig(recovery_timeout=1000), 10_000),
        (CircuitBreakerConfig(timeout=2000), 20_000),
        (CircuitBreakerConfig(recovery_timeout=1e9), 1e10),
    ],
)
def test_keys_expire_but_outlive_an_open_circuit(
    config: CircuitBreakerConfig, seconds: float, store: CircuitStore, redis_server: RedisServer
) -> None:
    run(store, "trip", config)
    (key,) = redis_server.client.keys()
    assert key.decode() == f"fleet-1:circuit:{NAME}"
    assert redis_server.client.pttl(key) / 1000 == pytest.approx(seconds, abs=5)


def test_a_hung_server_is_an_error_in_half_a_second(store: CircuitStore, redis_server: RedisServer) -> None:
    with store.subscribed() as next_word:
        run(store, "look")
        redis_server.pause()
        started = time.monotonic()
        with pytest.raises(Exception, match=r"(?i)timeout"):
            run(store, "look")
        assert AWAY_SECONDS <= time.monotonic() - started < AWAY_SECONDS + 0.2
        with pytest.raises(Exception, match=r"(?i)timeout|no answer"):
            next_word()
        redis_server.resume()


def test_a_uri_that_cannot_be_used_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigurationError, match="%2F") as caught:
        CircuitStore("redis://:s3cr/et@host:6379", "llmkg")
    assert "s3cr" not in str(caught.value)


def test_closing_closes_the_connections_to_sentinels_too(redis_server: RedisServer, tmp_path: Path) -> None:
    sentinel = RedisServer(directory=tmp_path, sentinel_of=redis_server)
    try:
        before = len(sentinel.client.client_list())
        store = CircuitStore(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", "fleet-1")
        run(store, "trip")
        assert len(sentinel.client.client_list()) > before
        store.close()
        wait_until(lambda: len(sentinel.client.client_list()) == before, "the end of the connections")
    finally:
        sentinel.kill()


def test_a_sentinel_that_hangs_keeps_nobody_for_long(redis_server: RedisServer, tmp_path: Path) -> None:
    sentinel = RedisServer(directory=tmp_path, sentinel_of=redis_server)
    try:
        store = CircuitStore(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", "fleet-1")
        sentinel.pause()
        with ThreadPoolExecutor(1) as thread:
            hung = thread.submit(run, store, "look")
            try:
                with pytest.raises(Exception, match="No master found"):
                    hung.result(10 * AWAY_SECONDS)
            finally:
                sentinel.resume()
        store.close()
    finally:
        sentinel.kill()
