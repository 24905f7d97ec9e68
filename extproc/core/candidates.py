"""Which endpoints may take a request at all, whatever its strategy would say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import start_ms
from extproc.engines import traits_of

if TYPE_CHECKING:
    from extproc.core.fleet import Pool

#: What `Needs.standing` calls an endpoint.
REMOVED, SUSPECT, CANDIDATE = "removed", "suspect", "candidate"
#: Endpoints that are drawn to find retries for a choice among a few.
ALTERNATES_DRAWN = 8
#: In pools of up to so many endpoints a request may wait for one that is full.
WAITED_FOR_MAX = 64


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of an endpoint: free permits, a region, an address (None: any)."""

    permits: int
    regions: frozenset[str] | None = None
    only: frozenset[str] | None = None

    def allows(self, endpoint: Endpoint) -> bool:
        """Whether it may go there at all, now or later."""
        return (self.regions is None or endpoint.region in self.regions) and (
            self.only is None or endpoint.address in self.only
        )

    def cause(self, endpoint: Endpoint) -> str:
        """In a word, what removes one that is no candidate."""
        if not self.allows(endpoint):
            return "not allowed"
        return "permits full" if endpoint.ready else "draining" if endpoint.draining else "not ready"

    def standing(self, endpoint: Endpoint, now_ns: int) -> tuple[str, tuple[str, ...]]:
        """What it is now, and why in words."""
        taken, permits = endpoint.load_permits + endpoint.standby, self.permits
        if self.regions is not None and endpoint.region not in self.regions:
            return REMOVED, (f"other region: {endpoint.region or 'none said'}",)
        if self.only is not None and endpoint.address not in self.only:
            return REMOVED, ("outside the subset that the gateway named",)
        if not endpoint.ready:
            return REMOVED, _unready(endpoint)
        if permits and taken + permits > endpoint.max_concurrent:
            asked = f" + {permits}" if permits > 1 else ""
            kept = f" ({endpoint.standby} of them kept for retries)" if endpoint.standby else ""
            return REMOVED, (f"permits full: {taken}{asked} of {endpoint.max_concurrent}{kept}",)
        if endpoint.suspect_until_ns > now_ns:
            left_ms = (endpoint.suspect_until_ns - now_ns) / 1e6
            return SUSPECT, (f"an attempt failed: last for {left_ms:.0f} ms",)
        return CANDIDATE, ()


def _unready(endpoint: Endpoint) -> tuple[str, ...]:
    why = [] if endpoint.announced else ["not every Envoy knows it yet"]
    if endpoint.draining:
        why.append("draining")
    if endpoint.health.value <= 0.0:
        causes = ", ".join(
            f"{name} ({cause.detail})" if cause.detail else name
            for name, cause in endpoint.health.causes.items()
        )
        why.append(f"not ready: {causes or 'health 0'}")
    return tuple(why) or ("not ready",)


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


def full_ones(endpoints: Sequence[Endpoint], needs: Needs, now_ns: int) -> Sequence[Endpoint]:
    """Those that would take it but for their permits; none in a pool that is too large to look at each."""
    if not needs.permits or len(endpoints) > WAITED_FOR_MAX:
        return ()
    return [
        e
        for e in endpoints
        if e.ready
        and e.load_permits + e.standby + needs.permits > e.max_concurrent
        and e.suspect_until_ns <= now_ns
        and needs.allows(e)
    ]


def standing_by(chosen: Sequence[Endpoint], permits: int) -> list[Endpoint]:
    """The choice and those of its alternates that may be named.

    A retry is bound by permits as a first try is: who cannot keep them for it is no alternate.
    """
    if not permits or len(chosen) < 2:
        return list(chosen)
    address = chosen[0].address
    return [each for i, each in enumerate(chosen) if not i or each.may_stand_by(address, permits)]


def kept_free(pool: Pool, named: Iterable[Endpoint | None]) -> list[Endpoint]:
    """Those named for a retry that keep its permits free: none where the engine queues what it cannot run.

    A retry does not overfill such a one.
    """
    return [] if traits_of(pool.engine).queues else [each for each in named if each is not None]


def alternates(
    pool: Pool, needs: Needs, chosen: Sequence[Endpoint], more: int, model: str, now_ns: int, rng: Random
) -> list[Endpoint]:
    """Up to `more` retries for a choice that was made among a few: of a handful drawn, the least in flight.

    An engine that queues what is above its limit is asked even where it is full: a retry that waits in it is
    better than none.
    """
    if more <= 0 or len(pool.endpoints) <= len(chosen):
        return []
    queues = traits_of(pool.engine).queues
    drawn = rng.sample(pool.endpoints, min(ALTERNATES_DRAWN, len(pool.endpoints)))
    fit = [
        e
        for e in drawn
        if e.ready
        and e not in chosen
        and e.suspect_until_ns <= now_ns
        and (queues or e.load_permits + needs.permits <= e.max_concurrent)
        and needs.allows(e)
        and e.answers(model)
    ]
    return sorted(fit, key=lambda e: e.load_requests)[:more]


def near(
    everyone: Sequence[Endpoint], candidates: list[Endpoint], name: str, permits: int, *, now_ns: int
) -> list[Endpoint]:
    """Those of the candidates that may take a request for an adapter.

    Those that have it, while the first of them would begin it no later than another could with the load of a
    copy; else those others as well where a copy costs least. So what few ask for is on few replicas, and what
    many ask for spreads. A copy costs twice where it would drop another in use: no two adapters chase each
    other. Whose engine says that it lacks it is asked only where all of them say so. `everyone` are all that
    the request may go to: of an event's few candidates none is taken where one of the rest has it and room.
    """
    costs: dict[str, float] = {}
    for each in [each for each in everyone if each.answers(name)] or everyone:
        if each.ready and (not permits or each.load_permits + each.standby + permits <= each.max_concurrent):
            cost = 0.0 if each.adapters is None else each.adapters.cost_ms(name, now_ns=now_ns)
            if cost is not None:
                costs[each.address] = cost
    have = [each for each in everyone if costs.get(each.address, 1.0) == 0.0]
    others = [each for each in everyone if costs.get(each.address, 0.0) > 0.0]
    if others:
        soonest = min(start_ms(each) + costs[each.address] for each in others)
        if have and min(map(start_ms, have)) <= soonest:
            others = []
        else:
            least = min(costs[each.address] for each in others)
            others = [each for each in others if costs[each.address] == least]
    may = {each.address for each in (*have, *others)}
    return [each for each in candidates if each.address in may]


def fallbacks(
    endpoints: Iterable[Endpoint], model: str, needs: Needs, most: int, now_ns: int
) -> tuple[str, ...]:
    """Where a request is tried that fails in another pool: the least loaded that are ready, by address."""
    may = [each for each in endpoints if each.ready and needs.allows(each) and each.answers(model)]
    may.sort(key=lambda each: (each.suspect_until_ns > now_ns, each.load_permits))
    return tuple(each.address for each in may[: max(0, most)])
