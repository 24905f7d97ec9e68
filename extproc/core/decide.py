"""The decision in two halves: what a request is and may have (resolve), and where it goes (place).

Pure: reads the fleet, changes nothing. Who calls it enters the reservation (scheduler.py). The halves are
apart because a request that no replica would start now waits between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from extproc.core.endpoint import Endpoint, places
from extproc.core.families import NONE, Family, FamilyChoice, pick
from extproc.core.fleet import Fleet, Pool
from extproc.core.forecast import FREE, plan
from extproc.core.ledger import Ledger
from extproc.core.outcome import LATER_MS, Reason, Reject, Reservation, Routed
from extproc.core.request import Request, RouteKind, limited, no_model, unfit
from extproc.core.slo import ClassSpec
from extproc.core.strategies import FALLBACK, Ranking, SchedulingContext, Strategy, Work
from extproc.core.strategies.base import NOW, lowest
from extproc.core.tenant import Tenant
from extproc.core.work import STANDARD, context, predict
from extproc.engines import traits_of

#: Endpoints named in a decision where nothing is said of retries: the choice and two more.
ENDPOINTS_NAMED = 3
#: Endpoints that are drawn to find retries for a choice among a few.
ALTERNATES_DRAWN = 8
#: Seconds a client is told to wait when every permit is taken, and when no endpoint is ready.
RETRY_AFTER_FULL_S, RETRY_AFTER_NONE_READY_S = 1, 5
#: The beginning by which prompts are of one group: a system prompt's worth, not a question's.
AFFINITY_CHARACTERS = 256
#: Kinds that an engine answers without a permit, and without work worth counting.
FREE_KINDS = frozenset({RouteKind.TOKENIZE, RouteKind.INFO, RouteKind.METRICS})


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """A request that may be served: whose, by which pool, and what it is predicted to be.

    `input_tokens` and `output_tokens` are over all sequences; both 0 for what costs nothing.
    """

    id: str
    tenant: Tenant
    key: str
    model: str
    pool: str
    work: Work
    permits: int
    prompt_bytes: int
    stream: bool
    free: bool
    #: How its replica is chosen where that is not its pool's way, and for which arm of an experiment.
    strategy: str = ""
    arm: str = ""
    #: The tenant or session that was drawn for the arm; 0 where requests are.
    unit: int = 0
    #: When it came, and whether its class may wait.
    arrived_ns: int = 0
    waits: bool = True
    #: Requests that begin alike share a prefix that an engine may have cached; equal only in this process.
    affinity_group: int | None = None
    #: Where a family was asked for: how `model` was chosen.
    choice: FamilyChoice | None = None
    #: The addresses that it may go to; None where any will do.
    only: frozenset[str] | None = None
    #: What was called (`request.Kind`).
    route: str = ""
    #: How many endpoints it may be tried on, the first included.
    tries: int = ENDPOINTS_NAMED

    @property
    def input_tokens(self) -> int:
        """Prompt tokens that are charged."""
        return 0 if self.free else self.work.input_tokens

    @property
    def output_tokens(self) -> int:
        """Output tokens that are reserved."""
        return 0 if self.free else self.work.output_tokens


class Full:
    """Every replica that could serve it is at its limit: it may wait."""


FULL = Full()
#: The same, but only for now: a replica that would serve it better is about to be free.
WAITS = Full()


def _nobody_waits(_pool: str) -> int:
    return 0


def decide(
    request: Request,
    tenant: Tenant,
    fleet: Fleet,
    books: Ledger,
    *,
    id: str,  # noqa: A002 (the reservation's own word)
    default_model: str,
    reservations_max: int,
    now_ns: int,
    rng: Random,
    zone: str = "",
    key: str = "",
    degraded: str = "",
) -> Routed | Reject:
    """Both halves at once, for who cannot wait: full is a 429."""
    routing = resolve(
        request,
        tenant,
        fleet,
        books,
        id=id,
        default_model=default_model,
        reservations_max=reservations_max,
        zone=zone,
        key=key,
        now_ns=now_ns,
    )
    if isinstance(routing, Reject):
        return routing
    placed = place(routing, fleet, now_ns=now_ns, rng=rng, degraded=degraded)
    return full(routing) if isinstance(placed, Full) else placed


def resolve(
    request: Request,
    tenant: Tenant,
    fleet: Fleet,
    books: Ledger,
    *,
    id: str,  # noqa: A002 (the reservation's own word)
    default_model: str,
    reservations_max: int,
    zone: str = "",
    key: str = "",
    rank: int = 0,
    spec: ClassSpec = STANDARD,
    now_ns: int = 0,
    families: Mapping[str, Family] = NONE,
    waiting: Callable[[str], int] = _nobody_waits,
) -> RoutingRequest | Reject:
    """What a request is: its pool and its work; Reject when the tenant may not have it.

    `zone` is where we are: endpoints elsewhere carry their pool's handicap. `key` names the API key.
    `spec` is what the tenant's class aims at, `rank` its place among the classes. A family's name stands
    for one of its models; `waiting` says how many requests wait for a pool.
    """
    model = request.model or tenant.default_model or default_model
    choice: FamilyChoice | None = None
    if (family := families.get(model)) is not None:
        picked = pick(request, tenant, fleet, family, waiting=waiting)
        if isinstance(picked, Reject):
            return picked
        choice, model = picked, picked.model
    pool = fleet.pool_for(model, tenant.name)
    if pool is None or not tenant.may(model):
        # What a tenant may not use, or is reserved for others, is to it as if it were not there.
        return no_model(request.model)
    only = request.only
    if only is not None and not any(each.ready and each.address in only for each in pool.endpoints):
        # Now, whoever waits for the same pool: no place that may become free would do.
        return _no_subset(pool)
    if len(books) >= reservations_max:
        return overloaded("the gateway follows as many requests as it may")
    free = request.kind in FREE_KINDS
    request = limited(request, pool.engine)
    work = predict(request, pool, tenant.name, model, zone=zone, rank=rank, spec=spec, now_ns=now_ns)
    return RoutingRequest(
        id=id,
        tenant=tenant,
        key=key,
        model=model,
        pool=pool.name,
        work=work,
        permits=0 if free else request.sequences,
        # Images are in the engine's token count but not in the text: such a pair teaches nothing.
        prompt_bytes=0 if request.images else request.prompt_bytes,
        stream=request.stream,
        free=free,
        strategy=tenant.strategy or "",
        arrived_ns=now_ns,
        waits=spec.wait_ns(work.input_tokens) > 0,
        affinity_group=hash(request.segments[0][:AFFINITY_CHARACTERS]) if request.segments else None,
        choice=choice,
        only=request.only,
        route=request.kind.value,
        tries=spec.retries + 1,
    )


def place(
    routing: RoutingRequest,
    fleet: Fleet,
    *,
    now_ns: int,
    rng: Random,
    degraded: str = "",
    among: Sequence[Endpoint] | None = None,
    patient: bool = False,
    deciders: int = 1,
) -> Routed | Reject | Full:
    """Where a case goes now: the ordered endpoints, a refusal that waiting would not mend, or FULL.

    `degraded`, when set, makes the choice by least in flight and is said in the reason; so does
    telemetry that is stale everywhere. `among` asks of these endpoints alone. `patient` and `deciders` as
    in `strategies.Moment`.
    """
    pool = fleet.pools.get(routing.pool)
    if pool is None:
        return Reject(status=404, code="model_not_found", message=f"pool {routing.pool!r} is no more")
    tenant, outside = routing.tenant, 0
    endpoints: Sequence[Endpoint] = pool.endpoints if among is None else among
    if tenant.regions is not None:
        endpoints = [endpoint for endpoint in endpoints if endpoint.region in tenant.regions]
        if not endpoints and pool.endpoints:
            return FULL if among is not None else _no_region(tenant, pool)
    if routing.only is not None:
        allowed = len(endpoints)
        endpoints = [endpoint for endpoint in endpoints if endpoint.address in routing.only]
        outside = allowed - len(endpoints)
        if not endpoints:
            return FULL if among is not None else _no_subset(pool)
    candidates, suspects, removed = eligible(endpoints, wanted(routing, pool), now_ns)
    if tenant.regions is not None and len(endpoints) + outside < len(pool.endpoints):
        removed["in other regions"] = len(pool.endpoints) - len(endpoints) - outside
    if outside:
        removed["outside the subset"] = outside
    if not candidates and not suspects:
        return FULL if among is not None else _none_left(pool, endpoints, routing.permits)
    strategy, degraded = strategy_of(routing, pool, degraded)
    at = context(routing.work, pool, now_ns=now_ns, patient=patient, deciders=deciders)
    considered = [*candidates, *suspects] if suspects else candidates
    reason = ranked(routing, strategy, candidates, suspects, removed, rng, degraded, at)
    if not reason.best:
        return WAITS if patient and min(reason.scores) < LATER_MS else FULL
    chosen = [considered[i] for i in reason.best]
    if among is not None:
        chosen += _alternates(routing, pool, tuple(chosen), now_ns, rng)
    first, addresses = chosen[0], tuple(endpoint.address for endpoint in standing(chosen, routing.permits))
    expected = FREE if routing.free else plan(routing.work, first, cached=at.cached)
    return Routed(
        cluster=pool.cluster_for(tenant.service_class),
        addresses=addresses,
        reason=reason,
        plan=expected,
        reservation=Reservation(
            id=routing.id,
            tenant=tenant.name,
            model=routing.model,
            pool=pool.name,
            address=addresses[0],
            input_tokens=routing.input_tokens,
            output_tokens=routing.output_tokens,
            permits=routing.permits,
            prompt_bytes=routing.prompt_bytes,
            stream=routing.stream,
            key=routing.key,
            service_class=tenant.service_class,
            max_new_tokens=routing.work.max_new_tokens,
            cached_tokens=expected.cached_tokens,
            ttft_ms=round(expected.ttft_ms, 3),
            tpot_ms=round(expected.tpot_ms, 3),
            strategy=reason.strategy,
            arm=routing.arm,
            unit=routing.unit,
            route=routing.route,
            held_ms=round(max(0, now_ns - routing.arrived_ns) / 1e6, 3),
        ),
    )


def strategy_of(routing: RoutingRequest, pool: Pool, degraded: str = "") -> tuple[Strategy, str]:
    """The strategy that places a case in a pool, and why it is the least that can be said, if it is."""
    if pool.blind and not degraded:
        degraded = "all telemetry is stale"
    if degraded or routing.free:
        return FALLBACK, degraded
    return pool.strategy_named(routing.strategy or pool.strategy), degraded


def ranked(
    routing: RoutingRequest,
    strategy: Strategy,
    candidates: list[Endpoint],
    suspects: list[Endpoint],
    removed: dict[str, int],
    rng: Random,
    degraded: str,
    at: SchedulingContext,
) -> Reason:
    """`choose`, for a case."""
    return choose(
        strategy,
        candidates,
        suspects,
        routing.work,
        removed,
        rng,
        degraded,
        at,
        waits=routing.waits,
        named=routing.tries,
    )


def wanted(routing: RoutingRequest, pool: Pool) -> int:
    """The free permits that a case wants of a replica: all of its own, or the largest replica to itself."""
    if routing.permits <= 1 or not traits_of(pool.engine).queues:
        return routing.permits
    return places(routing.permits, [e for e in pool.endpoints if _allowed(routing, e)])


def eligible(
    endpoints: Sequence[Endpoint], permits: int, now_ns: int
) -> tuple[list[Endpoint], list[Endpoint], dict[str, int]]:
    """Split into candidates, suspects (last in order) and counts of the removed by cause.

    An endpoint is removed when it is not ready or when the request's permits would pass its limit, what it
    keeps for retries included: TGI refuses what is above inside a 200 answer, where no retry can help.
    """
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    # A request that takes no permit fits anywhere, also where a reload has lowered the limit.
    free = ready
    if permits:
        # `load_permits` in full: a call saved for each endpoint.
        free = [
            e
            for e in ready
            if e.permits + e.peer_permits + e.foreign + e.standby + permits <= e.max_concurrent
        ]
    candidates = [endpoint for endpoint in free if endpoint.suspect_until_ns <= now_ns]
    suspects: list[Endpoint] = []
    if len(candidates) < len(free):
        suspects = [endpoint for endpoint in free if endpoint.suspect_until_ns > now_ns]
    return candidates, suspects, {"not ready": len(endpoints) - len(ready), "full": len(ready) - len(free)}


def choose(
    strategy: Strategy,
    candidates: list[Endpoint],
    suspects: list[Endpoint],
    work: Work,
    removed: dict[str, int],
    rng: Random,
    degraded: str,
    at: SchedulingContext = NOW,
    *,
    waits: bool = True,
    named: int = ENDPOINTS_NAMED,
) -> Reason:
    """Rank those that are trusted, then the suspects, until there are `named` of them.

    What cannot wait (`waits` false) goes where it will be served soonest, though late binding would hold it.
    """
    considered: list[Endpoint] = []
    best: list[int] = []
    scores: list[float] = []
    for group in (candidates, suspects):
        wanted = min(named - len(best), len(group))
        if wanted > 0:
            ranking: Ranking = strategy.rank(group, work, count=wanted, rng=rng, at=at)
            chosen = ranking.best
            if not chosen and not waits:
                chosen = lowest(group, ranking.scores, wanted)
            best.extend(len(considered) + i for i in chosen)
            scores.extend(ranking.scores)
            considered.extend(group)
            if not chosen:
                # Those that are trusted will take it later: suspects are for when there are none.
                break
    if suspects:
        removed = {**removed, "suspect": len(suspects)}
    return Reason(strategy.name, considered, scores, best, removed, degraded)


def standing(chosen: Sequence[Endpoint], permits: int) -> list[Endpoint]:
    """The choice and those of its alternates that may be named.

    A retry is bound by permits as a first try is: who cannot keep them for it is no alternate.
    """
    first, *others = chosen
    return [first, *(each for each in others if not permits or each.may_stand_by(first.address, permits))]


def _alternates(
    routing: RoutingRequest, pool: Pool, named: tuple[Endpoint, ...], now_ns: int, rng: Random
) -> list[Endpoint]:
    """Retries for a choice that was made among a few: of a handful drawn, the least in flight."""
    wanted = routing.tries - len(named)
    if wanted <= 0 or len(pool.endpoints) <= len(named):
        return []
    drawn = rng.sample(pool.endpoints, min(ALTERNATES_DRAWN, len(pool.endpoints)))
    fit = [
        e
        for e in drawn
        if e.ready
        and e not in named
        and e.suspect_until_ns <= now_ns
        and e.load_permits + routing.permits <= e.max_concurrent
        and _allowed(routing, e)
    ]
    return sorted(fit, key=lambda e: e.load_requests)[:wanted]


def _allowed(routing: RoutingRequest, endpoint: Endpoint) -> bool:
    regions = routing.tenant.regions
    return (regions is None or endpoint.region in regions) and (
        routing.only is None or endpoint.address in routing.only
    )


def _no_region(tenant: Tenant, pool: Pool) -> Reject:
    allowed = ", ".join(sorted(tenant.regions or ())) or "none"
    return Reject(
        status=403,
        code="region_not_allowed",
        message=f"no replica of pool {pool.name!r} is in a region that this tenant may use ({allowed})",
    )


def _no_subset(pool: Pool) -> Reject:
    return Reject(
        status=503,
        code="no_ready_endpoint",
        message=f"no replica of pool {pool.name!r} is among the endpoints that the gateway named",
        retry_after_s=RETRY_AFTER_NONE_READY_S,
    )


def _none_left(pool: Pool, endpoints: Sequence[Endpoint], permits: int) -> Reject | Full:
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    if not ready:
        return Reject(
            status=503,
            code="no_ready_endpoint",
            message=f"no replica of pool {pool.name!r} is ready",
            retry_after_s=RETRY_AFTER_NONE_READY_S,
        )
    most = max(endpoint.max_concurrent for endpoint in ready)
    if permits > most and not traits_of(pool.engine).queues:
        return unfit(f"{permits} sequences are asked for; a replica takes at most {most} at once")
    return FULL


def full(routing: RoutingRequest) -> Reject:
    """A case that cannot wait, and no replica has room."""
    return overloaded(f"every replica of pool {routing.pool!r} is full")


def overloaded(message: str, retry_after_s: int = RETRY_AFTER_FULL_S) -> Reject:
    """A 429 for want of room, as against one for want of quota."""
    return Reject(status=429, code="overloaded", message=message, retry_after_s=retry_after_s)
