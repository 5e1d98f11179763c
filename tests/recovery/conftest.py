"""A redis-server, and instances of a fleet that shares it, as fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.fleet import Instance
from support.redis import RedisServer, started_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = started_redis()
    yield server
    server.kill()


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Callable[..., Instance]]:
    made: list[Instance] = []

    def start(*, started: bool = True, uri: str = redis_server.uri, **options: Any) -> Instance:
        made.append(Instance(uri, **options))
        if started:
            made[-1].circuits.start()
        return made[-1]

    yield start
    for instance in made:
        instance.circuits.stop()


@pytest.fixture(autouse=True)
def _slow_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine any store is late now and then: only one test waits for how long that is told of."""
    monkeypatch.setattr("llmkg_otel.recovery.shared.SLOW_SECONDS", 0.0)
