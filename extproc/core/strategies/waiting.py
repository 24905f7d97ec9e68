"""Whether to wait for an endpoint that would answer sooner later than now. Pure.

Late binding holds what nobody would start. Here somebody would, and it is still better to wait: for a home
that has no permit free but holds most of the prompt, or for an endpoint that is closed and answers much
sooner. Without it a limit that is configured truly (`max_concurrent`) made things worse than none: a home
that was full was no candidate, its prompts were computed anew elsewhere, and the hit share fell from .81 to
.55 (simulated).
"""

from __future__ import annotations

from collections.abc import Sequence

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import first_token_ms, forecasts, permit_ms, scale_of
from extproc.core.load import MS_NS, Job
from extproc.core.work import SchedulingContext, Work

#: A first token that comes so many times sooner is worth a wait, and a copy of a prefix away from its home.
COPIES_AT = 2.0
#: A prefix that is being computed is waited for where the first token comes no later than so many times what
#: computing it once more takes: that prefill is spared to everybody.
SHARES_AT = 1.3
#: So many tokens of it at least, and more than half of the prompt.
SHARED_TOKENS_MIN = 128
#: What is late is expected after this share more of the time that it has taken, up to so many times what was
#: expected: then something else is wrong there.
LATE_REST, LATE_MAX = 0.25, 3.0
#: The guard of running streams yields to who has waited this share of its target and can be in time, where
#: all streams but one can spare so many prefills like it: while it holds, nothing is prefilled there, and all
#: that waits is late for the sake of one. Without the second condition a 70B pool beyond its load is lost:
#: each prefill spoils many streams there (simulated, conversation at 1.1: 40 for 86 % attainment).
YIELDS_AT, YIELDS_ROOM = 0.25, 3.0


def guard_yields_ms(work: Work, now_ns: int) -> float:
    """The guard yields to it where its first token comes within this; 0 while it has not waited for long."""
    left_ms = (work.deadline_ns - now_ns) / MS_NS
    return left_ms if work.deadline_ns and left_ms <= (1.0 - YIELDS_AT) * work.ttft_ms else 0.0


def worth_waiting(
    closed: Sequence[Endpoint],
    work: Work,
    score: float,
    alone_ms: float,
    soon_ms: float,
    at: SchedulingContext,
) -> bool:
    """Whether one of `closed`, or of those that only lack permits (`at.full`), is better than who takes it.

    That one has `score`, the price of a copy included, and its first token comes after `alone_ms`. What is
    waited for answers within `soon_ms` of the request's arrival, the wait so far included, and

    - has no permit free, holds more than half of the prompt, and answers sooner than `score`: without a limit
      it would wait in that engine's own queue; or
    - answers COPIES_AT times sooner, and no later than who takes it now would have done at once.
    """
    tokens = max(1, work.input_tokens)
    waited_ms = work.ttft_ms - (work.deadline_ns - at.now_ns) / 1e6
    # How long a permit is waited for is known from ends alone.
    full = [e for e in at.full if e.slots.expected_life_ms(1.0)]
    among = [*closed, *full]
    for e, expected in zip(among, forecasts(among, work, cached=at.cached), strict=True):
        there_ms = permit_ms(e, work.sequences) + expected[0]
        if there_ms > soon_ms - waited_ms:
            continue
        if 2 * at.cached.get(e.address, 0) > tokens and there_ms <= score:
            return True
        if COPIES_AT * there_ms <= alone_ms and waited_ms + there_ms <= alone_ms:
            return True
    return False


def computed_soon(
    candidates: Sequence[Endpoint], work: Work, alone_ms: float, soon_ms: float, at: SchedulingContext
) -> bool:
    """Whether a candidate is computing the prompt's prefix now, so that waiting for that is worth it.

    Requests that begin alike and come together would each compute the beginning, side by side, where the
    engine starts them at once: each cold prefix several times over, when a pool has least to spare. (One that
    takes one prompt at a time has cached it when the next one's turn comes.) The first token of who waits
    comes within `soon_ms` of its arrival, and no later than SHARES_AT times `alone_ms`, what it takes to
    compute the prefix once more.
    """
    tokens = max(1, work.input_tokens)
    waited_ms = work.ttft_ms - (work.deadline_ns - at.now_ns) / MS_NS
    for e in candidates:
        coming = at.coming.get(e.address, 0)
        more = coming - at.cached.get(e.address, 0)
        if more < SHARED_TOKENS_MIN or 2 * coming <= tokens or e.admission.share(1) >= 1.0:
            continue
        job = e.load.computing(work.prefix, min(len(work.prefix), round(coming / work.block_tokens)))
        if job is None:
            continue
        found = _cached_after(e, job, at)
        if found is None:
            continue
        rest_ms, slower = found
        there_ms = rest_ms + slower * e.speed.prefill_ms(max(1, tokens - coming), coming)
        if waited_ms + there_ms <= soon_ms and there_ms <= SHARES_AT * slower * alone_ms:
            return True
    return False


def _cached_after(endpoint: Endpoint, job: Job, at: SchedulingContext) -> tuple[float, float] | None:
    """In how many milliseconds an endpoint has cached a request's prompt, and how many times as slow as
    expected it turns out to be so far (1 and more); None where that is over, or nobody can say.

    Where the prior was wrong of one replica, it is of the others, and of a prefill done anew.
    """
    decode_ms = 0.0
    if not at.caches_at_prefill:
        step_ms = max(job.plan.tpot_ms, endpoint.speed.step_ms(1, job.plan.uncached_tokens))
        decode_ms = job.length * step_ms
    if not job.queued and not job.silent:
        spent_ms = (at.now_ns - job.first_ns) / MS_NS
        if spent_ms >= LATE_MAX * decode_ms:
            return None
        return max(decode_ms - spent_ms, LATE_REST * decode_ms), 1.0
    expected_ms = scale_of(endpoint, job) * first_token_ms(endpoint, job)
    elapsed_ms = (at.now_ns - job.placed_ns) / MS_NS
    if elapsed_ms > LATE_MAX * expected_ms:
        return None
    if elapsed_ms <= expected_ms:
        return expected_ms - elapsed_ms + decode_ms, 1.0
    slower = elapsed_ms / expected_ms
    return LATE_REST * elapsed_ms + slower * decode_ms, slower
