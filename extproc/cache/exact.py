"""The exact response cache: what is known is answered, what is not is noted, and filled by its answer.

Owns the order of the looks (the cheapest first), the requests whose answers are awaited, and the counts.
Knows nothing of Envoy: who sends the answers is wire's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from extproc.cache.counts import CacheCounts
from extproc.cache.flights import Flights
from extproc.cache.purging import AnswerOrigin, PurgeOrder, both
from extproc.cache.purging import wanted as meant
from extproc.cache.semantic.questions import SemanticCache
from extproc.cache.store import Absent, AnswerStore, KeptAnswer, packed
from extproc.core.cachekeys import (
    CACHED_KINDS,
    AskAnswer,
    CachedAnswer,
    CacheDirective,
    CacheRule,
    Uncanonical,
    WantedAnswer,
    Wrong,
    canonical,
    digest,
    judge,
    marked,
    unfit,
)
from extproc.core.cachekeys.asked import asked_of
from extproc.core.cachekeys.eligible import MARKS, TGI_KINDS
from extproc.core.request import Request, UsageAsked
from extproc.core.tenant import Tenant

#: Requests whose answers are awaited; above it the oldest is forgotten, and its answer not kept.
AWAITED_MAX: Final = 20_000
#: An answer comes before its request's record or right after it; what has not come by then never will.
LATE_NS: Final = 10_000_000_000

#: Hears what became of a wait.
Told = Callable[[CachedAnswer | None], None]
#: By which rule a tenant's requests to a pool are cached, by their names; None where they are not.
RuleFor = Callable[[str, str], CacheRule | None]


class Awaited(msgspec.Struct):
    """A request on its way whose answer will be kept."""

    wanted: WantedAnswer
    tenant: str
    begun_ns: int
    gpu_ms: float = 0.0
    filled: bool = False


class ResponseCache:
    """Answers, and what is to become one. Larger ones, and those of larger requests, are not kept."""

    def __init__(
        self,
        store: AnswerStore,
        rule_for: RuleFor,
        *,
        answer_bytes_max: int,
        request_bytes_max: int,
        clock: Callable[[], int],
    ) -> None:
        self.store, self.rule_for = store, rule_for
        self.answer_bytes_max, self.request_bytes_max = answer_bytes_max, request_bytes_max
        self._clock = clock
        self._awaited: OrderedDict[str, Awaited] = OrderedDict()
        #: Requests that have ended: from when their answers do not come any more.
        self._ended: OrderedDict[str, int] = OrderedDict()
        #: What came of looks, and what hits saved.
        self.counts = CacheCounts()
        self.looked, self.saved = self.counts.looked, self.counts.saved
        #: By what became of answers that came: kept, or why not.
        self.filled: Counter[str] = Counter()
        self.flights = Flights(clock)
        #: Answers to questions that ask the same in other words; None without them.
        self.semantic: SemanticCache | None = None
        #: Requests for which such a question is looked for, by the wait's name.
        self._asking: dict[str, WantedAnswer] = {}
        self._asked = 0
        #: The answer that has just come, while those that wait for it are told.
        self._fresh: KeptAnswer | None = None
        #: Answers that have come, and of which the store is asked whether they were purged meanwhile.
        self._unsure: dict[str, Awaited] = {}
        #: Hears of each answer that was awaited what became of it.
        self.on_filled: Callable[[str, str], None] = _nobody

    def look(
        self,
        request: Request,
        body: bytes,
        tenant: Tenant,
        *,
        model: str,
        pool: str,
        directive: CacheDirective | None,
    ) -> CachedAnswer | WantedAnswer | AskAnswer | None:
        """An answer that is known, what to keep the coming one under, or None: it is not cached.

        AskAnswer where the store has to be asked: `ask`.
        """
        rule = self.rule_for(tenant.name, pool)
        if rule is None or request.kind not in CACHED_KINDS:
            return None
        if directive is CacheDirective.OFF or (rule.asks and directive is None):
            return None
        wanted = self.wanted(request, body, rule, model=model, pool=pool)
        if isinstance(wanted, str):
            self.counts.count(tenant.name, wanted)
            return None
        if directive is CacheDirective.REFRESH:
            self.counts.count(tenant.name, "refresh")
            return wanted
        kept = self.store.get(wanted.scope, wanted.key, now_ns=self._clock())
        if kept is Absent.ASK:
            return AskAnswer(wanted, tenant.name)
        return self._found(wanted, tenant.name, kept) or wanted

    async def ask(self, asked: AskAnswer) -> CachedAnswer | None:
        """What the store says, within its budget; None for a miss, of whatever kind."""
        wanted = asked.wanted
        return self._found(wanted, asked.tenant, await self.store.ask(wanted.scope, wanted.key))

    def _found(self, wanted: WantedAnswer, tenant: str, kept: KeptAnswer | Absent) -> CachedAnswer | None:
        """What the store gave, counted, and refused where it is not what was kept."""
        if isinstance(kept, Absent):
            self.counts.count(tenant, kept.value)
            return None
        try:
            # The stream and the model are of the key already; a store that others write to is not trusted.
            if (kept.stream, kept.model, kept.pool) != (wanted.stream, wanted.model, wanted.pool):
                raise ValueError("a kept answer is of another request")
            answer = kept.body()
        except ValueError:
            self.store.drop(wanted.scope, wanted.key)
            self.counts.count(tenant, "poisoned")
            return None
        self.counts.count(tenant, "hit")
        return self._given(tenant, kept, answer, wanted)

    def _given(self, tenant: str, kept: KeptAnswer, body: bytes, wanted: WantedAnswer) -> CachedAnswer:
        """An answer is given once more."""
        if wanted.marks:
            body = marked(body, stream=kept.stream)
        kept.hits += 1
        self.counts.save(tenant, kept.usage, kept.gpu_ms)
        age_s = max(0, self._clock() - kept.made_ns) // 1_000_000_000
        return CachedAnswer(
            body=body, stream=kept.stream, age_s=age_s, usage=kept.usage, charge=wanted.charge
        )

    def flying(self, wanted: WantedAnswer) -> bool:
        """Whether there is something to wait for: an equal request on its way, or one in other words."""
        asks = self.semantic is not None and wanted.asked is not None
        return asks or (wanted.joins and wanted.question in self.flights)

    def join(self, wanted: WantedAnswer, tenant: str, *, until_ns: int, size: int, tell: Told) -> str:
        """Wait for the answer of an equal request; the wait's name, "" where there is none to wait for.

        `tell` hears of the answer, or None where it is to go on by itself: the first has failed and this one
        is next, or `until_ns` has come. `size` is what waits of its body.
        """
        name = self._fly(wanted, tenant, until_ns=until_ns, size=size, tell=tell)
        return name or self._ask(wanted, tenant, tell)

    def _ask(self, wanted: WantedAnswer, tenant: str, tell: Told) -> str:
        """Look for a question that asks the same in other words; the wait's name, "" where there is none."""
        if self.semantic is None or wanted.asked is None:
            return ""
        self._asked += 1
        name = f"asked-{self._asked}"

        def heard(found: CachedAnswer | None) -> None:
            if self._asking.pop(name, None) is None:
                return
            if found is None:
                self.flights.late(wanted.question, name)
            else:
                self.counts.count(tenant, "semantic")
                self.counts.save(tenant, found.usage, found.gpu_ms)
                self.flights.ends(wanted.question, name, answered=False)
            tell(found)

        if not self.semantic.ask(wanted, tenant, heard):
            return ""
        self._asking[name] = wanted
        if wanted.joins:
            # Equal ones that come meanwhile wait for this one.
            self.flights.begins(wanted.question, name)
        return name

    def _fly(self, wanted: WantedAnswer, tenant: str, *, until_ns: int, size: int, tell: Told) -> str:
        """Wait for the answer of an equal request that is on its way."""
        if not (wanted.joins and wanted.question in self.flights):
            return ""

        def heard(answered: bool) -> None:
            found = self._joined(wanted, tenant) if answered else None
            if found is None:
                self.counts.count(tenant, "waited")
            tell(found)

        return self.flights.join(wanted.question, heard, until_ns=until_ns, size=size)

    def _joined(self, wanted: WantedAnswer, tenant: str) -> CachedAnswer | None:
        """The answer that has just come."""
        kept = self._fresh
        if kept is None:
            return None
        self.counts.count(tenant, "joined")
        return self._given(tenant, kept, kept.body(), wanted)

    def leave(self, name: str) -> None:
        """One that waits has left."""
        asking = self._asking.pop(name, None)
        if asking is None:
            self.flights.leave(name)
        else:
            self.flights.ends(asking.question, name, answered=False)

    def wanted(
        self, request: Request, body: bytes, rule: CacheRule, *, model: str, pool: str
    ) -> WantedAnswer | str:
        """What a request's answer is kept under, or why it is not."""
        if len(body) > self.request_bytes_max:
            return "large"
        tgi = request.kind in TGI_KINDS
        if not (tgi or rule.sampled or any(mark in body for mark in MARKS)):
            return "sampled"
        try:
            value, text = canonical(body)
        except Uncanonical:
            return "uncanonical"
        if (why := unfit(request, value, text, sampled=rule.sampled, tools=rule.tools)) is not None:
            return why.value
        parameters = value.get("parameters")
        details = tgi and isinstance(parameters, dict) and bool(parameters.get("details"))
        key = partial(
            digest,
            scope=rule.scope,
            model=model,
            pool=pool,
            revision=f"{rule.revision}\n{path}" if (path := rule.adapters.get(model)) else rule.revision,
            served=rule.served,
            kind=request.kind,
            stream=request.stream,
        )
        words = rule.semantic
        return WantedAnswer(
            scope=rule.scope,
            key=key(body=text),
            asked=None if words is None else asked_of(request.kind, value, key(body=b"question"), words),
            model=model,
            pool=pool,
            kind=request.kind,
            stream=request.stream,
            counts=details if tgi else not request.stream or request.usage in _TOLD,
            ttl_ns=rule.ttl_ns,
            bytes_max=rule.bytes_max,
            charge=rule.charge,
            tools=rule.tools,
            joins=rule.joins,
            marks=rule.marks and not tgi,
            rule=rule,
        )

    def flagged(self, reservation_id: str, tenant: str, wanted: WantedAnswer) -> str:
        """It goes to an engine, its answer is awaited. What Envoy is told: how much of it to gather.

        Nothing where another rule holds since it was looked up: its tenant has left the group or the file, or
        its pool runs another thing. The purge that came with that has not seen it, as it was held.
        """
        if wanted.rule is not None and self.rule_for(tenant, wanted.pool) != wanted.rule:
            self.filled["outdated"] += 1
            return ""
        self._awaited[reservation_id] = Awaited(wanted, tenant, self._clock())
        self.store.expects(wanted.scope)
        self.flights.begins(wanted.question, reservation_id)
        if len(self._awaited) > AWAITED_MAX:
            oldest, forgotten = self._awaited.popitem(last=False)
            self.flights.ends(forgotten.wanted.question, oldest, answered=False)
            self.filled["bound.awaited_max"] += 1
        return str(self.answer_bytes_max)

    def fill(self, reservation_id: str, body: bytes) -> bool:
        """An answer has come whole: keep it where it is a good one. False where nobody awaits it."""
        awaited = self._awaited.get(reservation_id)
        if awaited is None or awaited.filled:
            self.filled["unknown"] += 1
            return False
        awaited.filled = True
        became = self._kept(awaited, body)
        self.filled[became] += 1
        self.on_filled(reservation_id, became)
        fresh, self._fresh = self._fresh, None
        if fresh is None or not self.flights.waited_for(awaited.wanted.question):
            self._land(reservation_id, awaited, fresh)
        else:
            self._unsure[reservation_id] = awaited
            wanted = awaited.wanted
            self.store.unless_purged(
                wanted.scope,
                wanted.key,
                fresh,
                begun_ns=awaited.begun_ns,
                tell=partial(self._sure, reservation_id, awaited, fresh),
            )
        if reservation_id in self._ended:
            del self._ended[reservation_id], self._awaited[reservation_id]
        return True

    def _sure(self, reservation_id: str, awaited: Awaited, fresh: KeptAnswer, good: bool) -> None:
        """Whether it was purged is known. Where we have heard of the purge meanwhile, its flight is over."""
        if self._unsure.pop(reservation_id, None) is not None:
            self._land(reservation_id, awaited, fresh if good else None)

    def _land(self, reservation_id: str, awaited: Awaited, fresh: KeptAnswer | None) -> None:
        """Tell those that wait: an answer, or that the next one goes."""
        self._fresh = fresh
        self.flights.ends(awaited.wanted.question, reservation_id, answered=fresh is not None)
        self._fresh = None

    def _kept(self, awaited: Awaited, body: bytes) -> str:
        """Keep it; what became of it. `_fresh` is it where it is a good one, kept or not."""
        wanted = awaited.wanted
        if len(body) > self.answer_bytes_max:
            return "large"
        usage = judge(body, wanted)
        if isinstance(usage, Wrong):
            return usage.value
        now_ns = self._clock()
        answer = KeptAnswer(
            packed=packed(body),
            length=len(body),
            stream=wanted.stream,
            tenant=awaited.tenant,
            model=wanted.model,
            pool=wanted.pool,
            usage=usage,
            made_ns=now_ns,
            expires_ns=now_ns + wanted.ttl_ns,
            gpu_ms=awaited.gpu_ms,
        )
        self._fresh = answer
        if self.semantic is not None and wanted.asked is not None:
            self.semantic.filled(wanted, answer, body, begun_ns=awaited.begun_ns)
        return self.store.put(
            wanted.scope,
            wanted.key,
            answer,
            scope_bytes_max=wanted.bytes_max,
            begun_ns=awaited.begun_ns,
            now_ns=now_ns,
        )

    def settled(self, reservation_id: str, *, gpu_ms: float) -> None:
        """A request has ended, and took so much of a replica's time; its answer comes about now, or never."""
        awaited = self._awaited.get(reservation_id)
        if awaited is None:
            return
        awaited.gpu_ms = gpu_ms
        if not awaited.filled:
            self._ended[reservation_id] = self._clock() + LATE_NS
            self.flights.late(awaited.wanted.question, reservation_id)
            return
        del self._awaited[reservation_id]
        wanted = awaited.wanted
        self.store.took(wanted.scope, wanted.key, gpu_ms)

    def gone(self, reservation_id: str) -> None:
        """A request's end will never be heard of, nor its answer."""
        awaited = self._awaited.pop(reservation_id, None)
        self._ended.pop(reservation_id, None)
        if awaited is not None:
            self.flights.ends(awaited.wanted.question, reservation_id, answered=False)

    def step(self, *, now_ns: int) -> None:
        """Let time pass: what is too old goes, and what is not awaited any more."""
        self.store.expire(now_ns=now_ns, most=256)
        self.flights.step(now_ns=now_ns)
        if self.semantic is not None:
            self.semantic.step(now_ns=now_ns)
        while self._ended:
            reservation_id, late_ns = next(iter(self._ended.items()))
            if late_ns > now_ns:
                break
            self.gone(reservation_id)
            self.filled["none"] += 1

    def purge(self, orders: Sequence[PurgeOrder]) -> int | Awaitable[int]:
        """Forget what one of the orders means; how many answers were kept of it.

        Answers that are on their way are not kept then either: they were asked for before.
        """
        words = self.forget(orders)
        purged = self.store.purge(orders)
        return purged if words is None else both(purged, words)

    def forget(self, orders: Sequence[PurgeOrder], *, elsewhere: bool = False) -> Awaitable[int] | None:
        """What is meant and on its way is not awaited any more, and nobody waits for it.

        Nor is it known in other words: that this is so for all, where there is a store of those. `elsewhere`:
        the orders are another service's.
        """
        coming = [
            (reservation_id, each.wanted.question)
            for reservation_id, each in {**self._unsure, **self._awaited}.items()
            if meant(
                orders,
                each.wanted.scope,
                each.wanted.key,
                AnswerOrigin(each.tenant, each.wanted.model, each.wanted.pool),
            )
        ]
        for reservation_id, question in coming:
            self._unsure.pop(reservation_id, None)
            self.gone(reservation_id)
            self.flights.ends(question, reservation_id, answered=False)
        return None if self.semantic is None else self.semantic.purge(orders, elsewhere=elsewhere)

    @property
    def awaited(self) -> int:
        """Answers that may still come."""
        return len(self._awaited)


#: What the client of an OpenAI stream asked to be told of its usage.
_TOLD: Final = (UsageAsked.LAST, UsageAsked.EACH)


def _nobody(_reservation_id: str, _became: str) -> None:
    """Nobody wants to know."""
