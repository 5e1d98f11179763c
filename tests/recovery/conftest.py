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
