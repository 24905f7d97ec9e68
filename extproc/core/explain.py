"""Why a request goes where it goes: every endpoint's score, its terms, and what removed it.

Owns two questions. What would be done with a request now (`explain`): by the next decision's own code and
chance, and nothing is entered anywhere. And what was done with one (`explain_kept`): by the decision's own
trace, of then; what would be done with such a request now stands apart from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from extproc.core.decide import RoutingRequest
from extproc.core.decisions import Kept, KeptHit
from extproc.core.fairqueue import QueuedRequest
from extproc.core.families import FamilyChoice
from extproc.core.fleet import Fleet
from extproc.core.outcome import EndpointRow, Reject, Routed
from extproc.core.placement import COLD, Full, place
from extproc.core.spill.values import Spilled
from extproc.core.trace import PlacementTrace

THEN, NOW = "then", "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A held request's place. `before` counts who came earlier in a class at least as good; the order within
    is also the tenants' shares'. Times in milliseconds."""

    waiting: int
    before: int
    waited_ms: float
    due_in_ms: float
    shed_in_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The whole table. `rows` are of "then" or "now", as `of` says.

    Of a decision of then, `now` is what would be done with such a request now, with `now_rows` as its table.
    """

    id: str
    tenant: str
    outcome: str
    of: str
    service_class: str = ""
    #: Where its client is; "" where nothing says.
    place: str = ""
    model: str = ""
    pool: str = ""
    strategy: str = ""
    reason: str = ""
    degraded: str = ""
    #: How the strategy came to be: "" the pool's or tenant's own; an experiment's arm.
    arm: str = ""
    work: Mapping[str, float | None] = field(default_factory=dict)
    choice: FamilyChoice | None = None
    spill: Spilled | None = None
    #: Where another site might serve it: what was chosen, and why.
    site: str = ""
    wait: Wait | None = None
    age_ms: float = 0.0
    rows: Sequence[EndpointRow] = ()
    now: str = ""
    now_rows: Sequence[EndpointRow] = ()

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        wait = self.wait
        return {
            "id": self.id,
            "tenant": self.tenant,
            "class": self.service_class,
            "place": self.place or None,
            "model": self.model,
            "pool": self.pool,
            "strategy": self.strategy,
            "arm": self.arm,
            "outcome": self.outcome,
            "reason": self.reason,
            "degraded": self.degraded,
            "scores_of": self.of,
            "terms_of": self.of,
            "age_ms": round(self.age_ms, 1),
            "work": dict(self.work),
            "family": self.choice.plain() if self.choice is not None else None,
            "spilled": {"from": self.spill.pool, "why": self.spill.why} if self.spill is not None else None,
            "site": self.site or None,
            "held": {name: getattr(wait, name) for name in Wait.__slots__} if wait is not None else None,
            "endpoints": [row.plain() for row in self.rows],
            "now": {"outcome": self.now, "endpoints": [row.plain() for row in self.now_rows]}
            if self.now
            else None,
        }


def explain(
    routing: RoutingRequest, fleet: Fleet, *, now_ns: int, rng: Random, deciders: int = 1, waiting: int = 0
) -> Explanation:
    """What would be done with a case now. `rng` is where it was, afterwards.

    `waiting` is how many requests wait for its pool: nobody goes past them.
    """
    trace, chance = PlacementTrace(whole=True), rng.getstate()
    try:
        placed = place(routing, fleet, now_ns=now_ns, rng=rng, deciders=deciders, trace=trace)
    finally:
        rng.setstate(chance)
    if isinstance(placed, Routed) and waiting and routing.permits:
        outcome = f"would wait: {waiting} held for pool {routing.pool!r} go first"
    elif isinstance(placed, Routed):
        outcome = "would go to " + ", on retries ".join(placed.addresses)
    elif placed is COLD:
        left_s = fleet.pools[routing.pool].cold.left_s(now_ns=now_ns)
        outcome = f"would wait: no replica is ready, one is expected in about {left_s} s"
    elif isinstance(placed, Full):
        outcome = "would wait: no replica takes it now"
    else:
        outcome = refused(placed)
    return replace(
        _about(routing, outcome, NOW),
        strategy=trace.strategy,
        reason=placed.reason.text() if isinstance(placed, Routed) else "",
        degraded=trace.degraded,
        rows=trace.rows(),
    )


def explain_held(
    held: QueuedRequest,
    everyone: Iterable[QueuedRequest],
    fleet: Fleet,
    *,
    now_ns: int,
    rng: Random,
    deciders: int = 1,
) -> Explanation:
    """A request that waits: its place, its deadlines, and what each endpoint keeps from it now."""
    routing: RoutingRequest = held.payload[0]
    same = [each for each in everyone if each.pool == held.pool]
    wait = Wait(
        waiting=len(same),
        before=sum((e.klass, e.arrived_ns) < (held.klass, held.arrived_ns) for e in same if e is not held),
        waited_ms=_ms(now_ns - held.arrived_ns),
        due_in_ms=_ms(held.ttft_deadline_ns - now_ns),
        shed_in_ms=_ms(held.shed_at_ns - now_ns),
    )
    found = explain(routing, fleet, now_ns=now_ns, rng=rng, deciders=deciders)
    return replace(found, outcome="waits in the fair queue", wait=wait, age_ms=wait.waited_ms)


def explain_kept(
    kept: Kept, fleet: Fleet, *, now_ns: int, rng: Random, deciders: int = 1, state: str
) -> Explanation:
    """A decision that was made; `state` is what is known of the request now."""
    routing, routed, reason = kept.routing, kept.routed, kept.routed.reason
    live = explain(routing, fleet, now_ns=now_ns, rng=rng, deciders=deciders)
    return replace(
        _about(routing, f"went to {', on retries '.join(routed.addresses)}; {state}", THEN),
        strategy=reason.strategy,
        reason=reason.text(),
        degraded=reason.degraded,
        age_ms=_ms(now_ns - kept.at_ns),
        rows=routed.trace.rows() if routed.trace is not None else (),
        now=live.outcome,
        now_rows=live.rows,
    )


def explain_hit(hit: KeptHit, *, now_ns: int) -> Explanation:
    """A request that the cache answered: no endpoint was looked at."""
    words = "" if hit.likely is None else f", as a question in other words was (right with {hit.likely:.4f})"
    outcome = (
        f"was answered from the cache{words}; the answer was {hit.age_s} s old, and no replica was asked"
    )
    return replace(_about(hit.routing, outcome, THEN), age_ms=_ms(now_ns - hit.at_ns))


def refused(reject: Reject) -> str:
    """A refusal in words."""
    return f"would be refused: {reject.status} {reject.code}, {reject.message}"


def _about(routing: RoutingRequest, outcome: str, of: str) -> Explanation:
    work = routing.work
    return Explanation(
        id=routing.id,
        tenant=routing.tenant.name,
        service_class=routing.tenant.service_class,
        place=routing.tenant.place,
        model=routing.model,
        pool=routing.pool,
        outcome=outcome,
        of=of,
        arm=routing.arm,
        choice=routing.choice,
        spill=routing.spill,
        site="" if routing.tier is None else routing.tier.choice.text(),
        work={
            "input_tokens": routing.input_tokens,
            "output_tokens": routing.output_tokens,
            "permits": routing.permits,
            "max_new_tokens": work.max_new_tokens,
            "ttft_target_ms": work.ttft_ms,
            "tpot_target_ms": work.tpot_ms,
            "prefix_blocks": len(work.prefix),
        },
    )


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)
