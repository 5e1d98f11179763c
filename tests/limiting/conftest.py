from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from limiting.sharing import SLOW, Make
from support.redis import RedisServer

from llmkg_otel.config import RateLimitConfig
from llmkg_otel.limiting import store as store_module
from llmkg_otel.limiting.rates import make_rate_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkg_otel.limiting.rates import RateLimits


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(directory=tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Give the server as new, whatever an earlier test did to it."""
    if shared_redis.process.poll() is not None:
        shared_redis.start()
    shared_redis.resume()
    shared_redis.client.ping()  # answers when a CLIENT PAUSE is over; CLIENT UNPAUSE is paused too
    shared_redis.client.flushall()
    return shared_redis


@pytest.fixture
def make(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.1)
    made: list[RateLimits] = []

    def instance(burst: int = 9, **options: Any) -> RateLimits:
        config = RateLimitConfig(
            **{
                "requests_per_second": SLOW,
                "burst_capacity": burst,
                "storage_uri": redis_server.uri,
                **options,
            }
        )
        made.append(make_rate_limits(config))
        return made[-1]

    yield instance
    redis_server.resume()
    for rates in made:
        rates.close()
