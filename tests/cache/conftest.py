"""A real redis-server for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_harness import Redis as RedisServer


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for all of them: each test has a prefix of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
