"""The key that services which share seal their tickets with: the first one to come leaves it in Redis.

Owns its name there and when it is looked at. Redis is trusted with loads and quotas already: whoever writes
there can charge a tenant without any ticket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import MovedError, ReadOnlyError, ResponseError

from extproc.state import redis_client

#: Looked at this often: a Redis that was emptied gets it again.
EVERY_NS = 10_000_000_000
KEY_BYTES = 32


class SharedKey:
    """One service's side: `own` is the key that it seals with, `learn` takes the one of all."""

    def __init__(self, prefix: str, *, own: Callable[[], bytes], learn: Callable[[bytes], None]) -> None:
        # The braces keep all of a prefix in one slot of a cluster.
        self._name = f"{{{prefix}}}:seal:v1"
        self._own, self._learn = own, learn
        self._agreed_ns: int | None = None

    def forget(self) -> None:
        """A new session: look at once."""
        self._agreed_ns = None

    async def agree(self, client: Redis, *, now_ns: int) -> bool:
        """Look where it is due; false when the store refused."""
        if self._agreed_ns is not None and now_ns - self._agreed_ns < EVERY_NS:
            return True
        self._agreed_ns = now_ns
        try:
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                await client.set(self._name, self._own().hex(), nx=True)
                found: Any = await client.get(self._name)
        except (ReadOnlyError, MovedError):
            raise
        except ResponseError:
            return False
        if found is None or len(found) != 2 * KEY_BYTES:
            return False
        try:
            self._learn(bytes.fromhex(found.decode("ascii", "replace")))
        except ValueError:
            return False
        return True
