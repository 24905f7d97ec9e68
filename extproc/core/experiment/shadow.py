"""A second strategy that decides beside the first; only its choice is kept.

It ranks the very candidates that the first has just chosen among, with the same knowledge, before anything
has moved, and with a chance of its own. It changes nothing, and what goes wrong in it is counted and costs no
request anything. A strategy that keeps an index of its own hears where the requests really went;
others keep their state in the endpoints' books, and those are not touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from random import Random
from typing import Any

from extproc.core.decide import RoutingRequest
from extproc.core.endpoint import Endpoint
from extproc.core.experiment.spec import ShadowSpec
from extproc.core.fleet import Pool
from extproc.core.outcome import LATER_MS, Routed
from extproc.core.sizing import context
from extproc.core.strategies import SchedulingContext, Strategy, build
from extproc.core.strategies.parameter import Value

#: Disagreements kept for people.
KEPT = 16


class Shadow:
    """One shadow on the pools of an experiment."""

    def __init__(self, spec: ShadowSpec, *, rng: Random) -> None:
        self.spec = spec
        self._rng = rng
        self._strategies: dict[str, Strategy] = {}
        self.asked = self.alone = self.agreed = self.waits = self.failed = 0
        self.last_failure = ""
        #: By how much its own score of its choice was better than of the first's, where they differed.
        self._gap = 0.0
        self._gaps = 0
        self.last: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def placed(
        self,
        routing: RoutingRequest,
        routed: Routed,
        pool: Pool,
        chosen: Endpoint,
        *,
        now_ns: int,
        deciders: int,
        parameters: Mapping[str, Value],
    ) -> None:
        """A request is about to be placed: ask the shadow too, for its share of them. Never raises.

        `parameters` are the pool's own of this strategy, which the shadow's come over.
        """
        try:
            strategy = self._strategies.get(pool.name)
            if strategy is None:
                given = {**parameters, **self.spec.parameters}
                strategy = self._strategies[pool.name] = build(self.spec.strategy, given)
            if self.spec.share >= 1.0 or self._rng.random() < self.spec.share:
                self._ask(strategy, routing, routed, pool, chosen, now_ns, deciders)
            if strategy.keeps_own:
                at = SchedulingContext(now_ns=now_ns, deciders=deciders)
                strategy.picked(pool.endpoints, chosen, routing.work, at=at)
        except Exception as error:  # noqa: BLE001 (a shadow must cost no request anything)
            self.failed += 1
            self.last_failure = f"{type(error).__name__}: {error}"[:200]

    def _ask(
        self,
        strategy: Strategy,
        routing: RoutingRequest,
        routed: Routed,
        pool: Pool,
        chosen: Endpoint,
        now_ns: int,
        deciders: int,
    ) -> None:
        candidates = [e for e in routed.reason.candidates if isinstance(e, Endpoint)]
        if routed.reason.removed.get("suspect"):
            # Suspects come after all others in any case.
            candidates = [e for e in candidates if e.suspect_until_ns <= now_ns] or candidates
        first = next((i for i, each in enumerate(candidates) if each is chosen), None)
        if len(candidates) < 2 or first is None:
            # Released to the one replica that had just become free: there was nothing to choose.
            self.alone += 1
            return
        at = context(routing.work, pool, now_ns=now_ns, deciders=deciders)
        ranking = strategy.rank(candidates, routing.work, count=1, rng=self._rng, at=at)
        self.asked += 1
        if not ranking.best:
            self.waits += 1
            return
        its = candidates[ranking.best[0]]
        if its is chosen:
            self.agreed += 1
            return
        score, other = ranking.scores[ranking.best[0]], ranking.scores[first]
        if not strategy.defers or other < LATER_MS:
            # Above it the score says that it comes after all others, and by how much is nothing to add.
            self._gap += other - score
            self._gaps += 1
        self.last.append(
            {
                "id": routing.id,
                "pool": pool.name,
                "chosen": chosen.address,
                "shadow": its.address,
                "score": round(score, 4),
                "score_of_chosen": round(other, 4),
            }
        )

    def view(self) -> dict[str, Any]:
        """As plain values; scores are in the shadow's own unit, lower is better."""
        return {
            "strategy": self.spec.strategy,
            "parameters": dict(self.spec.parameters),
            "share": self.spec.share,
            "asked": self.asked,
            "agreed": self.agreed,
            "would_wait": self.waits,
            "no_choice": self.alone,
            "failed": self.failed,
            "last_failure": self.last_failure,
            "agreement": round(self.agreed / self.asked, 4) if self.asked else None,
            "score_gap_mean": round(self._gap / self._gaps, 4) if self._gaps else None,
            "last": list(reversed(self.last)),
        }
