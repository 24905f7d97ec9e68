"""Names of other sites' tokens that one of several services took, in Redis: what one took no other takes.

Owns the keys, {prefix}:taken:v1:SITE:NAME, which live as long as tokens may hold, and the wait: within the
budget (law: Redis within its budget), or each service goes by what it took itself. After a failure nobody
asks for a moment, so that Redis that is away costs one request a second its budget.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from redis.exceptions import RedisError

from extproc.state import redis_client

log = logging.getLogger(__name__)

BUDGET_S: Final = 0.005
PAUSE_NS: Final = 1_000_000_000
#: Questions under way; above it each service goes by its own memory.
ASKED_MAX: Final = 64


class SharedTaken:
    """The names under a prefix; raises ValueError for a URL that names no Redis. `counts`: asked, unasked (in
    a pause, or too many at once), used (before), and late (no answer within the budget)."""

    def __init__(
        self, url: str, *, prefix: str, clock: Callable[[], int], budget_s: float = BUDGET_S
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._prefix, self._clock, self._budget_s = f"{{{prefix}}}:taken:v1", clock, budget_s
        self._client = redis_client.connect(url)
        self._transitions = redis_client.Transitions(url, self.counts, log)
        self._until_ns = clock()
        self._tasks: set[asyncio.Task[bool]] = set()

    @property
    def under_way(self) -> int:
        """Questions that are not answered yet, those that are late among them."""
        return len(self._tasks)

    async def first(self, site: str, name: str, *, life_s: float) -> bool:
        """Whether nobody took a site's token of that name before, which holds for so long. True where Redis
        does not say within the budget."""
        if self._clock() < self._until_ns or self.under_way >= ASKED_MAX:
            self.counts["unasked"] += 1
            return True
        # It goes on when it is late: to cancel it would cost the connection, and the name is to be kept.
        task = asyncio.create_task(self._set(f"{self._prefix}:{site}:{name}", life_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        done, _ = await asyncio.wait({task}, timeout=self._budget_s)
        if not done:
            self.counts["late"] += 1
            return True
        return task.result()

    async def _set(self, key: str, life_s: float) -> bool:
        self.counts["asked"] += 1
        try:
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                new = await self._client.set(key, b"", nx=True, px=max(1, round(life_s * 1e3)))
        except (RedisError, OSError, TimeoutError) as error:
            self._until_ns = self._clock() + PAUSE_NS
            without = "each service knows the other sites' tokens that it took itself"
            self._transitions.lost(redis_client.reason(error), without, closing=False)
            return True
        again = "what one service took no other takes"
        self._transitions.back(again, sharing="the other sites' tokens", name="this service")
        if not new:
            self.counts["used"] += 1
        return bool(new)

    async def close(self) -> None:
        """Let go of the connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RedisError, OSError, TimeoutError):
            await self._client.aclose()
