"""What this site and another offer for one request, for the choice between them (core/tiers). Pure.

Here it is the forecasts of the pool's replicas. There it is the site's own word while that is fresh, with the
way there and back; else what requests that ended there have taught, which has the way in it already.
"""

from __future__ import annotations

from typing import Final

from extproc.core.accounts import Price
from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue import FairQueue
from extproc.core.fleet import Pool
from extproc.core.forecast import forecasts, start_ms
from extproc.core.remote.digest import PoolWord, hot
from extproc.core.remote.links import SiteLink
from extproc.core.tenant import Tenant
from extproc.core.tiers import SiteOffer
from extproc.core.work import Work

#: When a request would begin at a full place whose queue has taught nothing yet.
UNKNOWN_WAIT_NS: Final = 60_000_000_000
_MS: Final = 1_000_000


def offer_here(
    pool: Pool, work: Work, tenant: Tenant, queue: FairQueue, *, price: Price, now_ns: int
) -> SiteOffer:
    """What the replicas of a pool offer that a tenant may use."""
    may = _may(pool, tenant)
    cost = price.of(work.input_tokens, work.output_tokens)
    if not may:
        return SiteOffer(
            ready=False, begins_ns=UNKNOWN_WAIT_NS, first_ns=UNKNOWN_WAIT_NS, token_ns=0, cost=cost
        )
    wait_ns = _wait_ns(pool, may, work, queue, now_ns)
    found = forecasts(may, work)
    return SiteOffer(
        ready=True,
        begins_ns=wait_ns + round(min(start_ms(each) for each in may) * _MS),
        first_ns=wait_ns + round(min(each[0] for each in found) * _MS),
        token_ns=round(min(each[1] for each in found) * _MS),
        cost=cost,
        hot=all(hot(each) for each in may),
    )


def offer_there(
    link: SiteLink,
    pool: Pool,
    model: str,
    work: Work,
    tenant: Tenant,
    queue: FairQueue,
    *,
    price: Price,
    now_ns: int,
) -> SiteOffer | None:
    """What another site offers for a model that is called so there, as the pool that it is here; None where
    its fresh word has no such model."""
    digest = link.fresh(now_ns=now_ns)
    # A link that has stopped has not told so: its answer is late, and so is all that goes there now.
    overdue_ns = link.overdue_ns(now_ns=now_ns)
    if digest is None:
        taught = offer_here(pool, work, tenant, queue, price=price, now_ns=now_ns)
        return SiteOffer(
            ready=taught.ready and not link.away,
            begins_ns=taught.begins_ns + overdue_ns,
            first_ns=taught.first_ns + overdue_ns,
            token_ns=taught.token_ns,
            cost=taught.cost,
            confident=False,
        )
    word = digest.of(model)
    if word is None:
        return None
    # Nor does it leave before there is a place for it here: that site's gateway is sent so many at once.
    may = _may(pool, tenant)
    begins_ns = _wait_ns(pool, may, work, queue, now_ns) + _begins_ns(word, link, pool, work, now_ns)
    begins_ns += overdue_ns
    first_ns = begins_ns + round(word.own_of(work.input_tokens) * _MS)
    told = word.cost(work.input_tokens, work.output_tokens)
    return SiteOffer(
        ready=bool(may) and not link.away and word.ready > 0,
        # It begins once it is there; its first token has the way back as well.
        begins_ns=begins_ns + link.way_ns // 2,
        first_ns=first_ns + link.way_ns,
        token_ns=round(word.token_ms * _MS),
        # What this site's file says of the pool counts; else what the other one says.
        cost=price.of(work.input_tokens, work.output_tokens) or told,
        hot=word.hot,
    )


def _begins_ns(word: PoolWord, link: SiteLink, pool: Pool, work: Work, now_ns: int) -> int:
    """When a request would begin there: after those that waited, with those that went there since, and less
    the time that has passed. Else all of a second's requests would find the same free replica."""
    sequences, prefill_ms, passed_ms = link.since(now_ns=now_ns)
    # What went there since and has ended takes no place any more, and no time: which it was is not known, so
    # each is taken for a like share.
    there = min(sequences, sum(each.permits for each in pool.endpoints))
    prefill_ms *= there / max(1, sequences)
    queue_ms = max(0.0, word.begins_ms + prefill_ms / max(1, word.ready) - passed_ms)
    missing = there + work.sequences - word.room
    if missing > 0:
        # Who waits is told of in `begins`; with nobody waiting it takes the next places that are free.
        turns_ms = missing * word.turn_ms or UNKNOWN_WAIT_NS / _MS
        queue_ms = max(queue_ms, turns_ms - passed_ms)
    return round(queue_ms * _MS)


def _may(pool: Pool, tenant: Tenant) -> list[Endpoint]:
    """The pool's endpoints that are ready and in the tenant's regions."""
    regions = tenant.regions
    return [each for each in pool.endpoints if each.ready and (regions is None or each.region in regions)]


def _wait_ns(pool: Pool, may: list[Endpoint], work: Work, queue: FairQueue, now_ns: int) -> int:
    """How long it would wait here before any replica gets it: 0 where one has room and nobody waits."""
    waiting = queue.by_pool_count(pool.name)
    room = any(each.load_permits + work.sequences <= each.max_concurrent for each in may)
    if room and not waiting:
        return 0
    wait_s = queue.wait_s(pool.name, work.rank, now_ns=now_ns)
    return UNKNOWN_WAIT_NS if wait_s is None else round(wait_s * 1e9)
