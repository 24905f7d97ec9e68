"""Why a request goes where it goes: every endpoint's score, its terms, and what removed it.

Owns two questions. What would be done with a request now (`explain`): the same rules and the same chance as
the next decision's, and nothing is entered anywhere. And what was done with one (`Decisions`,
`explain_kept`): the last decisions are remembered with all their scores; those are of then, the terms and the
removals are looked up now, and each says which it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from extproc.core.decide import Full, RoutingRequest, eligible, place, ranked, standing, strategy_of, wanted
from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue import QueuedRequest
from extproc.core.families import FamilyChoice
from extproc.core.fleet import Fleet, Pool
from extproc.core.load import SLICE_TOKENS
from extproc.core.outcome import LATER_MS, Reject, Routed
from extproc.core.sizing import context
from extproc.core.strategies import FALLBACK, SchedulingContext, Strategy, Work
from extproc.core.strategies.queue import LeastStart
from extproc.core.strategies.steer import Steer
from extproc.core.strategies.terms import FOREIGN_CONTEXT_TOKENS

#: Decisions remembered, and the scores and prefix blocks of all of them together.
DECISIONS_KEPT_MAX, VALUES_KEPT_MAX = 1_000, 200_000
#: Foreign names (Envoy's x-request-id) of decisions remembered, and the longest of them.
NAMES_KEPT_MAX, NAME_CHARACTERS_MAX = 2_000, 128

THEN, NOW = "then", "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRow:
    """One endpoint. `verdict` is "chosen #1" to "#3", candidate, suspect, waits, removed or not considered.

    `why` are reasons in words. `score` is the strategy's, lower is better, None where it gave none; `terms`
    are what it is made of.
    """

    address: str
    verdict: str
    why: tuple[str, ...] = ()
    score: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)


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
    """The whole table. `scores_of` and `terms_of` are "then" or "now"."""

    id: str
    tenant: str
    outcome: str
    scores_of: str
    terms_of: str = NOW
    service_class: str = ""
    model: str = ""
    pool: str = ""
    strategy: str = ""
    reason: str = ""
    degraded: str = ""
    #: How the strategy came to be: "" the pool's or tenant's own; an experiment's arm.
    arm: str = ""
    work: Mapping[str, float | None] = field(default_factory=dict)
    choice: FamilyChoice | None = None
    wait: Wait | None = None
    age_ms: float = 0.0
    rows: tuple[EndpointRow, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        wait = self.wait
        return {
            "id": self.id,
            "tenant": self.tenant,
            "class": self.service_class,
            "model": self.model,
            "pool": self.pool,
            "strategy": self.strategy,
            "arm": self.arm,
            "outcome": self.outcome,
            "reason": self.reason,
            "degraded": self.degraded,
            "scores_of": self.scores_of,
            "terms_of": self.terms_of,
            "age_ms": round(self.age_ms, 1),
            "work": dict(self.work),
            "family": self.choice.plain() if self.choice is not None else None,
            "held": {name: getattr(wait, name) for name in Wait.__slots__} if wait is not None else None,
            "endpoints": [
                {
                    "address": row.address,
                    "verdict": row.verdict,
                    "why": list(row.why),
                    # JSON has no infinity.
                    "score": _finite(row.score),
                    "terms": {name: _finite(value) for name, value in row.terms.items()},
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """A decision as it was made."""

    routing: RoutingRequest
    routed: Routed
    at_ns: int

    @property
    def size(self) -> int:
        """Values that it holds on to."""
        return len(self.routed.reason.scores) + len(self.routing.work.prefix)


class Decisions:
    """The last decisions, by reservation and by foreign name."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """A decision was made; the oldest are forgotten for it."""
        kept = self._kept[routing.id] = Kept(routing, routed, now_ns)
        self._size += kept.size
        while len(self._kept) > DECISIONS_KEPT_MAX or (self._size > VALUES_KEPT_MAX and len(self._kept) > 1):
            self._size -= self._kept.popitem(last=False)[1].size

    def named(self, name: str, reservation_id: str) -> None:
        """A request has another name; of two with one name the later counts."""
        if not name or len(name) > NAME_CHARACTERS_MAX:
            return
        self._names[name] = reservation_id
        self._names.move_to_end(name)
        if len(self._names) > NAMES_KEPT_MAX:
            self._names.popitem(last=False)

    def reservation_of(self, name: str) -> str:
        """The reservation that a name stands for; itself where it is none that we know."""
        return self._names.get(name, name)

    def get(self, reservation_id: str) -> Kept | None:
        """A decision, None where it is not remembered (any more)."""
        return self._kept.get(reservation_id)


def explain(
    routing: RoutingRequest, fleet: Fleet, *, now_ns: int, rng: Random, deciders: int = 1, waiting: int = 0
) -> Explanation:
    """What would be done with a case now. `rng` is where it was, afterwards.

    `waiting` is how many requests wait for its pool: nobody goes past them.
    """
    pool = fleet.pools.get(routing.pool)
    rows: tuple[EndpointRow, ...] = ()
    strategy, degraded = strategy_of(routing, pool) if pool is not None else (FALLBACK, "")
    chance = rng.getstate()
    try:
        placed = place(routing, fleet, now_ns=now_ns, rng=rng, deciders=deciders)
        if pool is not None:
            # The same once more, with what `place` does not tell of a request that waits.
            rng.setstate(chance)
            at = context(routing.work, pool, now_ns=now_ns, deciders=deciders)
            rows = _rows(routing, pool, strategy, degraded, at, rng)
    finally:
        rng.setstate(chance)
    if isinstance(placed, Routed) and waiting and routing.permits:
        outcome = f"would wait: {waiting} held for pool {routing.pool!r} go first"
    elif isinstance(placed, Routed):
        outcome = "would go to " + ", on retries ".join(placed.addresses)
    elif isinstance(placed, Full):
        outcome = "would wait: no replica takes it now"
    else:
        outcome = refused(placed)
    return replace(
        _about(routing, outcome, NOW),
        strategy=strategy.name,
        reason=placed.reason.text() if isinstance(placed, Routed) else "",
        degraded=degraded,
        rows=rows,
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


def explain_kept(kept: Kept, fleet: Fleet, *, now_ns: int, deciders: int = 1, state: str) -> Explanation:
    """A decision that was made; `state` is what is known of the request now."""
    routing, routed, reason = kept.routing, kept.routed, kept.routed.reason
    pool = fleet.pools.get(routing.pool)
    rows: list[EndpointRow] = []
    if pool is not None:
        strategy = pool.strategy_named(reason.strategy)
        at = context(routing.work, pool, now_ns=now_ns, deciders=deciders)
        present = {endpoint.address: endpoint for endpoint in pool.endpoints}
        for i, candidate in enumerate(reason.candidates):
            endpoint = present.pop(candidate.address, None)
            rows.append(
                EndpointRow(
                    address=candidate.address,
                    verdict=_place_of(candidate.address, routed.addresses),
                    why=() if endpoint is not None else ("now: gone from the pool",),
                    score=reason.scores[i] if i < len(reason.scores) else None,
                    terms=_terms(strategy, endpoint, routing.work, at) if endpoint is not None else {},
                )
            )
        for address, endpoint in present.items():
            verdict, why = _standing(endpoint, routing, routing.permits, now_ns)
            now = ", ".join(why) or verdict
            rows.append(EndpointRow(address=address, verdict="not considered", why=(f"now: {now}",)))
    return replace(
        _about(routing, f"went to {', on retries '.join(routed.addresses)}; {state}", THEN),
        strategy=reason.strategy,
        reason=reason.text(),
        degraded=reason.degraded,
        age_ms=_ms(now_ns - kept.at_ns),
        rows=_ordered(rows),
    )


def refused(reject: Reject) -> str:
    """A refusal in words."""
    return f"would be refused: {reject.status} {reject.code}, {reject.message}"


def _about(routing: RoutingRequest, outcome: str, scores_of: str) -> Explanation:
    work = routing.work
    return Explanation(
        id=routing.id,
        tenant=routing.tenant.name,
        service_class=routing.tenant.service_class,
        model=routing.model,
        pool=routing.pool,
        outcome=outcome,
        scores_of=scores_of,
        arm=routing.arm,
        choice=routing.choice,
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


def _rows(
    routing: RoutingRequest, pool: Pool, strategy: Strategy, degraded: str, at: SchedulingContext, rng: Random
) -> tuple[EndpointRow, ...]:
    regions = routing.tenant.regions
    here = [e for e in pool.endpoints if regions is None or e.region in regions]
    permits = wanted(routing, pool)
    candidates, suspects, removed = eligible(here, permits, at.now_ns)
    scored: dict[str, tuple[float, str]] = {}
    if candidates or suspects:
        reason = ranked(routing, strategy, candidates, suspects, removed, rng, degraded, at)
        considered = [*candidates, *suspects]
        best = [considered[i] for i in reason.best]
        chosen = [each.address for each in standing(best, routing.permits)] if best else []
        scored = {
            endpoint.address: (reason.scores[i], _place_of(endpoint.address, chosen))
            for i, endpoint in enumerate(considered)
            if i < len(reason.scores)
        }
    rows = []
    for endpoint in pool.endpoints:
        verdict, why = _standing(endpoint, routing, permits, at.now_ns)
        score: float | None = None
        if endpoint.address in scored:
            score, placed = scored[endpoint.address]
            late = binds_late(strategy) and score >= LATER_MS
            if late:
                # A retry may go where the request itself would wait.
                why = (*why, *conditions(strategy, endpoint, routing.work, at=at))
            if late or placed != "candidate":
                verdict = placed if placed != "candidate" else "waits"
        terms = _terms(strategy, endpoint, routing.work, at) if verdict != "removed" else {}
        rows.append(EndpointRow(address=endpoint.address, verdict=verdict, why=why, score=score, terms=terms))
    return _ordered(rows)


def _standing(
    endpoint: Endpoint, routing: RoutingRequest, permits: int, now_ns: int
) -> tuple[str, tuple[str, ...]]:
    """Whether it may be considered at all, and why not."""
    regions, taken = routing.tenant.regions, endpoint.load_permits + endpoint.standby
    if regions is not None and endpoint.region not in regions:
        return "removed", (f"other region: {endpoint.region or 'none said'}",)
    if not endpoint.ready:
        why = [] if endpoint.announced else ["not every Envoy knows it yet"]
        if endpoint.draining:
            why.append("draining")
        if endpoint.health.value <= 0.0:
            causes = ", ".join(
                f"{name} ({cause.detail})" if cause.detail else name
                for name, cause in endpoint.health.causes.items()
            )
            why.append(f"not ready: {causes or 'health 0'}")
        return "removed", tuple(why) or ("not ready",)
    if permits and taken + permits > endpoint.max_concurrent:
        asked = f" + {permits}" if permits > 1 else ""
        kept = f" ({endpoint.standby} of them kept for retries)" if endpoint.standby else ""
        return "removed", (f"permits full: {taken}{asked} of {endpoint.max_concurrent}{kept}",)
    if endpoint.suspect_until_ns > now_ns:
        return "suspect", (f"an attempt failed: last for {_ms(endpoint.suspect_until_ns - now_ns):.0f} ms",)
    return "candidate", ()


def binds_late(strategy: Strategy) -> bool:
    """Whether its scores from LATER_MS on mean that the request waits."""
    return isinstance(strategy, Steer | LeastStart)


def conditions(
    strategy: Strategy, endpoint: Endpoint, work: Work, *, at: SchedulingContext
) -> tuple[str, ...]:
    """What keeps a late-binding strategy from giving an endpoint the request now; its own rules in words."""
    load = endpoint.load
    if isinstance(strategy, LeastStart):
        depth = max(1, strategy.depth // max(1, at.deciders))
        if load.queued >= depth:
            return (f"queue: {load.queued} of {depth} wait there for a first token",)
        return (f"reserve: {endpoint.load_permits} of {endpoint.max_concurrent} permits are taken",)
    if not isinstance(strategy, Steer):
        return ()
    tokens = max(1, work.input_tokens)
    cached = min(at.cached.get(endpoint.address, 0), tokens - 1)
    uncached = tokens - cached
    others = endpoint.peer_permits + endpoint.foreign
    found = []
    depth = strategy.queue_tokens // at.deciders
    if load.queued and load.queued_tokens + uncached > depth:
        found.append(f"queue: {load.queued_tokens} + {uncached} tokens above {depth}")
    limit = SLICE_TOKENS if work.max_new_tokens is None else min(work.max_new_tokens, SLICE_TOKENS)
    needed = uncached + max(0, limit - 1) * work.sequences
    reserved = load.reserved_tokens + others * FOREIGN_CONTEXT_TOKENS
    room = strategy.kv_share * endpoint.kv_tokens
    if room and endpoint.requests and reserved + needed > room:
        found.append(f"memory: {reserved} + {needed} tokens above {room:.0f}")
    if strategy.guard and load.streaming:
        step_ms = endpoint.speed.step_ms(
            load.streaming + others, load.context_tokens + others * FOREIGN_CONTEXT_TOKENS
        )
        slack_ms = load.tightest_ms(step_ms, now_ns=at.now_ns)
        own_ms = endpoint.speed.prefill_ms(uncached, cached)
        if slack_ms < own_ms:
            found.append(f"guard: a stream has {slack_ms:.0f} ms to spare, the prefill takes {own_ms:.0f}")
    return tuple(found)


def _place_of(address: str, chosen: Sequence[str]) -> str:
    return f"chosen #{chosen.index(address) + 1}" if address in chosen else "candidate"


def _terms(strategy: Strategy, endpoint: Endpoint, work: Work, at: SchedulingContext) -> Mapping[str, float]:
    told = getattr(strategy, "explain", None)
    return dict(told(endpoint, work, at=at)) if told is not None else {}


def _ordered(rows: Sequence[EndpointRow]) -> tuple[EndpointRow, ...]:
    """The chosen, then by score, then those without one."""

    def key(row: EndpointRow) -> tuple[bool, str, bool, float]:
        chosen = row.verdict.startswith("chosen")
        return not chosen, row.verdict if chosen else "", row.score is None, row.score or 0.0

    return tuple(sorted(rows, key=key))


def _finite(value: float | None) -> float | None:
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.6g}")


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)
