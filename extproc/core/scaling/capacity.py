"""From work to replicas: what share of requests attains its targets at a rate, and how many that takes.

Owns the arithmetic; simulates nothing. A replica in the mean, under λ requests/s (one truth with
sim/capacity.py, which asks `steady` what "load 1" is):

    ρ = λ · E[prefill of the uncached prompt]               share of time that prefill takes
    T = (a + b·B + c·K) / (1 − ρ)                           time per output token
    B = λ · O · T                                           streams running (Little's law)
    K = B · E[context]                                      KV tokens resident

E[context] weighs each request by its output: prompt plus half the output, as long as it decodes. T is
linear in itself, so T = a / (1 − ρ − λ·O·(b + c·E[context])).

Two things keep a request from its targets. It waits for its first token: prefill is a queue M/G/m over the
pool's m replicas, whose service is the prompt's own share of a step and its part of what every loop costs
(a batch of those that wait shares it). The tail of the wait is exponential, its rate by the heavy-traffic
form of Kingman (1961) and its weight by Sakasegawa's (1977) for m servers. Or too many stream at once: the
streams of the pool are taken as normal about m·B, and a replica is over when it has more than the time per
token allows; permits and KV memory are places of a queue like the first, kept to each stream's end. Pooling
is not perfect (the balancer hears late, streams cannot move): m counts as m^POOLED. The figure is calibrated
against the simulator (docs/scaling.md has the table).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erfc, exp, inf, sqrt
from typing import Final, NamedTuple

from extproc.core.predict.timing import Timing
from extproc.core.scaling.values import Binding, Need, ReplicaKind, WorkSample
from extproc.core.slo import ClassSpec

#: What of the KV memory streams may hold.
KV_SHARE_MAX: Final = 0.98
#: How far m replicas are one queue: 1 wholly, 0 not at all.
POOLED: Final = 0.9
#: Streams vary more than at a constant rate: more of them are slower, and so stay longer.
STREAMS_SPREAD: Final = 1.3
#: Requests that a demand is judged by at the most; and the groups that their slacks are put in.
SAMPLES_MAX: Final = 512
SLACKS: Final = 24
#: How much of a new shape counts beside the one before, half a minute older: three minutes' requests do.
BLENDED: Final = 0.15
#: Arrivals that vary more count as this; and a correction is by no more than this, either way.
DISPERSION_MAX: Final = 20.0
CORRECTION_MAX: Final = 3.0
#: Below this share a pool is over its edge: what it cannot bear is refused, and the rest attains as there.
EDGE: Final = 0.95
#: Answers that are kept of one shape: the next step asks about the same rates and numbers.
ANSWERS_MAX: Final = 256
#: A rate is looked for within this share of the last one first.
NEAR: Final = 0.02
#: Nothing is asked about more.
REPLICAS_MAX: Final = 1_000
#: Fewer requests a second are none: one in thirty years.
RATE_MIN: Final = 1e-9
#: What is assumed of requests before any was seen (tokens).
PROMPT_TOKENS, OUTPUT_TOKENS = 1_000, 250
#: From here on a share counts as attained by nobody.
SATURATED: Final = 1.0 - 1e-9


class Steady(NamedTuple):
    """A replica in the mean: milliseconds a token, streams, KV tokens, share of time that prefill takes."""

    tpot_ms: float
    batch: float
    kv_tokens: float
    prefill_share: float


def steady(
    requests_per_s: float,
    *,
    prefill_ms: float,
    output_tokens: float,
    context_tokens: float,
    base_ms: float,
    growth_ms: float,
) -> Steady:
    """The fixpoint at a rate; times are infinite where there is none.

    `prefill_ms` a request, `base_ms` a decode step of nobody, `growth_ms` what each stream adds to one
    (b + c · its context).
    """
    per_ms = requests_per_s / 1000.0
    prefill_share = per_ms * prefill_ms
    room = 1.0 - prefill_share - per_ms * output_tokens * growth_ms
    if room <= 0.0:
        return Steady(inf, inf, inf, prefill_share)
    tpot = base_ms / room
    batch = per_ms * output_tokens * tpot
    return Steady(tpot, batch, batch * context_tokens, prefill_share)


def work_ms(timing: Timing, prompt_tokens: float, cached_tokens: float, output_tokens: float) -> float:
    """What a request takes of a replica that serves many: its prefill, and what it adds to each of its steps.

    What a step costs in any case is left out: it is shared by whoever is there.
    """
    prefill_ms = timing.prefill_ms(prompt_tokens - cached_tokens, cached_tokens)
    return prefill_ms + decode_work_ms(timing, prompt_tokens, output_tokens)


def decode_work_ms(timing: Timing, prompt_tokens: float, output_tokens: float) -> float:
    """Of that, what it adds to each of its steps."""
    per_token = timing.decode_per_context_token_ms * (prompt_tokens + output_tokens / 2.0)
    return output_tokens * (timing.decode_per_sequence_ms + per_token)


class Shape(NamedTuple):
    """What recent requests ask of one kind of replica, in the mean; times in milliseconds.

    `own_ms` is prefill without what a step costs in any case, `own_square` its mean square; `loops` how many
    steps a prompt takes. `slacks`: what is left of a first token's target after a request's own prefill, and
    the share (0..1) of requests with it. `tpot_ms`: targets, likewise.
    """

    own_ms: float
    own_square: float
    loops: float
    prompt_tokens: float
    output_tokens: float
    context_tokens: float
    slacks: tuple[tuple[float, float], ...]
    tpot_ms: tuple[tuple[float, float], ...]
    #: `work_ms` in the mean.
    work_ms: float = 0.0


def shape(samples: Sequence[WorkSample], kind: ReplicaKind, classes: Mapping[str, ClassSpec]) -> Shape:
    """What `samples` ask of a replica of `kind`; an unknown class aims at what `ClassSpec()` does."""
    timing, standard = kind.timing, ClassSpec()
    taken = samples if len(samples) <= SAMPLES_MAX else samples[-SAMPLES_MAX:]
    if not taken:
        taken = (WorkSample("", PROMPT_TOKENS, 0, OUTPUT_TOKENS),)
    own = square = loops = prompt = output = context = work = 0.0
    slacks: list[float] = []
    paces: dict[float, int] = {}
    budget = max(1, kind.prefill_budget_tokens)
    for service_class, prompt_tokens, cached_tokens, output_tokens in taken:
        spec = classes.get(service_class, standard)
        cached = min(max(cached_tokens, 0), max(prompt_tokens - 1, 0))
        uncached, tokens = max(1, prompt_tokens - cached), max(1, output_tokens)
        whole = timing.prefill_ms(uncached, cached)
        ms = whole - timing.prefill_base_ms
        steps = -(-uncached // budget)
        work += whole + decode_work_ms(timing, prompt_tokens, tokens)
        own += ms
        square += ms * ms
        loops += steps
        prompt += uncached
        output += tokens
        context += tokens * (prompt_tokens + tokens / 2.0)
        slacks.append(spec.target_ns(prompt_tokens) / 1e6 - ms - steps * timing.prefill_base_ms)
        pace = spec.tpot_ns / 1e6
        paces[pace] = paces.get(pace, 0) + 1
    count = len(taken)
    slacks.sort()
    return Shape(
        own / count,
        square / count,
        loops / count,
        prompt / count,
        output / count,
        context / output,
        _grouped(slacks),
        tuple((pace, share / count) for pace, share in sorted(paces.items())),
        work / count,
    )


def _grouped(ordered: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Ascending slacks in at most SLACKS groups of neighbours: each group's least, and its share."""
    count = len(ordered)
    # The tightest decide: they are kept finest.
    edges = sorted({int(count * (i / SLACKS) ** 2) for i in range(SLACKS)} | {0})
    return tuple(
        (ordered[(at + end) // 2 if end - at > 1 else at], (end - at) / count)
        for at, end in zip(edges, [*edges[1:], count], strict=True)
        if end > at
    )


def blended(before: Shape | None, now: Shape) -> Shape:
    """A shape a while later: BLENDED of it is new. A few hundred requests of a long-tailed mix differ from
    the next few hundred by a fifth; what is planned should not."""
    if before is None or len(before.slacks) != len(now.slacks) or len(before.tpot_ms) != len(now.tpot_ms):
        return now

    def mixed(old: float, new: float) -> float:
        return old + BLENDED * (new - old)

    def mixed_pairs(
        old: tuple[tuple[float, float], ...], new: tuple[tuple[float, float], ...]
    ) -> tuple[tuple[float, float], ...]:
        return tuple(
            (mixed(one, two), mixed(share, other))
            for (one, share), (two, other) in zip(old, new, strict=True)
        )

    return Shape(
        own_ms=mixed(before.own_ms, now.own_ms),
        own_square=mixed(before.own_square, now.own_square),
        loops=mixed(before.loops, now.loops),
        prompt_tokens=mixed(before.prompt_tokens, now.prompt_tokens),
        output_tokens=mixed(before.output_tokens, now.output_tokens),
        context_tokens=mixed(before.context_tokens, now.context_tokens),
        slacks=mixed_pairs(before.slacks, now.slacks),
        tpot_ms=mixed_pairs(before.tpot_ms, now.tpot_ms),
        work_ms=mixed(before.work_ms, now.work_ms),
    )


class Attained(NamedTuple):
    """What is predicted at a rate: shares (0..1) that attain, the time that is used, and what binds."""

    attainment: float
    utilization: float
    binding: Binding


class Capacity:
    """One kind of replica under one shape of work. `correction` above 1: it bears so much more than this
    model says (a simulation or the service's own record said so)."""

    def __init__(
        self, work: Shape, kind: ReplicaKind, *, dispersion: float = 1.0, correction: float = 1.0
    ) -> None:
        self.work, self.kind = work, kind
        self.dispersion, self.correction = 1.0, 1.0
        #: By a replica's rate as the model has it and replicas; and the rate of all at which EDGE attain.
        self._answers: dict[tuple[float, int], Attained] = {}
        self._edges: dict[int, float] = {}
        self.told(dispersion=dispersion, correction=correction)
        timing = kind.timing
        self._growth = (
            timing.decode_per_sequence_ms + timing.decode_per_context_token_ms * work.context_tokens
        )

    def told(self, *, dispersion: float, correction: float) -> None:
        """How arrivals vary (variance over mean of their counts, 1 is Poisson), and the correction."""
        dispersion = min(max(dispersion, 1.0), DISPERSION_MAX)
        if dispersion != self.dispersion:
            self.dispersion = dispersion
            self._answers.clear()
            self._edges.clear()
        self.correction = min(max(correction, 1.0 / CORRECTION_MAX), CORRECTION_MAX)

    def at(self, requests_per_s: float, replicas: int) -> Attained:
        """What a pool of so many replicas does at a rate, all told."""
        found = self.within(requests_per_s, replicas)
        if found.attainment >= EDGE or replicas <= 0:
            return found
        edge = self._edges.get(replicas)
        if edge is None:
            edge = self._edges[replicas] = rate_max(self, replicas, EDGE) / self.correction
        share = EDGE * edge * self.correction / requests_per_s
        return found._replace(attainment=max(found.attainment, min(EDGE, share)))

    def within(self, requests_per_s: float, replicas: int) -> Attained:
        """The same where nothing is refused: beyond its edge a pool then falls to nothing."""
        if requests_per_s < RATE_MIN:
            return Attained(1.0, 0.0, "none")
        if replicas <= 0:
            return Attained(0.0, 1.0, "ttft")
        rate = requests_per_s / self.correction / replicas
        found = self._answers.get((rate, replicas))
        if found is None:
            if len(self._answers) >= ANSWERS_MAX:
                self._answers.clear()
            found = self._answers[rate, replicas] = self._found(rate, replicas)
        return found

    def _found(self, rate: float, replicas: int) -> Attained:
        """At a replica's rate, as the model has it."""
        late, busy, state = self._first(rate, replicas)
        if late >= SATURATED:
            return Attained(0.0, 1.0, "ttft" if busy >= 1.0 else "tpot")
        over, which, share = self._streams(rate, state, replicas)
        attainment = max(0.0, 1.0 - late - over * (1.0 - late))
        binding: Binding = "ttft" if late >= over else which
        if late + over < 1e-6:
            # Nobody misses: what would be the first to run out.
            binding = "ttft" if busy >= share else which
        return Attained(attainment, min(1.0, max(busy, share)), binding)

    def _first(self, rate: float, replicas: int) -> tuple[float, float, Steady]:
        """(the share whose first token is late, the prefill queue's use, the mean) at a replica's rate."""
        work, timing = self.work, self.kind.timing
        per_ms = rate / 1000.0
        budget = self.kind.prefill_budget_tokens
        batch_max = max(1.0, budget / max(1.0, work.prompt_tokens))
        pooled = replicas**POOLED
        together, state, busy, wait = 1.0, Steady(inf, inf, inf, 1.0), 0.0, inf
        step = waits = 0.0
        for _ in range(4):
            each = work.own_ms + work.loops * timing.prefill_base_ms / together
            state = steady(
                rate,
                prefill_ms=each,
                output_tokens=work.output_tokens,
                context_tokens=work.context_tokens,
                base_ms=timing.decode_base_ms,
                growth_ms=self._growth,
            )
            if state.tpot_ms == inf:
                return 1.0, min(1.0, per_ms * each), state
            step = timing.decode_base_ms + self._growth * state.batch
            loop = timing.prefill_base_ms + step + self._growth * state.batch
            serve = work.own_ms + work.loops * loop / together
            busy = per_ms * serve
            if busy >= 1.0:
                if together >= batch_max:
                    return 1.0, 1.0, state
                together = min(batch_max, together * 2.0)
                wait = inf
                continue
            second = work.own_square + 2.0 * work.own_ms * (serve - work.own_ms) + (serve - work.own_ms) ** 2
            spread = second / (serve * serve) - 1.0
            varied = (self.dispersion + max(spread, 0.0)) / 2.0
            waits = busy ** (sqrt(2.0 * (pooled + 1.0)) - 1.0)
            mean = serve * varied * waits / (pooled * (1.0 - busy))
            # Given that it waits, exponential: mean over P(wait), and P(wait) by Sakasegawa's power.
            wait = mean / max(waits, 1e-12)
            now = min(batch_max, 1.0 + per_ms * mean)
            if abs(now - together) < 0.02:
                break
            together = now
        if wait == inf:
            return 1.0, busy, state
        late, long = 0.0, max(wait, 1e-9)
        for slack, share in work.slacks:
            late += share * (1.0 if slack <= step else min(1.0, waits * exp(-(slack - step) / long)))
        return late, busy, state

    def _no_place(
        self, rate: float, state: Steady, places: float, name: Binding, replicas: int
    ) -> tuple[float, float, Binding]:
        """The share that finds no place within its first token's slack, and how much of the places is used.

        A queue of its own, with as many servers as places: whoever has one keeps it to its end. More than
        there are places cannot stay, however long others may wait.
        """
        use = state.batch / places if places > 0.0 else 1.0
        if use >= 1.0:
            return 1.0, use, name
        slack_ms = max(0.0, self.work.slacks[len(self.work.slacks) // 2][0])
        pooled = places * replicas**POOLED
        waits = use ** (sqrt(2.0 * (pooled + 1.0)) - 1.0)
        stays_ms = 1000.0 * state.batch / rate
        return waits * exp(-slack_ms * pooled * (1.0 - use) / (stays_ms * self.dispersion)), use, name

    def _streams(self, rate: float, state: Steady, replicas: int) -> tuple[float, Binding, float]:
        """(the share that meets too many streams, what they run out of, how much of it is used)."""
        work, kind = self.work, self.kind
        limits: list[tuple[float, Binding, float]] = []
        found: list[tuple[float, float, Binding]] = []
        if kind.permits > 0:
            found.append(self._no_place(rate, state, kind.permits, "permits", replicas))
        if kind.kv_capacity_tokens > 0:
            most = KV_SHARE_MAX * kind.kv_capacity_tokens / max(1.0, work.context_tokens)
            found.append(self._no_place(rate, state, most, "kv", replicas))
        room = 1.0 - state.prefill_share
        for pace, share in work.tpot_ms:
            most = (pace * room - kind.timing.decode_base_ms) / max(self._growth, 1e-9)
            limits.append((max(0.0, most), "tpot", share))
        spread = STREAMS_SPREAD * sqrt(max(state.batch, 1e-9) * self.dispersion / replicas**POOLED)
        for most, name, share in limits:
            full = state.batch / most if most > 0.0 else 1.0
            found.append((share * 0.5 * erfc((most - state.batch) / (spread * sqrt(2.0))), full, name))
        over, _, which = max(found)
        return over, which, min(1.0, max(full for _, full, _ in found))


def rate_max(capacity: Capacity, replicas: int, target: float, *, near: float = 0.0) -> float:
    """The largest rate, all told, that so many replicas bear at a share `target` (0..1), to a thousandth; 0
    for none. It is looked for about `near`, a replica's rate, first where that is given."""
    if replicas <= 0:
        return 0.0
    at = capacity.at if target < EDGE else capacity.within

    def borne(each: float) -> bool:
        return at(each * replicas, replicas).attainment >= target

    low, high = 0.0, 1.0
    if near > 0.0 and borne(near * (1.0 - NEAR)):
        low, high = near * (1.0 - NEAR), near * (1.0 + NEAR)
    while high < 1e7 and borne(high):
        low, high = high, high * 2.0
    for _ in range(24):
        middle = (low + high) / 2.0
        if borne(middle):
            low = middle
        else:
            high = middle
        if high - low < 1e-3 * high:
            break
    return low * replicas


def need(
    capacity: Capacity, requests_per_s: float, target: float, *, most: int = REPLICAS_MAX, near: int = 0
) -> Need:
    """The fewest replicas that bear a rate at a share `target`; `most` where no number up to it does. It is
    looked for beside `near` first: the last answer is seldom far."""
    if requests_per_s < RATE_MIN:
        return Need(replicas=0, attainment=1.0, utilization=0.0, binding="none")
    at = capacity.at if target < EDGE else capacity.within
    known: dict[int, Attained] = {}

    def enough(replicas: int) -> bool:
        if replicas not in known:
            known[replicas] = at(requests_per_s, replicas)
        return known[replicas].attainment >= target

    low, high = 0, min(most, max(near, 1))
    if enough(high):
        # Down from there by ones, then twos, …: nearly always the first already says no.
        step = 1
        while high - step > 0 and enough(high - step):
            high -= step
            step *= 2
        low = max(0, high - step)
    else:
        step = 1
        while high < most and not enough(high):
            low, high = high, min(most, high + step)
            step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    found = capacity.at(requests_per_s, high)
    fewer = found
    if high > 1:
        enough(high - 1)
        fewer = known[high - 1]
    return Need(
        replicas=high,
        attainment=found.attainment,
        utilization=found.utilization,
        binding=fewer.binding,
    )
