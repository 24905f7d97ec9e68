"""Questions to Redis, each within its budget; a late answer is heard all the same, for its lease.

Owns the questions under way, and the pause after one without an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from extproc.core.quota import Account
from extproc.state.quota import payload
from extproc.state.quota.loans import Leases, Loans
from extproc.state.quota.payload import ReserveReply
from extproc.state.quota.scripts import QuotaScripts
from extproc.state.quota.session import QuotaSession
from extproc.state.redis_session import ASK_PAUSE_NS

#: Questions under way; above it the local share decides.
ASKS_MAX = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A reservation that the leases do not cover; `lend`: it takes a lease as well."""

    account: Account
    leases: Leases
    said: dict[str, Any]
    reservation_id: str
    attempt: str
    lend: bool
    asked_ns: int


class Questions:
    """Asks over the session's connection for questions."""

    def __init__(
        self,
        session: QuotaSession,
        scripts: QuotaScripts,
        loans: Loans,
        counts: Counter[str],
        clock: Callable[[], int],
    ) -> None:
        self.under_way: set[asyncio.Task[ReserveReply]] = set()
        self._session, self._scripts, self._loans = session, scripts, loans
        self._counts, self._clock = counts, clock

    @property
    def full(self) -> bool:
        """Whether no further one may be asked."""
        return len(self.under_way) >= ASKS_MAX

    async def ask(self, question: Question, *, budget_s: float) -> ReserveReply | None:
        """The answer; None where there is none in time: then nobody asks for a while."""
        task = asyncio.create_task(self._ask(question))
        self.under_way.add(task)
        task.add_done_callback(self._answered)
        # Not cancelled when it is late: what it brings is taken when it comes.
        done, _ = await asyncio.wait({task}, timeout=budget_s)
        if done and not task.cancelled() and task.exception() is None:
            return task.result()
        self._session.pause_until_ns = self._clock() + ASK_PAUSE_NS
        self._counts["ask_failed" if done else "ask_late"] += 1
        return None

    async def _ask(self, question: Question) -> ReserveReply:
        q = question
        try:
            command = self._scripts.reserve(
                q.account.tenant,
                q.said,
                reservation_id=q.reservation_id,
                attempt=q.attempt,
                epoch=self._loans.epoch(q.account.tenant),
            )
            answer = payload.reply(await self._scripts.call(self._session.asker, command))
            self._loans.hear(answer, q.account, q.leases, lent=q.lend, asked_ns=q.asked_ns)
            return answer
        except BaseException as error:
            if q.lend:
                self._loans.unread(q.account, q.leases, q.said, error)
            raise

    def _answered(self, task: asyncio.Task[ReserveReply]) -> None:
        self.under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._session.failed(error)
