"""The first half of a decision: what a request is and may have. Where it goes is placement.py's.

Pure: reads the fleet, changes nothing. The halves are apart because a request that no replica would start now
waits between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from extproc.core.candidates import Needs
from extproc.core.errors import Error, no_model
from extproc.core.families import NONE, Family, FamilyChoice, pick
from extproc.core.fleet import Fleet, Pool
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reject
from extproc.core.request import Request, limited
from extproc.core.routes import FREE_KINDS
from extproc.core.sizing import STANDARD, beyond_context, predict
from extproc.core.slo import ClassSpec
from extproc.core.spill.values import Spilled
from extproc.core.strategies import Work
from extproc.core.tenant import Tenant

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
    #: Where another pool serves it if its own fails.
    then: Spilled | None = None
    #: The request without its text, where its pool's requests may go on while they wait (spill/moving.py).
    asked: Request | None = None
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
        return no_subset(pool)
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


def _affinity_group(request: Request, model: str, pool: Pool) -> int | None:
    """Prompts that begin alike; the cache of one adapter is no other's."""
    if not request.segments:
        return None
    beginning = request.segments[0][:AFFINITY_CHARACTERS]
    return hash(beginning) if pool.adapters is None else hash((model, beginning))


def no_subset(pool: Pool) -> Reject:
    """None of those that the gateway named can serve it."""
    return Error.NO_READY_ENDPOINT.reject(
        f"no replica of pool {pool.name!r} that is ready is among the endpoints that the gateway named, "
        "or holds the response before it"
    )
