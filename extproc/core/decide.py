"""The decision in two halves: what a request is and may have (resolve), and where it goes (place).

Pure: reads the fleet, changes nothing. Who calls it enters the reservation (desk.py). The halves are
apart because a request that no replica would start now waits between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
#: The beginning by which prompts are kin: a system prompt's worth, not a question's.
KIN_CHARACTERS = 256
#: Kinds that an engine answers without a permit, and without work worth counting.
FREE_KINDS = frozenset({Kind.TOKENIZE, Kind.INFO})


@dataclass(frozen=True, slots=True)
class Case:
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
    #: Requests that begin alike share a prefix that an engine may have cached; equal only in this process.
    kin: int | None = None

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
    case = resolve(
        request,
        tenant,
        fleet,
        books,
        id=id,
        default_model=default_model,
        reservations_max=reservations_max,
        zone=zone,
        key=key,
    )
    if isinstance(case, Reject):
        return case
    placed = place(case, fleet, now_ns=now_ns, rng=rng, degraded=degraded)
    return full(case) if isinstance(placed, Full) else placed


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
) -> Case | Reject:
    """What a request is: its pool and its work; Reject when the tenant may not have it.

    `zone` is where we are: endpoints elsewhere carry their pool's handicap. `key` names the API key.
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
    return Case(
        id=id,
        tenant=tenant,
        key=key,
        model=model,
        pool=pool.name,
        work=predict(request, pool, zone=zone),
        permits=0 if free else request.sequences,
        # Images are in the engine's token count but not in the text: such a pair teaches nothing.
        prompt_bytes=0 if request.images else request.prompt_bytes,
        stream=request.stream,
        free=free,
        kin=hash(request.segments[0][:KIN_CHARACTERS]) if request.segments else None,
    )


def place(
    case: Case, fleet: Fleet, *, now_ns: int, rng: Random, degraded: str = "", only: Endpoint | None = None
) -> Routed | Reject | Full:
    """Where a case goes now: the ordered endpoints, a refusal that waiting would not mend, or FULL.

    `degraded`, when set, makes the choice by least in flight and is said in the reason; so does
    telemetry that is stale everywhere. `only` asks of one endpoint alone.
    """
    pool = fleet.pools.get(case.pool)
    if pool is None:
        return Reject(status=404, code="model_not_found", message=f"pool {case.pool!r} is no more")
    tenant = case.tenant
    endpoints: Sequence[Endpoint] = pool.endpoints if only is None else [only]
    if tenant.regions is not None:
        endpoints = [endpoint for endpoint in endpoints if endpoint.region in tenant.regions]
        if not endpoints and pool.endpoints:
            return FULL if only is not None else _no_region(tenant, pool)
    candidates, suspects, removed = eligible(endpoints, case.permits, now_ns)
    if tenant.regions is not None and len(endpoints) < len(pool.endpoints):
        removed["in other regions"] = len(pool.endpoints) - len(endpoints)
    if not candidates and not suspects:
        return FULL if only is not None else _none_left(pool, endpoints, case.permits)
    if pool.blind and not degraded:
        degraded = "all telemetry is stale"
    strategy = FALLBACK if degraded else STRATEGIES[pool.strategy]
    reason = _choose(strategy, candidates, suspects, case.work, removed, rng, degraded)
    addresses = tuple(reason.candidates[i].address for i in reason.best)
    return Routed(
        cluster=pool.cluster_for(tenant.service_class),
        addresses=addresses,
        reason=reason,
        reservation=Reservation(
            id=case.id,
            tenant=tenant.name,
            model=case.model,
            pool=pool.name,
            address=addresses[0],
            input_tokens=case.input_tokens,
            output_tokens=case.output_tokens,
            permits=case.permits,
            prompt_bytes=case.prompt_bytes,
            stream=case.stream,
            key=case.key,
            service_class=tenant.service_class,
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
    if permits > most:
        return Reject(
            status=400,
            code="invalid_request",
            message=f"{permits} sequences are asked for; a replica takes at most {most} at once",
        )
    return FULL


def full(case: Case) -> Reject:
    """A case that cannot wait, and no replica has room."""
    return overloaded(f"every replica of pool {case.pool!r} is full")


def overloaded(message: str, retry_after_s: int = RETRY_AFTER_FULL_S) -> Reject:
    """A 429 for want of room, as against one for want of quota."""
    return Reject(status=429, code="overloaded", message=message, retry_after_s=retry_after_s)
