"""steer: late binding to the soonest first token, where no running stream is spoiled. The default.

Score of an endpoint: the time to first token that is forecast there (core/forecast.py), in ms,

    TTFT = (step/2 if it decodes) + w·prefill queued there + own prefill + (m − 1)·(a prefill's base + step)
           + the wait for a slot, where its engine decodes no more at once
    own prefill = f·(pa + pb·u + pc·((off + u)² − off²)),   step = f·(a + b·B + c·K)
    m = ceil((w·queued tokens + u) ÷ (prefill budget − B))  chunks, the first included

where w is the share of what is queued there that its engine makes a prompt wait for (predict/admission.py:
1 for one prefill at a time, 0 for side by side; where its agent says that W requests wait in it, at least
W ÷ Q of those Q that are queued), u are the prompt's uncached and off its cached tokens
there, B the streams and K their context tokens, f the endpoint's learned factor, and a, b, c, pa, pb, pc
its speed. To that is added:

    copies   `copy_price` prefills of the part of the prefix that would be computed, and kept, away from home.
             Home is where most of the prefix went last. A prefix without a home pays a part of that for each
             block given to an endpoint, so that homes spread. Where the first token comes at least twice as
             soon as at home a copy costs nothing.
    health   the sum is divided by the endpoint's health weight
    zone     the zone's handicap

Scores within 4 % and 4 ms of the least count as equal. An endpoint *takes* the request now when

    its own queue is shallow:   nobody waits for a first token there, or w·(queued tokens + u) ≤ θ ÷ deciders,
                                or more than half of it is cached there and its first token comes soon enough
    slots:                      of those that its engine decodes at once one is free within SLOT_WAIT_MS, as
                                far as that shows (predict/slots.py), or more than half is cached there and
                                the first token comes soon enough
    memory:                     reserved + u + min(limit, 1024) − 1 ≤ .98 · KV capacity, or it is empty
    the guard:                  no running stream that can still meet its TPOT has less slack than the prefill
                                would hold it up (learnt too: an engine may decode on beside it). It yields
                                to who has waited a quarter of its target and can still be in time, where
                                all streams but one can spare three such prefills

If only queues or slots keep it from all of them, one that was long not tried gets it all the same, to learn
whether its engine takes one prefill at a time still, or no more streams (a *trial*: each endpoint after 1
s, or 2, and twice as long after each that finds nothing new). Else the request waits (an empty `best`), in
the fair queue, which is ordered feasible first (fairqueue/order.py). It waits as well, within half of its
target, for a home that has no permit free and answers sooner than the others with the price of a copy, for
one that is closed and answers twice as soon, or computes its prefix now (strategies/waiting.py). With others
waiting it also waits for a replica that holds more of its prefix, if that is cheaper by `affinity_ms`.

Inputs: our own ledger (peers' and foreign requests count as running streams), the predictor, the prefix
index. Unknown KV capacity: no bound by memory. Unknown hardware: a prior, corrected by the learned factor. No
first tokens heard of: they count as come when predicted, where others are heard of at three times that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import inf
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue.order import FeasibleFirst, Order
from extproc.core.forecast import (
    FOREIGN_CONTEXT_TOKENS,
    Forecast,
    forecast,
    forecasts,
    growth_tokens,
    reserved_tokens,
    slot_ms,
    waits,
)
from extproc.core.outcome import LATER_MS
from extproc.core.predict.admission import AHEAD_MAX
from extproc.core.strategies.base import Ranking, Strategy, lowest, zone_ms
from extproc.core.strategies.waiting import (
    COPIES_AT,
    YIELDS_ROOM,
    computed_soon,
    guard_yields_ms,
    worth_waiting,
)
from extproc.core.work import NOW, SchedulingContext, Work

#: Predictions that differ by no more than this are alike, and the least recently picked goes first: or all
#: of a quiet pool's work would go to what seems faster by a hair, and nothing be learnt of the others.
ALIKE_SHARE, ALIKE_MS = 0.04, 4.0
#: So many candidates are all looked at; of more, a sample, and so many that hold most of the prompt.
#: The best of 64 drawn from 1,000 is among the best 5 % with a probability of .96.
SCANNED_MAX, SAMPLE, HOLDERS = 128, 64, 8
#: A prompt joins a deeper queue where more than half of it is cached, if its first token still comes within
#: this share of its target.
JOINS_SHARE = 0.5
#: An endpoint that has answered fewer first tokens counts as good as the best while nobody waits there: a
#: prior that is too gloomy would never be found out.
TRIALS = 3
#: One more than an engine decodes at once is sent where it waits no longer than this for its slot.
SLOT_WAIT_MS = 100.0
#: A closed queue is tried again with no more than so many times its bound in it: a trial may be in vain.
TRIAL_DEPTHS = 4
#: How the conditions on an endpoint's queue and slots begin in `holds_back`.
QUEUE, SLOTS = "queue", "slots"


@dataclass(frozen=True, slots=True)
class Steer(Strategy):
    """Late binding by predicted time to first token.

    `queue_tokens` is θ; `kv_share` the share of KV memory that is promised at most; `guard` whether
    running streams' TPOT is protected; `affinity_ms` what a cached prefix must save to be waited for
    (0 never waits); `copy_price` what a copy of a prefix away from its home costs, in prefills of it.
    """

    name: ClassVar[str] = "steer"
    defers: ClassVar[bool] = True
    binds_late: ClassVar[bool] = True
    order: ClassVar[Order | None] = FeasibleFirst()

    queue_tokens: int = 1024
    kv_share: float = 0.98
    guard: bool = True
    affinity_ms: float = 20.0
    copy_price: float = 5.0

    def opens(self, endpoints: Sequence[Endpoint], *, at: SchedulingContext = NOW) -> list[Endpoint]:
        """Those that may take anything at all now: ready, with a permit and a shallow queue."""
        depth = self.queue_tokens // at.deciders
        return [
            e
            for e in endpoints
            if (
                not e.load.queued
                or waits(e) * e.load.queued_tokens < depth
                or e.admission.trials.due(at.now_ns)
            )
            and e.ready
            and e.permits + e.peer_permits + e.foreign < e.max_concurrent
        ]

    def may(self, work: Work, among: Sequence[Endpoint], *, at: SchedulingContext = NOW) -> bool:
        """Whether any of these that are open could take this request: a look that costs less than a ranking.

        What a replica has cached may make a prompt short, so only one without a prefix is turned down here.
        """
        if work.prefix:
            return bool(among)
        depth, own = self.queue_tokens // at.deciders, work.input_tokens
        return any(
            not e.load.queued
            or waits(e) * (e.load.queued_tokens + own) <= depth
            or e.admission.trials.due(at.now_ns)
            for e in among
        )

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """Those that take it now by predicted time to first token, then the others; none takes it: hold.

        Of more than SCANNED_MAX candidates a sample is looked at, and those that hold most of the prompt;
        all of them only where none of the sample takes it.
        """
        if len(candidates) > SCANNED_MAX:
            drawn = _drawn(candidates, at.cached, rng)
            some = self._rank([candidates[i] for i in drawn], work, count=count, at=at)
            if some.best:
                scores = [inf] * len(candidates)
                for i, score in zip(drawn, some.scores, strict=True):
                    scores[i] = score
                return Ranking(scores, [drawn[i] for i in some.best])
        return self._rank(candidates, work, count=count, at=at)

    def _rank(
        self, candidates: Sequence[Endpoint], work: Work, *, count: int, at: SchedulingContext
    ) -> Ranking:
        tokens, growth = max(1, work.input_tokens), growth_tokens(work)
        zone, penalty = work.zone, work.zone_penalty_tokens
        depth = self.queue_tokens // at.deciders
        cached_of, coming_of, given_of, now_ns = at.cached, at.coming, at.given, at.now_ns
        guard, share, yields_ms = self.guard, self.kv_share, guard_yields_ms(work, now_ns)
        home = max(coming_of.values()) if coming_of else 0
        most_given = max(given_of.values()) if given_of else 0
        token_ms = _token_ms(candidates) if home or most_given else 0.0
        price = self.copy_price * token_ms
        soon_ms = JOINS_SHARE * work.ttft_ms
        scores: list[float] = []
        takers = 0
        found = forecasts(candidates, work, cached=cached_of)
        home_ms = 0.0
        if home:
            home_ms = min(
                (
                    each[0]
                    for e, each in zip(candidates, found, strict=True)
                    if 2 * coming_of.get(e.address, 0) > home
                ),
                default=0.0,
            )
        for e, expected in zip(candidates, found, strict=True):
            alone, _, step, own, u, cached, streaming, _ = expected
            load, ttft = e.load, alone
            if coming_of and alone * COPIES_AT > home_ms:
                ttft += price * (home - coming_of.get(e.address, 0))
            elif most_given:
                ttft += token_ms * tokens * given_of.get(e.address, 0) / most_given
            if penalty and zone and e.zone != zone:
                ttft += zone_ms(e, work)
            ttft /= e.weight
            kv = e.kv_capacity_tokens or (e.report is not None and e.kv_tokens)
            if (
                (
                    e.slots.limit
                    and (slot := slot_ms(e, work.sequences)) > SLOT_WAIT_MS
                    and not (2 * cached > tokens and slot <= price * cached and alone <= soon_ms)
                )
                or (
                    (queued := load.queued)
                    and e.admission.shares[min(AHEAD_MAX, queued)] * (load.queued_tokens + u) > depth
                    and not (2 * cached > tokens and load.queued_ms <= price * cached and alone <= soon_ms)
                )
                or (
                    kv
                    and e.requests
                    # `reserved_tokens` in full: a call saved for each endpoint.
                    and load.reserved_tokens
                    + (streaming - load.streaming) * FOREIGN_CONTEXT_TOKENS
                    + u
                    + growth
                    > share * kv
                )
                or (
                    guard
                    and load.streaming
                    and (stall := e.admission.stall)
                    and load.tightest_ms(step, now_ns=now_ns, stall=stall) < stall * own
                    and not (alone <= yields_ms and load.next_tightest_ms >= YIELDS_ROOM * stall * own)
                )
            ):
                ttft += LATER_MS
            else:
                takers += 1
            scores.append(ttft)
        if not takers:
            tried = self._trial(candidates, work, scores, at)
            if tried is None and at.last:
                tried = _untold(candidates, work, scores, self.kv_share)
            if tried is None:
                return Ranking(scores, ())
            # It may be tried elsewhere, as any other.
            rest = [i for i in lowest(candidates, scores, count) if i != tried]
            return Ranking(scores, (tried, *rest)[:count])
        low = min(scores)
        # Not for prompts that somebody has begun to cache: that is worth more than a trial.
        trials = not cached_of
        alike = low * (1.0 + ALIKE_SHARE) + ALIKE_MS
        scores = [
            low
            if score <= alike
            or (trials and e.speed.observations < TRIALS and score < LATER_MS and _near(e, zone))
            else score
            for score, e in zip(scores, candidates, strict=True)
        ]
        best = lowest(candidates, scores, count)
        wishes = at.patient and cached_of and self.affinity_ms
        if wishes and self._waits(candidates, work, scores, best[0], at):
            return Ranking(scores, ())
        alone_ms, waits_now = found[best[0]][0], work.deadline_ns and not at.last
        if waits_now and coming_of and computed_soon(candidates, work, alone_ms, soon_ms, at):
            return Ranking(scores, ())
        if waits_now and (takers < len(candidates) or at.full):
            closed = [
                e
                for e, score, each in zip(candidates, scores, found, strict=True)
                if score >= LATER_MS
                and COPIES_AT * each[0] <= alone_ms
                and self._shuts(e, candidates, work, at)
            ]
            if worth_waiting(closed, work, scores[best[0]], alone_ms, soon_ms, at):
                return Ranking(scores, ())
        return Ranking(scores, best)

    def _trial(
        self, candidates: Sequence[Endpoint], work: Work, scores: list[float], at: SchedulingContext
    ) -> int | None:
        """The soonest of those that only queue or slots keep from it, and that are to be tried again."""
        found, most = None, TRIAL_DEPTHS * self.queue_tokens
        for i, e in enumerate(candidates):
            open_to: list[str] = []
            if (
                e.load.queued
                and e.admission.trials.due(at.now_ns)
                and e.load.queued_tokens + work.input_tokens <= most
            ):
                open_to.append(QUEUE)
            if e.slots.limit and e.slots.trials.due(at.now_ns):
                open_to.append(SLOTS)
            if (
                open_to
                and (found is None or scores[i] < scores[found])
                and self._shuts(e, candidates, work, at, tuple(open_to))
            ):
                found = i
        return found

    def _shuts(
        self,
        endpoint: Endpoint,
        candidates: Sequence[Endpoint],
        work: Work,
        at: SchedulingContext,
        by: tuple[str, ...] = (QUEUE, SLOTS),
    ) -> bool:
        """Whether nothing but its queue or slots keeps an endpoint from it."""
        return all(why.startswith(by) for why in self.holds_back(endpoint, candidates, work, at=at))

    def picked(
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """What goes into a queue that counts as closed is its trial, unless most of it is cached there.

        So is what waits longer for a slot than it may.
        """
        if endpoint.slots.limit and slot_ms(endpoint, work.sequences) > SLOT_WAIT_MS:
            endpoint.slots.trials.tried(at.now_ns)
        load, tokens = endpoint.load, max(1, work.input_tokens)
        cached = min(at.cached.get(endpoint.address, 0), tokens - 1)
        joins = 2 * cached > tokens
        depth = self.queue_tokens // at.deciders
        if load.queued and not joins and waits(endpoint) * (load.queued_tokens + tokens - cached) > depth:
            endpoint.admission.trials.tried(at.now_ns)

    def _waits(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        scores: list[float],
        chosen: int,
        at: SchedulingContext,
    ) -> bool:
        """Whether a replica that cannot take it now, but holds more of its prefix, is worth the wait."""
        tokens = max(1, work.input_tokens)
        taker = candidates[chosen]
        held = at.cached.get(taker.address, 0)
        own = taker.speed.prefill_ms(tokens - min(held, tokens - 1), held)
        left_ms = (work.deadline_ns - at.now_ns) / 1e6 if work.deadline_ns else 0.0
        for i, e in enumerate(candidates):
            there = at.cached.get(e.address, 0)
            if there <= held or scores[i] < LATER_MS:
                continue
            cheaper = e.speed.prefill_ms(max(1, tokens - there), there)
            if own - cheaper > self.affinity_ms and scores[i] - LATER_MS < left_ms:
                return True
        return False

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        load, kv = endpoint.load, endpoint.kv_tokens
        slack = load.tightest_ms(expected.step_ms, now_ns=at.now_ns, stall=endpoint.admission.stall)
        return {
            "queued": load.queued,
            "queued_tokens": load.queued_tokens,
            "queued_ms": load.queued_ms,
            "waits": waits(endpoint) if load.queued else 0.0,
            "streaming": expected.streaming,
            "step_ms": expected.step_ms,
            "cached_tokens": expected.cached_tokens,
            "prefill_ms": expected.prefill_ms,
            "slack_ms": slack if slack < LATER_MS else -1.0,
            "kv_share": reserved_tokens(endpoint) / kv if kv else 0.0,
            "factor": endpoint.speed.factor,
            "weight": endpoint.weight,
        }

    def holds_back(
        self, endpoint: Endpoint, candidates: Sequence[Endpoint], work: Work, *, at: SchedulingContext = NOW
    ) -> tuple[str, ...]:
        """The conditions under which `_rank` gives it nothing now, with their figures."""
        load, found = endpoint.load, []
        expected = forecast(endpoint, work, cached=at.cached)
        uncached, cached, own_ms = expected.uncached_tokens, expected.cached_tokens, expected.prefill_ms
        depth = self.queue_tokens // at.deciders
        wait = waits(endpoint)
        spared_ms = 0.0
        if any(at.coming.values()) or any(at.given.values()):
            spared_ms = self.copy_price * _token_ms(candidates) * cached
        joins = 2 * cached > uncached + cached and expected.ttft_ms <= JOINS_SHARE * work.ttft_ms
        slot = slot_ms(endpoint, work.sequences)
        if slot > SLOT_WAIT_MS and not (joins and slot <= spared_ms):
            found.append(f"{SLOTS}: all {endpoint.slots.limit} that it decodes are taken for {slot:.0f} ms")
        deep = load.queued and wait * (load.queued_tokens + uncached) > depth
        if deep and not (joins and load.queued_ms <= spared_ms):
            shared = f"{wait:.2f} of " if wait < 1.0 else ""
            found.append(f"{QUEUE}: {shared}{load.queued_tokens} + {uncached} tokens above {depth}")
        needed, reserved = uncached + growth_tokens(work), reserved_tokens(endpoint)
        room = self.kv_share * endpoint.kv_tokens
        if room and endpoint.requests and reserved + needed > room:
            found.append(f"memory: {reserved} + {needed} tokens above {room:.0f}")
        stall = endpoint.admission.stall
        if self.guard and load.streaming and stall:
            slack_ms = load.tightest_ms(expected.step_ms, now_ns=at.now_ns, stall=stall)
            own_ms *= stall
            yields = expected.ttft_ms <= guard_yields_ms(work, at.now_ns)
            if slack_ms < own_ms and not (yields and load.next_tightest_ms >= YIELDS_ROOM * own_ms):
                found.append(
                    f"guard: a stream has {slack_ms:.0f} ms to spare, the prefill takes {own_ms:.0f}"
                )
        return tuple(found)


def _untold(
    candidates: Sequence[Endpoint], work: Work, scores: Sequence[float], kv_share: float
) -> int | None:
    """The soonest of those that have room in memory and whose engine has shown nothing of how it admits."""
    fit = [
        i
        for i, e in enumerate(candidates)
        if not e.admission.known(e.load.queued)
        and slot_ms(e, work.sequences) <= SLOT_WAIT_MS
        and (
            not e.kv_tokens
            or reserved_tokens(e) + work.input_tokens + growth_tokens(work) <= kv_share * e.kv_tokens
        )
    ]
    return min(fit, key=lambda i: scores[i], default=None)


def _token_ms(candidates: Sequence[Endpoint]) -> float:
    """A prompt token's prefill, where it takes least."""
    return min(e.speed.factor * e.speed.model.timing.prefill_per_token_ms for e in candidates)


def _drawn(candidates: Sequence[Endpoint], cached: Mapping[str, int], rng: Random) -> list[int]:
    """Indexes of a sample, and of the endpoints that hold most of the prompt."""
    drawn = set(rng.sample(range(len(candidates)), SAMPLE))
    if cached:
        most = set(nlargest(HOLDERS, cached, key=cached.__getitem__))
        drawn.update(i for i, endpoint in enumerate(candidates) if endpoint.address in most)
    return sorted(drawn)


def _near(endpoint: Endpoint, zone: str) -> bool:
    """Whether an endpoint is here, and nobody waits there: worth a trial where nothing is known of it."""
    return (not zone or endpoint.zone == zone) and not endpoint.load.queued
