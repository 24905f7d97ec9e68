"""What stores in Redis have in common: looks on a request's way, errands for the session, and purges."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from extproc.cache.purging import PurgeOrder
from extproc.cache.redis.errands import Errand, PurgeErrand
from extproc.cache.redis.looks import AnswerLooks
from extproc.cache.redis.scripted import ScriptedSession
from extproc.cache.redis.scripts import ScriptBook

S = TypeVar("S", bound=ScriptedSession)


class AskedStore(Generic[S]):
    """`session` tells and hears; `budget_s` is how long an answer may take."""

    def __init__(
        self,
        session: S,
        scripts: ScriptBook,
        *,
        counts: Counter[str],
        refused: Counter[str],
        budget_s: float,
    ) -> None:
        self.session, self.counts, self.budget_s = session, counts, budget_s
        #: Entries that were not what had been kept, by what was wrong.
        self.refused = refused
        self._looks = AnswerLooks(scripts, asker=lambda: self.session.asker, ended=self._ended)
        #: Questions about answers that may not be given any more.
        self._confirming: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Tell what there is to tell if Redis is there; ends within two seconds if it is not."""
        await self.session.close({*self._looks.rounds, *self._confirming})

    def purge(self, orders: Sequence[PurgeOrder]) -> Awaitable[int]:
        """Forget what is meant, as soon as Redis is there; its number."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.session.errands.purge(PurgeErrand(tuple(orders), done))
        self.session.work.set()
        return done

    def _may_ask(self, now_ns: int) -> bool:
        return self.session.shares(now_ns) and not self._looks.full

    def _in_background(self, confirming: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(confirming)
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    def _errand(self, errand: Errand) -> bool:
        """Have it done, soon; false where it cannot be, which drops it."""
        if not self.session.connected or not self.session.errands.put(errand):
            return False
        self.session.work.set()
        return True

    def _ended(self, wrong: Exception) -> None:
        """A look came to nothing, or its connection ended."""
        self.session.failed(wrong)
