"""Where a request goes: the second half of a decision, whose first is decide.py's.

Pure: reads the fleet, changes nothing. Who calls it enters the reservation (dispatch.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.candidates import alternates, eligible, fallbacks, full_ones, near, standing_by
from extproc.core.contract import onward_cluster_name, returning_cluster_name
from extproc.core.decide import RoutingRequest, no_subset
from extproc.core.endpoint import Endpoint, places
from extproc.core.errors import Error
from extproc.core.fleet import Fleet, Pool
from extproc.core.forecast import FREE, Forecast, forecasts, plan
from extproc.core.outcome import LATER_MS, Reason, Reject, Reservation, Routed
from extproc.core.sizing import context
from extproc.core.strategies import FALLBACK, Ranking, SchedulingContext, Strategy
from extproc.core.strategies.base import lowest
from extproc.core.tenant import Tenant
from extproc.core.trace import PlacementTrace
from extproc.engines import traits_of


class Full:
    """Every replica that could serve it is at its limit: it may wait."""


FULL = Full()
#: The same, but only for now: a replica that would serve it better is about to be free.
WAITS = Full()
#: None is ready, and one can be started.
COLD = Full()


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
            return FULL if among is not None else no_subset(pool)
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
    spill, second_model = routing.spill, ""
    if spill is not None and spill.returns and (home := fleet.pools.get(spill.pool)) is not None:
        # What fails there is tried at home: Envoy takes each next address from there (control/resources.py).
        back = fallbacks(home.endpoints, spill.home_model, routing.needs(0), routing.tries - 1, now_ns)
        if back:
            there, back_home = pool.told_as(spill.model), home.told_as(spill.home_model)
            addresses, second_model = (addresses[0], *back), back_home if back_home != there else ""
            cluster = returning_cluster_name(pool.name, home.name, tenant.service_class)
    then = ""
    if (after := routing.then) is not None and routing.tries > 1 and (other := fleet.pools.get(after.to)):
        # The other way round: the last try is elsewhere.
        onward = fallbacks(other.endpoints, after.model, routing.needs(0), 1, now_ns)
        if onward:
            then, mine = other.name, addresses[: routing.tries - 1]
            told, told_there = pool.told_as(routing.model), other.told_as(after.model)
            addresses, second_model = (*mine, *onward), told_there if told_there != told else ""
            cluster = onward_cluster_name(pool.name, then, len(mine), tenant.service_class)
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
        second_model=second_model,
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
            then=then,
        ),
    )


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
