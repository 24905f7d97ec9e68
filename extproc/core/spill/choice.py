"""When a request goes to another pool, such as a provider's, because its own cannot serve it in time. Pure.

Owns the order of the rules. A request stays unless all of these hold:

1. Its pool says where to (`SpillRule`), its tenant allows it, and the other pool can read it: an OpenAI
   route, or the same engine; no token ids, which are another tokenizer's there.
2. Its own pool has no ready replica (`unavailable`), would begin later than `wait_ms` (`load`), or has met
   the targets of too few of its requests in the last minute (`attainment`). One that waits already goes on
   for the first cause, or once it has waited for `wait_ms`.
3. The other pool would begin at once, in a region that the tenant allows.
4. There is room in the other pool's rate limits, and in the budgets of the hour, for the most that the
   request can cost.

Each request is asked anew, so the first that finds room at home stays there. Where the other pool is a
centre's, core/tiers says in the place of 2 and 3 when it goes (`SpillRule.tiers`), and every tenant's may.
"""

from __future__ import annotations

from extproc.core.accounts import Price
from extproc.core.fairqueue import FairQueue
from extproc.core.families import begins
from extproc.core.fleet import Fleet, Pool
from extproc.core.load import MS_NS
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.spill.books import SpillBooks
from extproc.core.spill.values import ATTAINMENT, FAILED, LOAD, UNAVAILABLE, SpillCost, Spilled, SpillRule
from extproc.core.tenant import Tenant
from extproc.core.tiers import THERE, TierChoice

#: What one model can do in another's place.
KINDS = frozenset({RouteKind.CHAT, RouteKind.COMPLETION, RouteKind.GENERATE, RouteKind.GENERATE_STREAM})
#: What the same model can do at another site beside them.
SITE_KINDS = KINDS | {RouteKind.MESSAGES, RouteKind.EMBEDDINGS, RouteKind.RERANK, RouteKind.SCORE}
#: Tokens that a chat's template may add to each message, and to the whole: more than any that is known.
MESSAGE_TOKENS, REQUEST_TOKENS = 16, 64


def may_spill(request: Request, pool: Pool, tenant: Tenant, there: Pool) -> bool:
    """Whether a request of a pool may go to the other at all, whatever the load."""
    return (
        tenant.spill is not None
        and request.kind in KINDS
        and (request.dialect is Dialect.OPENAI or pool.engine == there.engine)
        and request.prompt_tokens is None
        and request.only is None
    )


def may_cross(request: Request, pool: Pool, there: Pool, rule: SpillRule) -> bool:
    """Whether a request of a pool may be served by another site's pool at all."""
    kinds = KINDS if rule.renames else SITE_KINDS
    return (
        request.kind in kinds
        and (request.dialect is not Dialect.TGI or pool.engine == there.engine)
        and (request.prompt_tokens is None or not rule.renames)
        and request.only is None
    )


def elsewhere(
    request: Request,
    model: str,
    tenant: Tenant,
    fleet: Fleet,
    rule: SpillRule,
    books: SpillBooks,
    queue: FairQueue,
    *,
    price: Price,
    rank: int = 0,
    tier: TierChoice | None = None,
    waited_ns: int | None = None,
    own_id: str = "",
    now_ns: int,
) -> Spilled | None:
    """Where a request for a model of the rule's pool goes instead; None where it stays. Changes nothing.

    `price` is the other pool's, `rank` the tenant's class among the classes, `tier` what was chosen where the
    other pool is a centre's. One that waits at home has done so for `waited_ns`;
    what is kept free for it already, by its reservation's id `own_id`, is its own.
    """
    pool, there = fleet.pools[rule.pool], fleet.pools.get(rule.to)
    if there is None:
        return None
    if tier is not None:
        why = str(tier.reason) if tier.where == THERE else ""
    elif not may_spill(request, pool, tenant, there):
        return None
    else:
        if waited_ns is None:
            why = _why(pool, tenant, request.sequences, rank, rule, books, queue, now_ns)
        else:
            why = _why_not_wait(pool, tenant, rule, waited_ns)
        if queue.by_pool_count(there.name) or not begins(there, tenant, request.sequences, rule.wait_ms):
            return None
    if not why:
        return None
    own = None if tenant.spill is None else tenant.spill.budget_per_hour
    budgets = (rule.budget_per_hour, own)
    if request.more_than_text and budgets != (None, None):
        return None  # what an image or a search costs there nobody can say beforehand
    most = most_of(request, rule, price)
    if not books.has_room(rule, tenant, most, own_id=own_id, now_ns=now_ns):
        return None
    waited_ms = None if waited_ns is None else waited_ns / MS_NS
    return Spilled(pool.name, rule.model(model), why, most, rule.returns, model, waited_ms=waited_ms)


def after_failure(
    request: Request,
    model: str,
    tenant: Tenant,
    fleet: Fleet,
    rule: SpillRule,
    books: SpillBooks,
    *,
    price: Price,
    now_ns: int,
) -> Spilled | None:
    """Where a request goes that is served at home, should home fail; None where nowhere. Changes nothing.

    It is asked nothing of load; budgets must have room for the most that it can cost, as if it went.
    """
    there = fleet.pools.get(rule.to)
    if not rule.after_failure or there is None or request.once:
        return None
    own = None if tenant.spill is None else tenant.spill.budget_per_hour
    if request.images and (rule.budget_per_hour, own) != (None, None):
        return None
    most = most_of(request, rule, price)
    if not begins(there, tenant, 0, None) or not books.has_room(rule, tenant, most, now_ns=now_ns):
        return None
    return Spilled(rule.pool, rule.model(model), FAILED, most, to=rule.to)


def most_of(request: Request, rule: SpillRule, price: Price) -> SpillCost:
    """The most that a request can be: no tokenizer makes more tokens of a text than it has bytes."""
    limit = request.max_new_tokens
    tokens_in = request.prompt_bytes + MESSAGE_TOKENS * request.messages + REQUEST_TOKENS
    tokens_out = (rule.output_tokens_max if limit is None else limit) * request.sequences
    return SpillCost(tokens_in + tokens_out, price.of(tokens_in, tokens_out))


def _why_not_wait(pool: Pool, tenant: Tenant, rule: SpillRule, waited_ns: int) -> str:
    """Why a request should not wait any longer; empty where it should."""
    if not begins(pool, tenant, 0, None):
        return UNAVAILABLE
    return LOAD if rule.wait_ms is not None and waited_ns >= rule.wait_ms * MS_NS else ""


def _why(
    pool: Pool,
    tenant: Tenant,
    permits: int,
    rank: int,
    rule: SpillRule,
    books: SpillBooks,
    queue: FairQueue,
    now_ns: int,
) -> str:
    """Why a request should not stay; empty where it should."""
    if not begins(pool, tenant, 0, None):
        return UNAVAILABLE
    bound_ms = rule.wait_ms
    if bound_ms is not None and (
        queue.by_pool_count(pool.name) or not begins(pool, tenant, permits, bound_ms)
    ):
        # Where too few have waited to know how long it takes, nothing says that it is in time.
        wait_s = queue.wait_s(pool.name, rank, now_ns=now_ns)
        if wait_s is None or wait_s * 1e3 > bound_ms:
            return LOAD
    if rule.attained_min is not None:
        share = books.attained(pool.name, now_ns=now_ns)
        if share is not None and share < rule.attained_min:
            return ATTAINMENT
    return ""
