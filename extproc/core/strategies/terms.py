"""What several strategies' scores are made of: one endpoint's predicted times, in milliseconds.

Owns arithmetic alone: no order, no choice. The formulas are those of steer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from extproc.core.endpoint import Endpoint
from extproc.core.work import SchedulingContext, Work

#: Context that a request of somebody else's is taken to hold.
FOREIGN_CONTEXT_TOKENS = 1_024


def cached_tokens(endpoint: Endpoint, work: Work, at: SchedulingContext) -> int:
    """Prompt tokens that need no prefill there; the last one always does."""
    return min(at.cached.get(endpoint.address, 0), max(1, work.input_tokens) - 1) if at.cached else 0


def streaming(endpoint: Endpoint) -> int:
    """Sequences that decode there: ours by their first tokens, peers' and foreign ones as far as known."""
    return endpoint.load.streaming + endpoint.peer_permits + endpoint.foreign


def start_ms(endpoint: Endpoint) -> float:
    """When a prefill placed there now would begin: what is queued, and the step under way, in the mean."""
    load = endpoint.load
    others = endpoint.peer_permits + endpoint.foreign
    if not load.streaming and not others:
        return load.queued_ms
    context_tokens = load.context_tokens + others * FOREIGN_CONTEXT_TOKENS
    return load.queued_ms + 0.5 * endpoint.speed.step_ms(load.streaming + others, context_tokens)


def zone_ms(endpoint: Endpoint, work: Work) -> float:
    """The handicap of an endpoint in another zone: its tokens' prefill."""
    if not work.zone_penalty_tokens or not work.zone or endpoint.zone == work.zone:
        return 0.0
    speed = endpoint.speed
    return work.zone_penalty_tokens * speed.factor * speed.model.timing.prefill_per_token_ms


def forecasts(
    endpoints: Sequence[Endpoint], work: Work, at: SchedulingContext
) -> list[tuple[float, float, float]]:
    """For each: the time to the first token over its health weight, its own prefill, a step with it there."""
    tokens, cached_of = max(1, work.input_tokens), at.cached
    sequences, context_tokens = work.sequences, work.input_tokens + work.output_tokens / 2
    zone = work.zone if work.zone_penalty_tokens else ""
    found = []
    cached = 0
    for e in endpoints:
        # Spelt out: a call each for cache, prefill and step would triple the cost of a scan.
        load, factor, timing = e.load, e.speed.factor, e.speed.model.timing
        if cached_of:
            cached = min(cached_of.get(e.address, 0), tokens - 1)
        uncached = tokens - cached
        others = e.peer_permits + e.foreign
        running = load.streaming + others
        prefill = factor * (
            timing.prefill_base_ms
            + (timing.prefill_per_token_ms + timing.prefill_per_square_ms * (tokens + cached)) * uncached
        )
        per_sequence, per_token = timing.decode_per_sequence_ms, timing.decode_per_context_token_ms
        step = factor * (
            timing.decode_base_ms
            + per_sequence * running
            + per_token * (load.context_tokens + others * FOREIGN_CONTEXT_TOKENS)
        )
        ms = load.queued_ms + prefill
        if running:
            ms += 0.5 * step
            room = max(1, e.prefill_budget_tokens - running)
            if load.queued_tokens + uncached > room:
                # A long prompt is prefilled in chunks, a decode step between each two.
                chunks = ceil((load.queued_tokens + uncached) / room) - 1
                ms += chunks * (factor * timing.prefill_base_ms + step)
        if zone and e.zone != zone:
            ms += zone_ms(e, work)
        with_it = step + factor * (per_sequence * sequences + per_token * context_tokens)
        found.append((ms / e.weight, prefill, with_it))
    return found
