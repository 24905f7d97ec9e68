"""What a request would meet on an endpoint, were it placed there now: the one formula. Pure.

    TTFT    = w·prefill queued there + own prefill + (step/2 + (m − 1)·(prefill base + step), if it decodes)
              + (P + n − S)·life/S, where P are the sequences there and it decodes S < P + n at once
    prefill = f·(pa + pb·u + pc·((off + u)² − off²)),  without the base where it shares another's step
    step    = f·(a + b·B + c·K)
    TPOT    = f·(a + b·(B + n) + c·(K + its own context))
    m       = ceil((w·queued tokens + u) ÷ (prefill budget − B))  chunks

where u are the prompt's uncached and off its cached tokens there, n its sequences, B the streams and K
their context tokens, f the endpoint's learned factor, w the share of what is queued that its engine makes a
prompt wait for (predict/admission.py; 1 is one at a time), life the mean time that a request has one of S
slots (predict/slots.py, where they show), and a, b, c, pa, pb, pc its speed
(predict/timing.py). Peers' and foreign requests count as streams, each with FOREIGN_CONTEXT_TOKENS. Health,
zones and the price of copies are a strategy's. A reservation's plan is made of this whatever strategy
chose, so that predictions are told, and learnt from, under each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from extproc.core.endpoint import Endpoint
from extproc.core.load import SLICE_TOKENS, Job, Plan
from extproc.core.predict.admission import AHEAD_MAX
from extproc.core.predict.speed import SpeedModel
from extproc.core.work import NOTHING, Work

#: Context that a request of somebody else's is taken to hold.
FOREIGN_CONTEXT_TOKENS = 1_024

#: Where so many tokens of a prefix went more than are believed to be there, they may be cached, or gone.
UNSURE_TOKENS = 128

FREE = Plan(
    uncached_tokens=0, cached_tokens=0, prefill_ms=0.0, kv_tokens=0, output_tokens=0.0, tpot_target_ms=1e9
)


class Forecast(NamedTuple):
    """Times in milliseconds, sizes in tokens.

    `ttft_ms` is from dispatch to first token, everything ahead of it included; `prefill_ms` its own prefill;
    `step_ms` a decode step as it is, `tpot_ms` one with it there. `streaming` sequences decode there; in
    `chunks` it is prefilled, with what waits there.
    """

    ttft_ms: float
    tpot_ms: float
    step_ms: float
    prefill_ms: float
    uncached_tokens: int
    cached_tokens: int
    streaming: int
    chunks: int


#: A forecast's values without their names: what a scan of many endpoints can afford.
Values = tuple[float, float, float, float, int, int, int, int]


def forecast(endpoint: Endpoint, work: Work, *, cached: Mapping[str, int] = NOTHING) -> Forecast:
    """Of one endpoint; `cached` are the prompt's tokens that each is believed to hold, by address."""
    return Forecast._make(forecasts((endpoint,), work, cached=cached)[0])


def forecasts(
    endpoints: Sequence[Endpoint], work: Work, *, cached: Mapping[str, int] = NOTHING
) -> list[Values]:
    """Of each endpoint, in order."""
    tokens, sequences = max(1, work.input_tokens), work.sequences
    square, context_tokens = tokens * tokens, tokens + work.output_tokens / 2
    held = 0
    model = None
    found = []
    for e in endpoints:
        # Spelt out: a call each for cache, prefill and step would triple the cost of a scan. Endpoints of one
        # hardware share a model, and mostly stand together.
        load, speed = e.load, e.speed
        if speed.model is not model:
            model = speed.model
            at = model.timing
            a, b, c = at.decode_base_ms, at.decode_per_sequence_ms, at.decode_per_context_token_ms
            pa, pb, pc = at.prefill_base_ms, at.prefill_per_token_ms, at.prefill_per_square_ms
            more = b * sequences + c * context_tokens
        f = speed.factor
        if cached:
            held = min(cached.get(e.address, 0), tokens - 1)
        theirs = e.peer_permits + e.foreign
        streaming = load.streaming + theirs
        step = f * (a + b * streaming + c * (load.context_tokens + theirs * FOREIGN_CONTEXT_TOKENS))
        u = tokens - held
        prefill = f * (pa + pb * u + pc * (square - held * held))
        ttft = prefill
        due, wait = u, 0.0
        if queued := load.queued:
            wait = e.admission.shares[min(AHEAD_MAX, queued)]
            due += int(wait * load.queued_tokens)
            ttft += wait * load.queued_ms
        room = e.prefill_budget_tokens - streaming
        chunks = 1 if due <= room else (-(-due // room) if room > 0 else due)
        if queued and chunks == 1:
            # It goes along in one step with those that wait there, whose base it shares.
            prefill -= wait * f * pa
            ttft -= wait * f * pa
        if streaming:
            ttft += 0.5 * step + (chunks - 1) * (f * pa + step)
        if e.slots.limit:
            ttft += slot_ms(e, sequences)
        found.append((ttft, step + f * more, step, prefill, u, held, streaming, chunks))
    return found


def plan(work: Work, endpoint: Endpoint, expected: Forecast, *, given_tokens: int = 0) -> Plan:
    """What a request is entered with where it is placed; `given_tokens` of its prefix have gone there
    before."""
    queued = endpoint.load.queued
    return Plan(
        uncached_tokens=expected.uncached_tokens,
        cached_tokens=expected.cached_tokens,
        prefill_ms=expected.prefill_ms,
        kv_tokens=expected.uncached_tokens + growth_tokens(work),
        output_tokens=work.output_tokens / work.sequences,
        ttft_ms=expected.ttft_ms,
        tpot_ms=expected.tpot_ms,
        tpot_target_ms=work.tpot_ms,
        residuals=work.residuals,
        prefix=work.prefix,
        block_tokens=work.block_tokens,
        alone=not queued and not expected.streaming,
        next=not queued and expected.chunks == 1,
        wait_ms=waits(endpoint) * endpoint.load.queued_ms,
        wait_most_ms=endpoint.load.queued_ms,
        sure=given_tokens - expected.cached_tokens < UNSURE_TOKENS
        # Others' requests wait there, and nobody here knows their prefills.
        and not (endpoint.waiting > queued and (endpoint.foreign or endpoint.peer_permits))
        and not slot_ms(endpoint, work.sequences),
        given_tokens=given_tokens,
    )


def scale_of(endpoint: Endpoint, job: Job) -> float:
    """What is known of an endpoint's speed now, over what was known when a request was placed there.

    Several that were placed by one wrong speed tell of one error, and not each of them of another.
    """
    plan, speed = job.plan, endpoint.speed
    if plan.prefill_ms <= 0.0:
        return 1.0
    return speed.prefill_ms(plan.uncached_tokens, plan.cached_tokens) / plan.prefill_ms


def first_token_ms(endpoint: Endpoint, job: Job) -> float:
    """When a request's first token was to come, by what is known now of its waiting for the prefills ahead.

    In milliseconds from its placing, by the speed as it was known then (`scale_of`). What was wrong with the
    wait when it was placed is no error of the speed, and no sign of a cache that misses.
    """
    expected_ms = job.plan.ttft_ms - job.plan.wait_ms
    return expected_ms + endpoint.admission.share(job.ahead) * job.ahead_ms if job.ahead else expected_ms


def slot_ms(endpoint: Endpoint, sequences: int) -> float:
    """How long so many sequences would wait for a slot there: 0 with nothing there, or no limit known."""
    if not endpoint.requests:
        return 0.0
    return endpoint.slots.wait_ms(endpoint.load_permits + sequences - 1, factor=endpoint.speed.factor)


def permit_ms(endpoint: Endpoint, permits: int) -> float:
    """How long so many permits are waited for there, in the mean: each end gives back one.

    0 with so many free, or with nothing known of how long its requests take.
    """
    missing = endpoint.load_permits + endpoint.standby + permits - endpoint.max_concurrent
    life_ms = endpoint.slots.expected_life_ms(endpoint.speed.factor)
    return max(0, missing) * life_ms / endpoint.max_concurrent


def waits(endpoint: Endpoint) -> float:
    """The share of the prefills queued there that a prompt placed there now would wait for, 0 to 1."""
    return endpoint.admission.share(endpoint.load.queued)


def growth_tokens(work: Work) -> int:
    """KV memory that is promised for what it may write, beyond its prompt."""
    limit = SLICE_TOKENS if work.max_new_tokens is None else min(work.max_new_tokens, SLICE_TOKENS)
    return max(0, limit - 1) * work.sequences


def reserved_tokens(endpoint: Endpoint) -> int:
    """KV memory that is promised there, what others hold included."""
    return endpoint.load.reserved_tokens + others(endpoint)[1]


def others(endpoint: Endpoint) -> tuple[int, int]:
    """Sequences there that are not ours, as far as known, and the context that they are taken to hold."""
    streams = endpoint.peer_permits + endpoint.foreign
    return streams, streams * FOREIGN_CONTEXT_TOKENS


def running(endpoint: Endpoint) -> tuple[int, int]:
    """Sequences that decode there, ours by their first tokens, and the context that they hold together."""
    load, (streams, context_tokens) = endpoint.load, others(endpoint)
    return load.streaming + streams, load.context_tokens + context_tokens


def step_ms(endpoint: Endpoint) -> float:
    """A decode step there, as it is now."""
    return endpoint.speed.step_ms(*running(endpoint))


def start_ms(endpoint: Endpoint) -> float:
    """When a prefill placed there now would begin: what is queued, and the step under way, in the mean."""
    streams, context_tokens = running(endpoint)
    wait_ms = waits(endpoint) * endpoint.load.queued_ms
    if not streams:
        return wait_ms
    return wait_ms + 0.5 * endpoint.speed.step_ms(streams, context_tokens)


def fastest_prefill_ms(work: Work, endpoints: Sequence[Endpoint]) -> float:
    """The shortest prefill that any of these endpoints promises, without regard to load and cache."""
    seen: dict[SpeedModel, float] = {}
    for endpoint in endpoints:
        model, factor = endpoint.speed.model, endpoint.speed.factor
        seen[model] = min(seen.get(model, factor), factor)
    return min((f * model.timing.prefill_ms(work.input_tokens) for model, f in seen.items()), default=0.0)
