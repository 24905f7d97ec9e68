"""Tells Redis what the journal holds, until both books are equal.

Owns what becomes of what was perhaps not heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from extproc.state import redis_client
from extproc.state.quota import payload
from extproc.state.quota.journal import Journal, Op
from extproc.state.quota.lease import QuotaLease, told
from extproc.state.quota.loans import BATCH_MAX, Loans
from extproc.state.quota.scripts import QuotaScripts
from extproc.state.redis_session import poisonous

log = logging.getLogger(__name__)


class Reconciler:
    """Empties the journal."""

    def __init__(self, journal: Journal, scripts: QuotaScripts, loans: Loans, counts: Counter[str]) -> None:
        self.journal = journal
        self._scripts, self._loans, self._counts = scripts, loans, counts
        self._sending = False

    @property
    def done(self) -> bool:
        """Whether Redis has heard everything."""
        return not self._sending and not len(self.journal)

    async def flush(self, client: Redis) -> None:
        """Send the oldest of the journal in one round trip; what was perhaps not heard stays in it."""
        ops = self.journal.take(BATCH_MAX)
        self._sending = True
        try:
            pipeline = client.pipeline(transaction=False)
            for op in ops:
                pipeline.execute_command(*self._command(op))
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                results = await pipeline.execute(raise_on_error=False)
                if any(isinstance(result, NoScriptError) for result in results):
                    await self._scripts.reload(client)
        except BaseException:
            self.journal.put_back(ops)
            raise
        finally:
            self._sending = False
        failed: list[tuple[Op, Exception]] = []
        for op, result in zip(ops, results, strict=True):
            if isinstance(result, Exception) and not poisonous(result):
                failed.append((op, result))
                continue
            if op.entry is not None:
                told(op.entry)
            if isinstance(result, bytes):
                self._loans.heard_epoch(op.account.tenant, payload.reply(result).epoch)
            elif isinstance(result, Exception):
                self._counts["script_failed"] += 1
                if self._counts["script_failed"] == 1:
                    log.error("a quota script failed: %s", redis_client.reason(result))
        if failed:
            self.journal.put_back([op for op, _ in failed])
            real = next((error for _, error in failed if not isinstance(error, NoScriptError)), None)
            if real is not None:
                raise real

    def _command(self, op: Op) -> tuple[Any, ...]:
        if op.how != "enter":
            return self._scripts.settle(op)
        entry = op.entry
        assert entry is not None, op
        taken = entry.taken
        # Alone, costs were counted for a share; Redis is charged for what they are.
        costs = None if taken.share > 1 or taken.borrowed else entry.costs
        leases = tuple(lease for lease in taken.scopes if isinstance(lease, QuotaLease))
        how = "lease" if entry.paid else "force"
        said = payload.reserving(how, op.account, leases, units=entry.units, costs=costs)
        return self._scripts.reserve(
            op.account.tenant, said, reservation_id=op.id, attempt=entry.attempt, epoch=entry.epoch
        )
