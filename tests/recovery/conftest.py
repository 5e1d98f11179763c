"""A redis-server as a fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.redis import RedisServer, started_redis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = started_redis()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _slow_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine any store is late now and then: only one test waits for how long that is told of."""
    monkeypatch.setattr("llmkg_otel.recovery.shared.SLOW_SECONDS", 0.0)
