"""What is expected of a request on an endpoint: the plan that its reservation is entered with. Pure.

Arithmetic of strategies/steer.py's docstring, for one endpoint, whatever strategy chose it: so predictions
are told, and learnt from, under each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from extproc.core.endpoint import Endpoint
from extproc.core.load import SLICE_TOKENS, Plan
from extproc.core.predict.speed import SpeedModel
from extproc.core.work import NOTHING, Work

FREE = Plan(
    uncached_tokens=0, cached_tokens=0, prefill_ms=0.0, kv_tokens=0, output_tokens=0.0, tpot_target_ms=1e9
)


def plan(work: Work, endpoint: Endpoint, *, cached: Mapping[str, int] = NOTHING) -> Plan:
    """The plan of a request that would be placed on an endpoint now."""
    load, speed = endpoint.load, endpoint.speed
    tokens = max(1, work.input_tokens)
    held = min(cached.get(endpoint.address, 0), tokens - 1)
    uncached = tokens - held
    others = endpoint.peer_permits + endpoint.foreign
    streaming = load.streaming + others
    step_ms = speed.step_ms(streaming, load.context_tokens)
    prefill_ms = speed.prefill_ms(uncached, held)
    budget = max(1, endpoint.prefill_budget_tokens - streaming)
    chunks = ceil((load.queued_tokens + uncached) / budget)
    if load.queued and chunks == 1:
        # It goes along in one step with those that wait there, whose base it shares.
        prefill_ms -= speed.prefill_ms(0)
    ttft_ms = load.queued_ms + prefill_ms
    if streaming:
        ttft_ms += 0.5 * step_ms + (chunks - 1) * (speed.prefill_ms(0) + step_ms)
    output = work.output_tokens / work.sequences
    limit = SLICE_TOKENS if work.max_new_tokens is None else min(work.max_new_tokens, SLICE_TOKENS)
    return Plan(
        uncached_tokens=uncached,
        cached_tokens=held,
        prefill_ms=prefill_ms,
        kv_tokens=uncached + max(0, limit - 1) * work.sequences,
        output_tokens=output,
        ttft_ms=ttft_ms,
        tpot_ms=speed.step_ms(streaming + work.sequences, load.context_tokens + tokens + output / 2),
        tpot_target_ms=work.tpot_ms,
        residuals=work.residuals,
        prefix=work.prefix,
        block_tokens=work.block_tokens,
        alone=not load.queued and not streaming,
        next=not load.queued and chunks == 1,
    )


def fastest_prefill_ms(work: Work, endpoints: Sequence[Endpoint]) -> float:
    """The shortest prefill that any of these endpoints promises, without regard to load and cache."""
    seen: dict[SpeedModel, float] = {}
    for endpoint in endpoints:
        model, factor = endpoint.speed.model, endpoint.speed.factor
        seen[model] = min(seen.get(model, factor), factor)
    return min((f * model.timing.prefill_ms(work.input_tokens) for model, f in seen.items()), default=0.0)
