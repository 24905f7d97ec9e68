"""Everything that `steersman status` shows, put together from who knows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from extproc.core.quota import ExactBooks
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.observe.stats import Stats
from extproc.observe.tenants import tenants_view
from extproc.service.agents import Agents
from extproc.service.journal import QuotaJournal
from extproc.service.roster import Roster
from extproc.wire.processor import Processor

if TYPE_CHECKING:
    from extproc.state.quota_redis import RedisQuota


class Status:
    """One service's status."""

    def __init__(
        self,
        scheduler: Scheduler,
        processor: Processor,
        stats: Stats,
        roster: Roster,
        agents: Agents,
        journal: QuotaJournal,
        quotas: ExactBooks | RedisQuota,
        *,
        parts: Callable[[], Mapping[str, object]],
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
    ) -> None:
        self._scheduler, self._processor, self._stats, self._roster = scheduler, processor, stats, roster
        self._agents, self._journal, self._quotas, self._parts = agents, journal, quotas, parts
        self._tenants, self._clock = tenants, clock
        self._started_ns = clock()

    def whole(self) -> dict[str, object]:
        """All of it."""
        now_ns = self._clock()
        return {
            **self.brief(),
            **self._stats.snapshot(self._scheduler.fleet, now_ns=now_ns),
            "use": tenants_view(self._scheduler, self._tenants().values(), now_ns=now_ns),
        }

    def json(self) -> bytes:
        """All of it, as the status RPC sends it."""
        return msgspec.json.encode(self.whole())

    def brief(self) -> dict[str, object]:
        """Without what grows with tenants and endpoints."""
        scheduler, publisher = self._scheduler, self._roster.publisher
        feedback, quotas = scheduler.settlement.feedback, self._quotas
        shared = None if isinstance(quotas, ExactBooks) else quotas
        return {
            "instance": scheduler.instance,
            "uptime_s": round((self._clock() - self._started_ns) / 1e9, 1),
            # For who compares clocks (`steersman doctor`).
            "unix_ms": time.time_ns() // 1_000_000,
            "open_exchanges": self._processor.open_exchanges,
            "in_flight": len(scheduler.ledger),
            "counts": dict(sorted(scheduler.counts.items())),
            "pools": {
                pool.name: {
                    "models": list(pool.models),
                    "strategy": pool.strategy,
                    "bytes_per_token": round(pool.calibration.bytes_per_token, 3),
                    "output_tokens_mean": round(pool.calibration.output_tokens, 1),
                }
                for pool in scheduler.fleet.pools.values()
            },
            # Medians of |predicted − observed| / observed over the last requests; None before the first.
            "predictions": {
                "ttft_error_median": feedback.ttft.median,
                "completion_error_median": feedback.completion.median,
                "count": feedback.ttft.count,
            },
            "roster": {
                "counts": dict(sorted(self._roster.counts.items())),
                "ads": publisher.counts,
                "versions": publisher.versions,
            },
            **self._agents.figures(),
            "quotas": {
                "shared": shared is not None,
                "connected": shared is not None and shared.connected,
                "reconciled": shared is None or shared.reconciled,
                "counts": dict(sorted(quotas.counts.items())),
                "journal": self._journal.status(),
            },
            "held": len(scheduler.dispatcher.queue),
            **self._parts(),
        }
