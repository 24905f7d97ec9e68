"""Quotas that follow their tenants' history, within the bounds that the configuration sets.

Owns the histories and the clock's part: once an interval each such tenant's use and refusals are folded
in, and its limits are those of the file times the factor that came out. Off where no bounds are set.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from extproc.config.model import Config
from extproc.core.accounts import Accounts
from extproc.core.quota.adjust import (
    AdjustBounds,
    UsageHistory,
    adjust,
    history_of,
    observe,
    within,
    words_of,
)
from extproc.core.scheduler import Scheduler
from extproc.observe.stats import Stats
from extproc.service.parts import Part

log = logging.getLogger(__name__)

#: How often limits may move.
INTERVAL_NS = 60_000_000_000


class Adjustment(Part):
    """The tenants whose limits move, and how far they have."""

    def __init__(self, config: Config, scheduler: Scheduler, stats: Stats) -> None:
        self._scheduler, self._stats = scheduler, stats
        self._histories: dict[str, UsageHistory] = {}
        #: The histories as plain values, for who keeps them; made anew at each step.
        self.histories: dict[str, list[float]] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._due_ns = 0
        self._bounds: dict[str, AdjustBounds] = {}
        self.base = scheduler.policy.accounts
        self.apply(config)

    def apply(self, config: Config) -> None:
        """A new configuration: the factors stay where their bounds do."""
        self.base = self._scheduler.policy.accounts
        self._bounds = {
            tenant.name: AdjustBounds(least=tenant.adjust.least, most=tenant.adjust.most)
            for tenant in config.tenants
            if tenant.adjust is not None
        }
        self._histories = {name: history for name, history in self._histories.items() if name in self._bounds}
        self._scale()

    @property
    def on(self) -> bool:
        """Whether any tenant's limits may move."""
        return bool(self._bounds)

    @property
    def factors(self) -> dict[str, float]:
        """By what each such tenant's limits are multiplied."""
        return {name: round(history.factor, 3) for name, history in self._histories.items()}

    def restore(self, histories: Mapping[str, Sequence[float]]) -> None:
        """Go on with what was learnt before this service began, where the file lets limits move."""
        for name, words in histories.items():
            if name in self._bounds and (history := history_of(words)) is not None:
                self._histories[name] = within(history, self._bounds[name])
        self.histories = {name: words_of(history) for name, history in self._histories.items()}
        self._scale()

    def step(self, *, now_ns: int, interval_ns: int = INTERVAL_NS) -> bool:
        """Fold in the last interval when it is over; true when a limit has moved."""
        if not self._bounds or now_ns < self._due_ns:
            return False
        first, self._due_ns = self._due_ns == 0, now_ns + interval_ns
        before = self.factors
        for name, bounds in self._bounds.items():
            used, refused = self._watch(name, now_ns)
            if first:
                continue
            history = self._histories.get(name, UsageHistory())
            history = observe(history, used=used, refused=refused, elapsed_s=interval_ns / 1e9, bounds=bounds)
            self._histories[name] = adjust(history, bounds=bounds)
        self.histories = {name: words_of(history) for name, history in self._histories.items()}
        if self.factors == before:
            return False
        for name, factor in self.factors.items():
            if before.get(name, 1.0) != factor:
                log.info("tenant %s: limits are now %.2f of the configured", name, factor)
        self._scale()
        return True

    def _watch(self, name: str, now_ns: int) -> tuple[float, float]:
        """The share of the tightest limit that is used, and of requests refused since the last look."""
        account = self._scheduler.policy.accounts.of(name, "", "")
        usage = self._scheduler.quotas.usage(account, now_ns=now_ns)
        used = max((each.used / each.allowed for each in usage if each.allowed), default=0.0)
        throttled = max((each.throttled for each in usage), default=0)
        line = self._stats.tenants.get(name)
        decided = line.decided if line is not None else 0
        throttled_before, decided_before = self._seen.get(name, (0, 0))
        self._seen[name] = (throttled, decided)
        refused = max(0, throttled - throttled_before)
        asked = refused + max(0, decided - decided_before)
        return used, refused / asked if asked else 0.0

    def _scale(self) -> None:
        tenants = dict(self.base.tenants)
        for name, history in self._histories.items():
            if name in tenants and history.factor != 1.0:
                tenants[name] = tenants[name].scaled(history.factor)
        accounts = Accounts(tenants=tenants, models=self.base.models, keys=self.base.keys)
        self._scheduler.settings.policy = replace(self._scheduler.policy, accounts=accounts)
