"""From what is known of a pool to how many replicas it should have now, and why.

Owns the rules that stand between a need and a number that scalers are told. Pure: facts and time come in, a
plan goes out; what it remembers of a pool is its last word and what was needed of late.

More replicas are wanted as soon as the forecast's upper bound at the horizon (until one that is wanted now is
ready) needs them. Fewer only when fewer have been enough for `down_after_s` and a load time, by the same
bound: one that left must not be wanted again before it could be back. A service that has just begun keeps
what it finds for so long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final

from extproc.core.scaling.capacity import Capacity, Shape, blended, need, rate_max, shape
from extproc.core.scaling.leaving import HAD, leaving
from extproc.core.scaling.margin import AttainmentMargin
from extproc.core.scaling.needs import ENDED_FEW, first_need, mixed_need
from extproc.core.scaling.record import ServedRecord
from extproc.core.scaling.switches import chosen_switch
from extproc.core.scaling.values import (
    LoadTime,
    ModelSwitch,
    Need,
    PlanTerm,
    PoolFacts,
    PoolPlan,
    PoolScale,
    ReplicaKind,
    WorkSample,
)
from extproc.core.slo import ClassSpec

NS: Final = 1_000_000_000
#: Requests that are held are to be served within so long, beside what comes.
DRAIN_S: Final = 30.0
#: Between two steps down at the least.
DOWN_EVERY_S: Final = 60.0
#: Where the file does not say how many leave at once, one in so many does: a burst of an hour that needed
#: eight times as many would be paid for until the next one otherwise.
DOWN_PART: Final = 4
#: Fewer must bear so much more than the upper bound: what is just enough now is not a moment later.
DOWN_MARGIN: Final = 0.05
#: Ends that say more of bursts than the counts' dispersion does.
RECORD_REQUESTS: Final = 2_000.0
#: How often the mean of recent requests is made anew from the samples.
SHAPE_EVERY_NS: Final = 30 * NS
#: And by how much the correction moves then at the most: its record is of bins, and jumps.
CORRECTION_STEP: Final = 0.02


class Planner:
    """One pool's planner. A step takes well below a millisecond, but for one each half minute (about two)."""

    def __init__(self, scale: PoolScale, classes: Mapping[str, ClassSpec] | None = None) -> None:
        self.scale = scale
        self.classes: Mapping[str, ClassSpec] = classes or {}
        #: The last word; None before the first step.
        self.wanted: int | None = None
        self._began_ns = self._down_ns = 0
        #: (when, replicas that the upper bound needed), only those that no later one reaches.
        self._needed: deque[tuple[int, int]] = deque()
        self._shaped_ns: int | None = None
        #: Samples that the shape was made of.
        self._shaped_of = 0
        self._shaped: tuple[ReplicaKind, ...] = ()
        self._capacities: list[Capacity] = []
        #: The samples that the shapes of late were of, and those by kind: each takes milliseconds.
        self._shapes_of: tuple[Sequence[WorkSample], Mapping[str, ClassSpec]] | None = None
        self._shapes: list[tuple[ReplicaKind, Shape]] = []
        #: What replicas were seen to bear, and by how much that differs from the model.
        self.record = ServedRecord()
        self.correction = 1.0
        #: What of that is left free, since fewer attained than are to.
        self.margin = AttainmentMargin()
        self._bears: dict[int, float] = {}
        #: The newest of these, of one replica: where the next is looked for.
        self._bore = 0.0

    def horizon_s(self, load_time: LoadTime, interval_s: float) -> float:
        """How far ahead is to be looked: until a replica that is wanted at the next step is ready."""
        return load_time.p90_s + self.scale.reaction_s + interval_s

    def step(self, now_ns: int, facts: PoolFacts) -> PoolPlan:
        """The plan of this moment. Times must not decrease; one that does counts as the last."""
        scale = self.scale
        had = sum(each.stage in HAD for each in facts.replicas)
        ready = sum(each.stage == "ready" for each in facts.replicas)
        if self.wanted is None:
            self.wanted = min(max(had, scale.min_replicas), scale.max_replicas)
            self._began_ns = now_ns
        capacities = self._known(now_ns, facts)
        median, high = _rates(facts, ready, self._weight(facts))
        wants, kind = self._need(capacities, facts, median)
        upper, kind = self._need(capacities, facts, high)
        spared, _ = self._need(capacities, facts, high * (1.0 + DOWN_MARGIN))
        wanted, bound, why = self._decide(now_ns, facts, upper, spared.replicas, kind)
        self.wanted = wanted
        if bound in ("max", "budget"):
            self.margin.pause()
        else:
            self.margin.saw(
                now_ns,
                attained=facts.attained,
                judged=facts.judged,
                target=scale.aimed,
                most=scale.margin_max,
            )
        per_token = capacities[0].kind.timing.prefill_per_token_ms if capacities else 0.0
        fewer = max(0, had - wanted)
        return PoolPlan(
            pool=scale.pool,
            at_ns=now_ns,
            wanted=wanted,
            ready=ready,
            loading=had - ready,
            draining=sum(each.stage == "draining" for each in facts.replicas),
            why=why,
            bound=bound,
            leaving=leaving(facts.replicas, fewer, prefill_ms_per_token=per_token) if fewer else (),
            kind=kind if len(facts.kinds) > 1 else "",
            now=facts.demand,
            forecast=facts.forecast,
            need=wants,
            need_high=upper,
            load_time=facts.load_time,
            horizon_s=facts.forecast.ahead_s,
            held=facts.held,
            cost_per_hour=_cost(facts, kind, wanted, had),
            terms=_terms(capacities, high, wanted),
            floor=facts.floor,
            margin=self.margin.share,
            switch=_switch(facts) if wanted > had else None,
        )

    def _known(self, now_ns: int, facts: PoolFacts) -> list[Capacity]:
        """The kinds' capacities, made anew now and then: samples are many, and change slowly."""
        due = self._shaped_ns is None or not 0 <= now_ns - self._shaped_ns < SHAPE_EVERY_NS
        samples, few = len(facts.demand.samples), self._shaped_of < ENDED_FEW
        # What is assumed before the first end holds no longer than it must.
        if due or facts.kinds != self._shaped or (few and samples >= max(1, 2 * self._shaped_of)):
            self._shaped_ns, self._shaped = now_ns, facts.kinds
            shapes = {} if few else {each.kind.name: each.work for each in self._capacities}
            self._shaped_of = samples
            self._capacities = [
                Capacity(blended(shapes.get(kind.name), self._shape(facts.demand.samples, kind)), kind)
                for kind in facts.kinds
            ]
            found = self.record.correction(self.scale.aimed)
            if self.margin.share > 0.0:
                # What is left free makes lower loads look well: that is no reason to take it back.
                found = min(found, self.correction)
            self.correction += min(max(found - self.correction, -CORRECTION_STEP), CORRECTION_STEP)
            self._bears.clear()
        self._learn(facts)
        # What bursts cost is in the record, once there is one.
        recorded = self.record.requests >= RECORD_REQUESTS
        for each in self._capacities:
            each.told(
                dispersion=1.0 if recorded else facts.dispersion,
                correction=facts.correction * self.correction * (1.0 - self.margin.share),
            )
        return self._capacities

    def _shape(self, samples: Sequence[WorkSample], kind: ReplicaKind) -> Shape:
        """What the samples ask of a kind; the very same ones are looked through once."""
        of = self._shapes_of
        if of is None or of[0] is not samples or of[1] is not self.classes:
            self._shapes_of = (samples, self.classes)
            self._shapes.clear()
        for known, found in self._shapes:
            if known == kind:
                return found
        found = shape(samples, kind, self.classes)
        self._shapes.append((kind, found))
        return found

    def _weight(self, facts: PoolFacts) -> float:
        """How many of the samples' requests one that counts as one is."""
        mean_ms = self._capacities[0].work.work_ms if self._capacities else 0.0
        return facts.unit_ms / mean_ms if facts.unit_ms > 0.0 and mean_ms > 0.0 else 1.0

    def _learn(self, facts: PoolFacts) -> None:
        """What ended since the last step, at the load that there was."""
        ready = sum(each.stage == "ready" for each in facts.replicas)
        rate = facts.demand.requests_per_s * self._weight(facts)
        if not (facts.judged and ready and self._capacities and rate > 0.0):
            return
        bears = self._bears.get(ready)
        if bears is None:
            usual = self._capacities[0]
            usual.told(dispersion=1.0, correction=facts.correction)
            bears = rate_max(usual, ready, self.scale.aimed, near=self._bore)
            self._bears[ready], self._bore = bears, bears / ready
        if bears > 0.0:
            self.record.saw(rate / bears, attained=facts.attained, judged=facts.judged)

    def _need(self, capacities: Sequence[Capacity], facts: PoolFacts, rate: float) -> tuple[Need, str]:
        """Replicas for a rate, and which kind to add: the cheapest that is enough."""
        scale = self.scale
        if not capacities or rate <= 0.0:
            name = capacities[0].kind.name if capacities else ""
            return Need(replicas=0, attainment=1.0, utilization=0.0, binding="none"), name
        if len(capacities) == 1:
            most, target = scale.max_replicas, scale.aimed
            found = need(capacities[0], rate, target, most=most, near=self.wanted or 0)
            return first_need(found, facts, capacities[0].kind), capacities[0].kind.name
        return mixed_need(capacities, facts, rate, scale)

    def _decide(
        self, now_ns: int, facts: PoolFacts, upper: Need, spared: int, kind: str
    ) -> tuple[int, str, str]:
        """(wanted, what bound it, why); `spared` are the replicas that fewer may not go below."""
        scale, before = self.scale, self.wanted
        assert before is not None
        idle_s = facts.idle_s
        asked = facts.held > 0 or (idle_s is not None and idle_s < scale.zero_after_s)
        # The last one stays by zero_after_s, which is a hold of its own.
        least = max(scale.min_replicas, int(asked))
        needed = upper.replicas
        held_s = scale.down_after_s + facts.load_time.p90_s
        kept = self._kept(now_ns, spared, held_s)
        bound, why = "", f"{upper.binding} binds" if upper.binding != "none" else "nothing binds"
        why = f"{needed} bear {facts.forecast.high:.3g}/s in {facts.forecast.ahead_s:.0f} s ({why})"
        wanted = before
        if needed > before:
            wanted = min(needed, before + scale.step_up_max)
            if wanted < needed:
                bound = "step"
        elif needed < before:
            wanted, bound = self._down(now_ns, before, needed, kept, held_s)
            if bound == "hold":
                why += f"; {before} kept until fewer were enough for {held_s:.0f} s"
        if wanted < least:
            wanted, bound = least, "min"
            why += f"; min_replicas is {least}" if scale.min_replicas else "; it was asked for"
        if facts.floor > wanted:
            wanted, bound, why = facts.floor, "schedule", f"the schedule asks for {facts.floor}"
        wanted, bound, why = self._bounded(facts, wanted, bound, why, kind)
        return wanted, bound, why

    def _kept(self, now_ns: int, needed: int, held_s: float) -> int:
        """Remember what is needed; the most that was within `held_s`."""
        kept = self._needed
        if kept and now_ns < kept[-1][0]:
            now_ns = kept[-1][0]
        while kept and kept[-1][1] <= needed:
            kept.pop()
        kept.append((now_ns, needed))
        oldest_ns = now_ns - int(held_s * NS)
        while len(kept) > 1 and kept[0][0] < oldest_ns:
            kept.popleft()
        return kept[0][1]

    def _down(self, now_ns: int, before: int, needed: int, kept: int, held_s: float) -> tuple[int, str]:
        scale = self.scale
        begins = now_ns - self._began_ns < held_s * NS
        every_s = min(DOWN_EVERY_S, held_s)
        if begins or kept >= before or 0 <= now_ns - self._down_ns < every_s * NS:
            return before, "hold"
        self._down_ns = now_ns
        step = scale.step_down_max or max(1, before // DOWN_PART)
        fewest = max(kept, before - step)
        return fewest, "step" if fewest > needed else ""

    def _bounded(
        self, facts: PoolFacts, wanted: int, bound: str, why: str, kind: str
    ) -> tuple[int, str, str]:
        """Within what it may cost and be. `min_replicas` stands above the budget."""
        scale = self.scale
        price = _price(facts.kinds, kind)
        if scale.budget_per_hour and price > 0.0:
            affordable = max(_affordable(facts, price, scale.budget_per_hour), scale.min_replicas)
            if wanted > affordable:
                why += f"; the budget of {scale.budget_per_hour:g} an hour pays for {affordable}"
                wanted, bound = affordable, "budget"
        if wanted > scale.max_replicas:
            why += f"; max_replicas is {scale.max_replicas}"
            wanted, bound = scale.max_replicas, "max"
        elif wanted == scale.max_replicas and not bound and facts.forecast.high > 0.0 and self._short(facts):
            why += f"; more would be wanted than max_replicas {scale.max_replicas}"
            bound = "max"
        return wanted, bound, why

    def _short(self, facts: PoolFacts) -> bool:
        """Whether even all that may be do not bear the upper bound."""
        if not self._capacities:
            return False
        _, high = _rates(facts, 1, self._weight(facts))
        found = self._capacities[0].at(high, self.scale.max_replicas)
        return len(self._capacities) == 1 and found.attainment < self.scale.aimed


def _rates(facts: PoolFacts, ready: int, weight: float) -> tuple[float, float]:
    """The forecast's median and upper bound, with what is held: it comes beside. No number counts as none."""
    backlog = facts.held / DRAIN_S if ready else 0.0
    known = facts.forecast
    median = max(known.median, 0.0) * weight if isfinite(known.median) else 0.0
    high = max(known.high * weight, median) if isfinite(known.high) else median
    return median + backlog, high + backlog


def _switch(facts: PoolFacts) -> ModelSwitch | None:
    """Whether a replica that another pool gives up is sooner there than a new one."""
    held = [each.used_bytes for each in facts.replicas if each.stage == "ready" and each.used_bytes]
    return chosen_switch(facts.offers, facts.load_time, takes_bytes=min(held, default=0))


def _terms(capacities: Sequence[Capacity], rate: float, wanted: int) -> tuple[PlanTerm, ...]:
    """What one fewer, as many and one more would do with a rate."""
    if not capacities:
        return ()
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if count >= 0]
    found = [(count, capacities[0].at(rate, count)) for count in counts]
    return tuple(
        PlanTerm(replicas=n, attainment=at.attainment, utilization=at.utilization, binding=at.binding)
        for n, at in found
    )


def _price(kinds: Sequence[ReplicaKind], name: str) -> float:
    return next((kind.price_per_hour for kind in kinds if kind.name == name), 0.0)


def _affordable(facts: PoolFacts, price: float, budget: float) -> int:
    """How many replicas an hour's budget pays for: those that are had by their own price, the cheapest
    first, and further ones at `price`."""
    left, count = budget, 0
    for own in sorted(each.price_per_hour or price for each in facts.replicas if each.stage in HAD):
        if own > left + 1e-9:
            return count
        left -= own
        count += 1
    return count + int(left / price + 1e-9)


def _cost(facts: PoolFacts, kind: str, wanted: int, had: int) -> float:
    """What the wanted replicas cost an hour; what drains is paid for too, but is not wanted."""
    price = _price(facts.kinds, kind)
    own = sorted(each.price_per_hour or price for each in facts.replicas if each.stage in HAD)
    return sum(own[:wanted]) + max(0, wanted - had) * price
