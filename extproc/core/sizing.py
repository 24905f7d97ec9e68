"""What a request will cost on a pool, and the moment in which its replica is chosen.

Owns the putting together of calibration, output lengths, prefixes and a class's targets. Knows no endpoint's
load and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xxhash import xxh3_64_intdigest

from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Pool
from extproc.core.load import MS_NS
from extproc.core.prefix import BLOCK_BYTES, PrefixIndex, of_adapter
from extproc.core.request import IMAGE_TOKENS, Request, prefix_of
from extproc.core.slo import ClassSpec
from extproc.core.work import NOTHING, SchedulingContext, Work
from extproc.engines import traits_of

#: What a class aims at that says nothing of it.
STANDARD = ClassSpec()


def context(
    work: Work,
    pool: Pool,
    *,
    now_ns: int,
    patient: bool = False,
    deciders: int = 1,
    last: bool = False,
    full: Sequence[Endpoint] = (),
) -> SchedulingContext:
    """The moment of a choice in a pool; all else as in `work.SchedulingContext`."""
    if not work.prefix:
        return SchedulingContext(now_ns, NOTHING, patient, deciders, last, full=full)
    coming = _held(pool.coming, work)
    given = NOTHING if coming else pool.coming.counts()
    held = _held(pool.prefixes, work)
    early = traits_of(pool.engine).caches_at_prefill
    return SchedulingContext(now_ns, held, patient, deciders, last, coming, given, full, early)


def _held(index: PrefixIndex, work: Work) -> Mapping[str, int]:
    """The prompt's tokens that each endpoint holds by an index, by address."""
    each = work.block_tokens
    return {address: int(blocks * each) for address, blocks in index.match(work.prefix).items()}


def _prefix(request: Request, pool: Pool, model: str) -> tuple[int, ...]:
    """What a prompt begins with, by blocks; nothing where that is a response which its replica holds."""
    if request.follows is not None:
        return ()
    blocks = prefix_of(request)
    if pool.adapters is None or model not in pool.adapters.names:
        return blocks
    return of_adapter(blocks, model)


def predict(
    request: Request,
    pool: Pool,
    tenant: str,
    model: str,
    *,
    zone: str = "",
    rank: int = 0,
    spec: ClassSpec = STANDARD,
    now_ns: int = 0,
) -> Work:
    """What a request will cost on a pool, over all its sequences, and what its class asks for."""
    calibration, limit = pool.calibration, request.max_new_tokens
    text, counted = request.prompt_tokens, None
    if text is None:
        text = calibration.predict_input(request.prompt_bytes)
        if calibration.counter is not None:
            counted = calibration.counter.count(request, text, calibration.bytes_per_token)
            if counted is not None and counted.tokens is not None:
                text = counted.tokens
    # What is predicted to cost nothing would pass a quota that is spent.
    tokens = max(1, text + IMAGE_TOKENS * request.images)
    expected = pool.lengths.expected(tenant, model, limit)
    ttft_ns = request.ttft_ms * MS_NS or spec.target_ns(tokens)
    return Work(
        input_tokens=tokens,
        output_tokens=max(request.sequences, round(expected * request.sequences)) if limit != 0 else 0,
        zone=zone,
        zone_penalty_tokens=pool.zone_penalty_tokens,
        max_new_tokens=limit,
        sequences=request.sequences,
        prefix=_prefix(request, pool, model),
        block_tokens=request.prefix_block_tokens or BLOCK_BYTES / calibration.bytes_per_token,
        session=xxh3_64_intdigest(request.user.encode()) if request.user else 0,
        rank=rank,
        ttft_ms=ttft_ns / 1e6,
        tpot_ms=request.tpot_ms or spec.tpot_ns / MS_NS,
        deadline_ns=now_ns + ttft_ns,
        residuals=pool.lengths.residuals(tenant, model, limit),
        counted=counted,
    )


def beyond_context(request: Request, work: Work, bound: int) -> int:
    """Tokens of a prompt that, with what it asks for, do not fit the model's context; 0 where they may.

    Only what was counted is held to it, and by as much as counts were off: an engine refuses the rest.
    """
    if not bound or request.sequences != 1 or request.images:
        return 0
    counted = work.counted
    if request.prompt_tokens is not None:
        margin = 0
    elif counted is not None and counted.tokens is not None and counted.margin is not None:
        margin = counted.margin
    else:
        return 0
    # An engine that is told no limit writes one token at least.
    asked = 1 if request.max_new_tokens is None else request.max_new_tokens
    return work.input_tokens if work.input_tokens - margin + asked > bound else 0
