"""What the tests of the analytics share: a scheduler with one pool, ended requests, real stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.observe.analytics import AnalyticsStore, MemoryStore
from extproc.observe.analytics.redis_store import RedisStore
from extproc.observe.analytics.sqlite_store import SqliteStore
from tests.state.conftest import redis_server

__all__ = ["redis_server"]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnalyticsStore]:
    """Each kind of store, empty."""
    made: AnalyticsStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = SqliteStore(tmp_path / "analytics", bytes_max=1 << 30)
    else:
        made = RedisStore(request.getfixturevalue("redis_server").url, prefix="t", where="here")
    yield made
    made.close()
