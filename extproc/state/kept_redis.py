"""What quotas that follow their history have seen, in Redis: where `sharing` has the quotas themselves.

One hash, {prefix}:adjust:v1, tenant → numbers. Every service reads it when it begins and writes what it has
seen; the last word stands. Waits at most OPERATION_TIMEOUT_S, never on a request's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.state import redis_client

#: Tenants read at once; a hash that holds more is none of ours.
TENANTS_MAX = 100_000

_decoder = msgspec.msgpack.Decoder(list[float])


class KeptHistories:
    """Histories under a prefix; raises ValueError for a URL that names no Redis."""

    def __init__(self, url: str, *, prefix: str) -> None:
        self.place = redis_client.place(url)
        self._key = f"{{{prefix}}}:adjust:v1"
        self._client = redis_client.connect(url)

    async def load(self) -> dict[str, list[float]]:
        """All of them; what is no history is left out. Raises RedisError, OSError or TimeoutError."""
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            if await self._client.hlen(self._key) > TENANTS_MAX:
                return {}
            found: Any = await self._client.hgetall(self._key)
        histories = {}
        for name, data in found.items():
            try:
                histories[name.decode()] = _decoder.decode(data)
            except (msgspec.MsgspecError, ValueError):
                continue
        return histories

    async def save(self, histories: Mapping[str, list[float]]) -> None:
        """Write some; the others stay. Raises as `load`."""
        mapping: dict[Any, Any] = {name: msgspec.msgpack.encode(each) for name, each in histories.items()}
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            await self._client.hset(self._key, mapping=mapping)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()
