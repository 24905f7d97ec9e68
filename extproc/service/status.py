"""Everything that `steersman status` shows, put together from who knows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from extproc.observe.decisions import last_placed
from extproc.observe.stats import Stats
from extproc.observe.tenants import tenants_view
from extproc.service.agents import Agents
from extproc.service.journal import QuotaJournal
from extproc.service.requests import Requests


class Status:
    """One service's status."""

    def __init__(
        self,
        requests: Requests,
        stats: Stats,
        agents: Agents,
        journal: QuotaJournal,
        *,
        parts: Callable[[], Mapping[str, object]],
        clock: Callable[[], int],
    ) -> None:
        """`parts` gives each part's own, by name."""
        self._requests, self._scheduler, self._stats = requests, requests.scheduler, stats
        self._agents, self._journal, self._parts, self._clock = agents, journal, parts, clock
        self._started_ns = clock()

    def whole(self) -> dict[str, object]:
        """All of it."""
        now_ns = self._clock()
        return {
            **self.brief(),
            **self._stats.snapshot(self._scheduler.fleet, now_ns=now_ns),
            "decisions": last_placed(self._scheduler.dispatcher.decisions),
            "use": tenants_view(self._scheduler, self._requests.tenants().values(), now_ns=now_ns),
        }

    def json(self) -> bytes:
        """All of it, as the status RPC sends it."""
        return msgspec.json.encode(self.whole())

    def brief(self) -> dict[str, object]:
        """Without what grows with tenants and endpoints."""
        scheduler, roster, shared = self._scheduler, self._requests.roster, self._requests.shared
        feedback = scheduler.settlement.feedback
        return {
            "instance": scheduler.instance,
            "uptime_s": round((self._clock() - self._started_ns) / 1e9, 1),
            # For who compares clocks (`steersman doctor`).
            "unix_ms": time.time_ns() // 1_000_000,
            "open_exchanges": self._requests.processor.open_exchanges,
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
                "counts": dict(sorted(roster.counts.items())),
                "ads": roster.publisher.counts,
                "versions": roster.publisher.versions,
            },
            **self._agents.figures(),
            "quotas": {
                "shared": shared is not None,
                "connected": shared is not None and shared.connected,
                "reconciled": shared is None or shared.reconciled,
                "counts": dict(sorted(self._requests.quotas.counts.items())),
                "journal": self._journal.status(),
            },
            "held": len(scheduler.dispatcher.queue),
            **self._parts(),
        }
