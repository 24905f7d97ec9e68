"""The decision in two halves: what a request is and may have (resolve), and where it goes (place).

Pure: reads the fleet, changes nothing. Who calls it enters the reservation (scheduler.py). The halves are
apart because a request that no replica would start now waits between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

import msgspec

from extproc.core.candidates import Needs, alternates, eligible, fallbacks, full_ones, near, standing_by
from extproc.core.contract import returning_cluster_name
from extproc.core.endpoint import Endpoint, places
from extproc.core.errors import Error, no_model
from extproc.core.families import NONE, Family, FamilyChoice, pick
from extproc.core.fleet import Fleet, Pool
from extproc.core.forecast import FREE, Forecast, forecasts, plan
from extproc.core.ledger import Ledger
from extproc.core.outcome import LATER_MS, Reason, Reject, Reservation, Routed
from extproc.core.request import Request, limited
from extproc.core.routes import FREE_KINDS
from extproc.core.sizing import STANDARD, beyond_context, context, predict
from extproc.core.slo import ClassSpec
from extproc.core.spill.values import Spilled
from extproc.core.strategies import FALLBACK, Ranking, SchedulingContext, Strategy, Work
from extproc.core.strategies.base import lowest
from extproc.core.tenant import Tenant
from extproc.core.trace import PlacementTrace
from extproc.engines import traits_of

if TYPE_CHECKING:
    from extproc.core.remote.values import Tiered

#: Endpoints named in a decision where nothing is said of retries: the choice and two more.
ENDPOINTS_NAMED = 3
#: The beginning by which prompts are of one group: a system prompt's worth, not a question's.
AFFINITY_CHARACTERS = 256


class RoutingRequest(msgspec.Struct, frozen=True):
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
    #: Where another pool serves it than its model's.
    spill: Spilled | None = None
    #: As the request has it.
    question: str = ""
    #: Where another site might serve it: what was chosen.
    tier: Tiered | None = None
    #: The site that sent it on, and how many gateways have.
    site: str = ""
    hops: int = 0

    @property
    def input_tokens(self) -> int:
        """Prompt tokens that are charged."""
        return 0 if self.free else self.work.input_tokens

    @property
    def output_tokens(self) -> int:
        """Output tokens that are reserved."""
        return 0 if self.free else self.work.output_tokens

    def needs(self, permits: int) -> Needs:
        """What it asks of an endpoint that shall have so many permits free."""
        return Needs(permits, self.tenant.regions, self.only)


class Full:
    """Every replica that could serve it is at its limit: it may wait."""


FULL = Full()
#: The same, but only for now: a replica that would serve it better is about to be free.
WAITS = Full()
#: None is ready, and one can be started.
COLD = Full()


def _nobody_waits(_pool: str) -> int:
    return 0


def serving(model: str, tenant: Tenant, fleet: Fleet) -> Pool | None:
    """The pool that serves a model to a tenant; None where it is not there, or not the tenant's to use."""
    pool = fleet.pool_for(model, tenant.name)
    return pool if pool is not None and tenant.may(model) else None


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
    spill: Spilled | None = None,
    to: str = "",
) -> RoutingRequest | Reject:
    """What a request is: its pool and its work; Reject when the tenant may not have it.

    `zone` is where we are: endpoints elsewhere carry their pool's handicap. `key` names the API key.
    `spec` is what the tenant's class aims at, `rank` its place among the classes. A family's name stands
    for one of its models; `waiting` says how many requests wait for a pool. `spill` sends it to pool `to`.
    """
    model = request.model or tenant.default_model or default_model
    choice: FamilyChoice | None = None
    if spill is None and (family := families.get(model)) is not None:
        picked = pick(request, tenant, fleet, family, waiting=waiting)
        if isinstance(picked, Reject):
            return picked
        choice, model = picked, picked.model
    if spill is not None:
        model, pool = spill.model, fleet.pools.get(to)
    else:
        pool = serving(model, tenant, fleet)
    if pool is None:
        # What a tenant may not use, or is reserved for others, is to it as if it were not there.
        return no_model(request.model)
    if request.adapter and pool.adapters is not None and request.adapter in pool.adapters.names:
        model = request.adapter
        if not tenant.may(model):
            return no_model(model)
    only = request.only
    if only is not None and not any(each.ready and each.address in only for each in pool.endpoints):
        # Now, whoever waits for the same pool: no place that may become free would do.
        return _no_subset(pool)
    if len(books) >= reservations_max:
        return Error.OVERLOADED.reject("the gateway follows as many requests as it may")
    free = request.kind in FREE_KINDS
    request = limited(request, pool.engine)
    work = predict(request, pool, tenant.name, model, zone=zone, rank=rank, spec=spec, now_ns=now_ns)
    counter = pool.calibration.counter
    if counter is not None and not free and (prompt := beyond_context(request, work, counter.context_tokens)):
        asked = request.max_new_tokens or 0
        return Error.CONTEXT_LENGTH.reject(prompt=prompt, asked=asked, context=counter.context_tokens)
    return RoutingRequest(
        id=id,
        tenant=tenant,
        key=key,
        model=model,
        pool=pool.name,
        work=work,
        permits=0 if free else request.sequences,
        # What is in the engine's count but not in the text, such as images: such a pair teaches nothing.
        prompt_bytes=0 if request.more_than_text else request.prompt_bytes,
        stream=request.stream,
        free=free,
        strategy=tenant.strategy or "",
        arrived_ns=now_ns,
        waits=spec.wait_ns(work.input_tokens) > 0,
        affinity_group=_affinity_group(request, model, pool),
        choice=choice,
        only=request.only,
        route=request.kind.value,
        tries=1 if request.once else spec.retries + 1,
        spill=spill,
        question=request.question,
        site=request.site,
        hops=request.hops,
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
    last: bool = False,
    trace: PlacementTrace | None = None,
) -> Routed | Reject | Full:
    """Where a case goes now: the ordered endpoints, a refusal that waiting would not mend, or FULL.

    `degraded`, when set, makes the choice by least in flight and is said in the reason; so does telemetry
    that is stale everywhere. `among` asks of these endpoints alone. `patient`, `deciders` and `last` as in
    `work.SchedulingContext`. `trace` is filled with how it came about; a decision has its own, in brief.
    """
    pool = fleet.pools.get(routing.pool)
    if pool is None:
        return Error.MODEL_NOT_FOUND.reject(f"pool {routing.pool!r} is no more")
    tenant, outside = routing.tenant, 0
    everyone: Sequence[Endpoint] = pool.endpoints if among is None else among
    endpoints = everyone
    permits = routing.permits
    queues = traits_of(pool.engine).queues
    if permits > 1 and queues:
        allows = routing.needs(permits).allows
        permits = places(permits, [e for e in pool.endpoints if allows(e)])
    strategy, degraded = strategy_of(routing, pool, degraded)
    if trace is not None:
        trace.strategy, trace.degraded = strategy.name, degraded
        trace.before(everyone, routing.needs(permits), now_ns)
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
    candidates, suspects, removed = eligible(endpoints, permits, now_ns)
    if tenant.regions is not None and len(endpoints) + outside < len(pool.endpoints):
        removed["in other regions"] = len(pool.endpoints) - len(endpoints) - outside
    if outside:
        removed["outside the subset"] = outside
    if not candidates and not suspects:
        return FULL if among is not None else _none_left(pool, endpoints, routing.permits)
    if pool.adapters is not None and routing.model in pool.adapters.names:
        allows = routing.needs(permits).allows
        everyone_may = [each for each in pool.endpoints if allows(each)]
        fit = near(everyone_may, candidates, routing.model, permits, now_ns=now_ns)
        if candidates and not fit:
            return FULL
        removed["without the adapter"] = len(candidates) - len(fit)
        candidates = fit
        if pool.adapters.by_call:
            suspects = [each for each in suspects if each.answers(routing.model)]
            if not candidates and not suspects:
                return FULL
    lacking: Sequence[Endpoint] = ()
    if routing.waits and not last and (among is not None or removed["full"]):
        lacking = full_ones(pool.endpoints, routing.needs(permits), now_ns)
    at = context(
        routing.work, pool, now_ns=now_ns, patient=patient, deciders=deciders, last=last, full=lacking
    )
    considered = [*candidates, *suspects] if suspects else candidates
    reason = choose(strategy, candidates, suspects, routing, removed, rng, degraded, at)
    if not reason.best:
        if trace is not None:
            trace.ranked(strategy, reason, considered, (), (), routing.work, at)
        return WAITS if patient and min(reason.scores) < LATER_MS else FULL
    chosen = [considered[i] for i in reason.best]
    if among is not None or pool.adapters is not None or queues:
        more = routing.tries - len(chosen)
        chosen += alternates(pool, routing.needs(routing.permits), chosen, more, routing.model, now_ns, rng)
    named = chosen if queues else standing_by(chosen, routing.permits)
    alone = len(named) == 1 and routing.tries > 1 and not last and routing.waits and bool(routing.permits)
    if alone and named[0].failed_lately(now_ns) and any(e.ready and e not in named for e in pool.endpoints):
        # Should it fail again nothing could be done: another that would take it, or the first that has room.
        best = [i for i in reason.best if not considered[i].failed_lately(now_ns)]
        if not best:
            return FULL
        reason, named = reason._replace(best=best), [considered[best[0]]]
    found = forecasts(named, routing.work, cached=at.cached)
    if trace is None:
        trace = PlacementTrace()
        if len(considered) < len(everyone):
            trace.removed(everyone, considered, routing.needs(permits))
    trace.ranked(strategy, reason, considered, named, found, routing.work, at)
    first, addresses = named[0], tuple(endpoint.address for endpoint in named)
    cluster = pool.cluster_for(tenant.service_class)
    if pool.site:
        # What is signed for a request is taken there once: it is not sent a second time.
        addresses = addresses[:1]
    spill, home_model = routing.spill, ""
    if spill is not None and spill.returns and (home := fleet.pools.get(spill.pool)) is not None:
        # What fails there is tried at home: Envoy takes each next address from there (control/resources.py).
        back = fallbacks(home.endpoints, spill.home_model, routing.needs(0), routing.tries - 1, now_ns)
        if back:
            there, back_home = pool.told_as(spill.model), home.told_as(spill.home_model)
            addresses, home_model = (addresses[0], *back), back_home if back_home != there else ""
            cluster = returning_cluster_name(pool.name, home.name, tenant.service_class)
    expected = FREE
    if not routing.free:
        given_tokens = at.coming.get(first.address, 0)
        expected = plan(routing.work, first, Forecast._make(found[0]), given_tokens=given_tokens)
    return Routed(
        cluster=cluster,
        addresses=addresses,
        reason=reason,
        plan=expected,
        trace=trace,
        home_model=home_model,
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
            spilled_from="" if routing.spill is None else routing.spill.pool,
            held_ms=round(max(0, now_ns - routing.arrived_ns) / 1e6, 3),
            site=routing.site,
            hops=routing.hops,
            place=routing.tenant.place,
        ),
    )


def _affinity_group(request: Request, model: str, pool: Pool) -> int | None:
    """Prompts that begin alike; the cache of one adapter is no other's."""
    if not request.segments:
        return None
    beginning = request.segments[0][:AFFINITY_CHARACTERS]
    return hash(beginning) if pool.adapters is None else hash((model, beginning))


def strategy_of(routing: RoutingRequest, pool: Pool, degraded: str = "") -> tuple[Strategy, str]:
    """The strategy that places a case in a pool, and why it is the least that can be said, if it is."""
    if pool.blind and not degraded:
        degraded = "all telemetry is stale"
    if degraded or routing.free:
        return FALLBACK, degraded
    return pool.strategy_named(routing.strategy or pool.strategy), degraded


def choose(
    strategy: Strategy,
    candidates: list[Endpoint],
    suspects: list[Endpoint],
    routing: RoutingRequest,
    removed: dict[str, int],
    rng: Random,
    degraded: str,
    at: SchedulingContext,
) -> Reason:
    """Rank those that are trusted, then the suspects, until there are as many as the case may be tried on.

    What cannot wait goes where it will be served soonest, though late binding would hold it.
    """
    considered: list[Endpoint] = []
    best: list[int] = []
    scores: list[float] = []
    for group in (candidates, suspects):
        wanted = min(routing.tries - len(best), len(group))
        if wanted > 0:
            ranking: Ranking = strategy.rank(group, routing.work, count=wanted, rng=rng, at=at)
            chosen = ranking.best
            if not chosen and not routing.waits:
                chosen = lowest(group, ranking.scores, wanted)
            best.extend(len(considered) + i for i in chosen)
            scores.extend(ranking.scores)
            considered.extend(group)
            if not chosen and not at.last:
                # Those that are trusted will take it later: suspects are for when there are none.
                break
    if suspects:
        removed = {**removed, "suspect": len(suspects)}
    return Reason(strategy.name, considered, scores, best, removed, degraded, strategy.defers)


def _no_region(tenant: Tenant, pool: Pool) -> Reject:
    allowed = ", ".join(sorted(tenant.regions or ())) or "none"
    return Error.REGION_NOT_ALLOWED.reject(pool=pool.name, regions=allowed)


def _no_subset(pool: Pool) -> Reject:
    return Error.NO_READY_ENDPOINT.reject(
        f"no replica of pool {pool.name!r} that is ready is among the endpoints that the gateway named, "
        "or holds the response before it"
    )


def _none_left(pool: Pool, endpoints: Sequence[Endpoint], permits: int) -> Reject | Full:
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    if not ready:
        if pool.starting:
            return COLD
        return Error.NO_READY_ENDPOINT.reject(f"no replica of pool {pool.name!r} is ready")
    most = max(endpoint.max_concurrent for endpoint in ready)
    if permits > most and not traits_of(pool.engine).queues:
        message = f"{permits} sequences are asked for; a replica takes at most {most} at once"
        return Error.UNFIT.reject(message)
    return FULL


def full(routing: RoutingRequest) -> Reject:
    """A case that cannot wait, and no replica has room."""
    return Error.OVERLOADED.reject(pool=routing.pool)


def cold(pool: Pool, *, now_ns: int, waited_s: float = 0.0) -> Reject:
    """A case that waits no longer, or not at all, for a first replica: when that is expected."""
    left_s = pool.cold.left_s(now_ns=now_ns)
    held = f" within {waited_s:.1f} s" if waited_s else ""
    message = f"no replica of pool {pool.name!r} was ready{held}; one is expected in about {left_s} s"
    return Error.NO_READY_ENDPOINT.reject(message, retry_after_s=left_s)
