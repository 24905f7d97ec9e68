"""The decision: request, tenant, fleet and books in; a route or a refusal out.

Pure: reads the fleet, changes nothing. Who calls it enters the reservation (desk.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Fleet, Pool
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reason, Reject, Reservation, Routed
from extproc.core.request import IMAGE_TOKENS, Kind, Request
from extproc.core.strategies import FALLBACK, STRATEGIES, Ranking, Strategy, Work
from extproc.core.tenant import Tenant

#: Endpoints named in a decision: the choice and its retries.
ENDPOINTS_NAMED_MAX = 3
#: Seconds a client is told to wait when every permit is taken, and when no endpoint is ready.
RETRY_AFTER_FULL_S, RETRY_AFTER_NONE_READY_S = 1, 5
#: How much of an unknown model's name a message repeats.
MODEL_SHOWN_MAX = 128
#: Kinds that an engine answers without a permit, and without work worth counting.
FREE_KINDS = frozenset({Kind.TOKENIZE, Kind.INFO})


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
    degraded: str = "",
) -> Routed | Reject:
    """Choose the upstream cluster and the ordered endpoints of one request.

    `zone` is where we are: endpoints elsewhere carry their pool's handicap. `degraded`, when set, makes
    the choice by least in flight and is said in the reason; so does telemetry that is stale everywhere.
    """
    model = request.model or tenant.default_model or default_model
    pool = fleet.pool_of(model)
    if pool is None:
        return Reject(
            status=404,
            code="model_not_found",
            message=f"no model {model[:MODEL_SHOWN_MAX]!r} here; GET /v1/models lists what there is",
        )
    if tenant.models is not None and model not in tenant.models:
        return Reject(
            status=403, code="model_not_allowed", message=f"this key may not use the model {model!r}"
        )
    if len(books) >= reservations_max:
        return overloaded("the gateway follows as many requests as it may")
    free = request.kind in FREE_KINDS
    permits = 0 if free else request.sequences
    work = predict(request, pool, zone=zone)
    endpoints: Sequence[Endpoint] = pool.endpoints
    if tenant.regions is not None:
        endpoints = [endpoint for endpoint in endpoints if endpoint.region in tenant.regions]
        if not endpoints and pool.endpoints:
            return _no_region(tenant, pool)
    candidates, suspects, removed = eligible(endpoints, permits, now_ns)
    if len(endpoints) < len(pool.endpoints):
        removed["in other regions"] = len(pool.endpoints) - len(endpoints)
    if not candidates and not suspects:
        return _none_left(pool, endpoints, permits)
    if pool.blind and not degraded:
        degraded = "all telemetry is stale"
    strategy = FALLBACK if degraded else STRATEGIES[pool.strategy]
    reason = _choose(strategy, candidates, suspects, work, removed, rng, degraded)
    addresses = tuple(reason.candidates[i].address for i in reason.best)
    return Routed(
        cluster=pool.cluster,
        addresses=addresses,
        reason=reason,
        reservation=Reservation(
            id=id,
            tenant=tenant.name,
            model=model,
            pool=pool.name,
            address=addresses[0],
            input_tokens=0 if free else work.input_tokens,
            output_tokens=0 if free else work.output_tokens,
            permits=permits,
            # Images are in the engine's token count but not in the text: such a pair teaches nothing.
            prompt_bytes=0 if request.images else request.prompt_bytes,
            stream=request.stream,
        ),
    )


def predict(request: Request, pool: Pool, *, zone: str = "") -> Work:
    """Tokens that a request will cost on a pool, over all its sequences."""
    calibration = pool.calibration
    text = request.prompt_tokens
    if text is None:
        text = calibration.predict_input(request.prompt_bytes)
    return Work(
        input_tokens=text + IMAGE_TOKENS * request.images,
        output_tokens=calibration.predict_output(request.max_new_tokens) * request.sequences,
        zone=zone,
        zone_penalty_tokens=pool.zone_penalty_tokens,
    )


def eligible(
    endpoints: Sequence[Endpoint], permits: int, now_ns: int
) -> tuple[list[Endpoint], list[Endpoint], dict[str, int]]:
    """Split into candidates, suspects (last in order) and counts of the removed by cause.

    An endpoint is removed when it is not ready or when the request's permits would pass its limit:
    TGI refuses what is above inside a 200 answer, where no retry can help (law 10).
    """
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    # A request that takes no permit fits anywhere, also where a reload has lowered the limit.
    free = [e for e in ready if e.load_permits + permits <= e.max_concurrent] if permits else ready
    candidates = [endpoint for endpoint in free if endpoint.suspect_until_ns <= now_ns]
    suspects: list[Endpoint] = []
    if len(candidates) < len(free):
        suspects = [endpoint for endpoint in free if endpoint.suspect_until_ns > now_ns]
    return candidates, suspects, {"not ready": len(endpoints) - len(ready), "full": len(ready) - len(free)}


def _choose(
    strategy: Strategy,
    candidates: list[Endpoint],
    suspects: list[Endpoint],
    work: Work,
    removed: dict[str, int],
    rng: Random,
    degraded: str,
) -> Reason:
    considered: list[Endpoint] = []
    best: list[int] = []
    scores: list[float] = []
    for group in (candidates, suspects):
        wanted = min(ENDPOINTS_NAMED_MAX - len(best), len(group))
        if wanted > 0:
            ranking: Ranking = strategy.rank(group, work, count=wanted, rng=rng)
            best.extend(len(considered) + i for i in ranking.best)
            scores.extend(ranking.scores)
            considered.extend(group)
    if suspects:
        removed = {**removed, "suspect": len(suspects)}
    return Reason(strategy.name, considered, scores, best, removed, degraded)


def _no_region(tenant: Tenant, pool: Pool) -> Reject:
    allowed = ", ".join(sorted(tenant.regions or ())) or "none"
    return Reject(
        status=403,
        code="region_not_allowed",
        message=f"no replica of pool {pool.name!r} is in a region that this tenant may use ({allowed})",
    )


def _none_left(pool: Pool, endpoints: Sequence[Endpoint], permits: int) -> Reject:
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    if not ready:
        return Reject(
            status=503,
            code="no_ready_endpoint",
            message=f"no replica of pool {pool.name!r} is ready",
            retry_after_s=RETRY_AFTER_NONE_READY_S,
        )
    most = max(endpoint.max_concurrent for endpoint in ready)
    if permits > most:
        return Reject(
            status=400,
            code="invalid_request",
            message=f"{permits} sequences are asked for; a replica takes at most {most} at once",
        )
    return overloaded(f"every replica of pool {pool.name!r} is full")


def overloaded(message: str) -> Reject:
    """A 429 for want of room, as against one for want of quota."""
    return Reject(status=429, code="overloaded", message=message, retry_after_s=RETRY_AFTER_FULL_S)
