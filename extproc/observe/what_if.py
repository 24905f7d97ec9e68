"""What a quota would have done to recent traffic: a short memory of admissions, and a replay of it.

Owns the memory's bounds and the replay. Kept of a request are its time, model, key id, its predicted and
its counted tokens; nothing of its text, and no name of a client. The replay runs fresh books over it, twice
for a quota that may borrow: as if no capacity had ever been idle, and as if all had been.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

from extproc.core.accounts import Accounts, Price, borrows, used
from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.outcome import QUOTA_EXCEEDED, End, Outcome, Reject, Reservation, Routed
from extproc.core.quota import Amounts, ExactBooks, QuotaLimits, Refused

#: Requests remembered of one tenant, of all, and for how long.
RECENT_PER_TENANT_MAX, RECENT_MAX = 10_000, 100_000
RECENT_NS_MAX = 3600 * 1_000_000_000
#: Tenants with a memory; the one that was quiet longest is forgotten first.
TENANTS_MAX = 1_000
#: Requests replayed between two looks at the clock: about two milliseconds.
REPLAY_STEP = 250


@dataclass(frozen=True, slots=True)
class PastRequest:
    """One request; tokens as predicted, and as counted where it has ended (`ended_ns` is not 0)."""

    at_ns: int
    id: str
    key: str
    model: str
    pool: str
    input: int
    output: int
    ended_ns: int = 0
    real_in: int = 0
    real_out: int = 0

    @property
    def refused(self) -> bool:
        """Whether a quota refused it, then."""
        return not self.id


#: As it is kept: plain tuples, which the garbage collector need not look into. The last is the permits.
_Kept = tuple[int, str, str, str, str, int, int, int]
_Ended = tuple[int, int | None, int | None, End]


class Recent(Observer):
    """The last requests of each tenant."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, deque[_Kept]] = OrderedDict()
        #: By id, of every request in memory that was let in; None while its record has not come.
        self._ends: dict[str, _Ended | None] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002
        """A request was let in."""
        r = routed.reservation
        self._ends[r.id] = None
        kept = (now_ns, r.id, r.key, r.model, r.pool, r.input_tokens, r.output_tokens, r.permits)
        self._add(r.tenant, kept, now_ns)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """A quota refused a request; other refusals are none of ours."""
        if reject.code == QUOTA_EXCEEDED:
            r = routing
            kept = (now_ns, "", r.key, r.model, r.pool, r.input_tokens, r.output_tokens, 1)
            self._add(r.tenant.name, kept, now_ns)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request has ended."""
        outcome = event.outcome
        if outcome.reservation.id in self._ends:
            ended = (now_ns, outcome.prompt_tokens, outcome.output_tokens, outcome.end)
            self._ends[outcome.reservation.id] = ended

    def left(self, reservation_id: str, routing: RoutingRequest | None, *, now_ns: int) -> None:  # noqa: ARG002
        """A decision never reached Envoy."""
        if reservation_id in self._ends:
            self._ends[reservation_id] = _CANCELLED

    def of(self, tenant: str, *, since_ns: int) -> Iterator[PastRequest]:
        """A tenant's requests from a time until now, oldest first; others may be noted meanwhile."""
        return (self._seen(kept) for kept in list(self._tenants.get(tenant, ())) if kept[0] >= since_ns)

    def _seen(self, kept: _Kept) -> PastRequest:
        at_ns, request_id, key, model, pool, tokens_in, tokens_out, permits = kept
        seen = PastRequest(at_ns, request_id, key, model, pool, tokens_in, tokens_out)
        ended = self._ends.get(seen.id)
        if ended is None:
            return seen
        if ended is _CANCELLED:
            return replace(seen, ended_ns=seen.at_ns)
        ended_ns, counted_in, counted_out, end = ended
        amounts = used(
            Outcome(
                reservation=Reservation(
                    id=seen.id,
                    tenant="",
                    model=seen.model,
                    pool=seen.pool,
                    address="",
                    input_tokens=seen.input,
                    output_tokens=seen.output,
                    permits=permits,
                    prompt_bytes=0,
                    stream=False,
                ),
                final=True,
                end=end,
                prompt_tokens=counted_in,
                output_tokens=counted_out,
            ),
            None,
            Price(),
            gpu_ms=0.0,
        )
        return replace(
            seen,
            ended_ns=max(ended_ns, seen.at_ns + 1),
            real_in=amounts.input_tokens,
            real_out=amounts.output_tokens,
        )

    def _add(self, tenant: str, kept: _Kept, now_ns: int) -> None:
        ring = self._tenants.get(tenant)
        if ring is None:
            ring = self._tenants[tenant] = deque()
            if len(self._tenants) > TENANTS_MAX:
                self._drop(self._tenants.popitem(last=False)[1], RECENT_PER_TENANT_MAX)
        else:
            self._tenants.move_to_end(tenant)
        ring.append(kept)
        self._size += 1
        if len(ring) > RECENT_PER_TENANT_MAX or now_ns - ring[0][0] > RECENT_NS_MAX:
            self._drop(ring, 1)
        if self._size > RECENT_MAX:
            largest = max(self._tenants.values(), key=len)
            self._drop(largest, len(largest) // 4 + 1)

    def _drop(self, ring: deque[_Kept], many: int) -> None:
        for _ in range(min(many, len(ring))):
            self._ends.pop(ring.popleft()[1], None)
            self._size -= 1


_CANCELLED: _Ended = (0, 0, 0, End.CLIENT_GONE)


@dataclass(frozen=True, slots=True)
class ReplayTerms:
    """What a replay reckons with: what tokens of a pool take and cost, and who still runs."""

    gpu_ms: Callable[[str, int, int], float]
    price: Callable[[str], Price]
    running: Callable[[str], bool]

    def amounts(self, pool: str, tokens_in: int, tokens_out: int) -> Amounts:
        """What so many tokens come to."""
        return Amounts(
            requests=1,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            gpu_ms=self.gpu_ms(pool, tokens_in, tokens_out),
            cost=self.price(pool).of(tokens_in, tokens_out),
        )


@dataclass(slots=True)
class WhatIf:
    """How many would have been refused, and by which limit of which scope."""

    refused: int = 0
    by_limit: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {"refused": self.refused, "by_limit": dict(self.by_limit.most_common())}


def replay(
    seen: list[PastRequest],
    tenant: str,
    accounts: Accounts,
    world: ReplayTerms,
    verdict: WhatIf,
    *,
    idle: bool,
) -> Iterator[None]:
    """Run requests through fresh books into a verdict; yields now and then, so that others get their turn.

    What still runs holds its place to the end.
    """
    books = ExactBooks(QuotaLimits(reservation_ttl_ns=1 << 62, ended_remembered_max=1))
    ends: list[tuple[int, int, PastRequest]] = []
    for number, each in enumerate(seen):
        while ends and ends[0][0] <= each.at_ns:
            _end(books, heappop(ends)[2], world)
        account = accounts.of(tenant, each.key, each.model)
        if account.scopes:
            amounts = world.amounts(each.pool, each.input, each.output)
            lent = idle and borrows(account)
            answer = books.reserve(account, str(id(each)), amounts, now_ns=each.at_ns, idle_capacity=lent)
            if isinstance(answer, Refused):
                verdict.refused += 1
                verdict.by_limit[f"{answer.limit} ({answer.scope})"] += 1
            elif each.ended_ns:
                heappush(ends, (each.ended_ns, number, each))
            elif not world.running(each.id):
                # Refused then, let in now: nobody knows its end, so it is what was predicted.
                heappush(ends, (each.at_ns, number, each))
        if number % REPLAY_STEP == REPLAY_STEP - 1:
            yield


def _end(books: ExactBooks, each: PastRequest, world: ReplayTerms) -> None:
    if each.ended_ns == each.at_ns:
        books.cancel(str(id(each)), now_ns=each.at_ns)
        return
    known = each.ended_ns != 0
    tokens = (each.real_in, each.real_out) if known else (each.input, each.output)
    now_ns = each.ended_ns or each.at_ns
    books.settle(str(id(each)), world.amounts(each.pool, *tokens), now_ns=now_ns)
