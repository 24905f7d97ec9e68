"""What a pool offers a request now: to the choice here, and in a digest to other sites. Pure.

Owns how a forecast (core/forecast.py) and the fair queue's wait become an offer. An offer of a pool of this
service includes what waits here; the offer of a pool that is another site, made of what its requests took,
includes the way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import msgspec

from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Pool
from extproc.core.forecast import Forecast, forecasts, start_ms
from extproc.core.sizing import context
from extproc.core.tiers.values import SiteOffer
from extproc.core.work import Work

MS_NS = 1_000_000
#: How long a request is taken to wait where others do and too few have been served to know.
UNKNOWN_WAIT_S = 2.0
#: Prompts, in tokens, for which a digest tells the time to first token; between them it is interpolated.
SIZES: Final = (64, 256, 1_024, 4_096, 16_384, 65_536)
#: The cause of an endpoint's health by which it is hot (core/faults.py).
THROTTLED: Final = "gpu throttle"


class SiteDigest(msgspec.Struct, frozen=True):
    """What a pool of a site offers anybody, at one moment. Nanoseconds; nothing of any request in it.

    `begins_ns` is what a request waits there. `own_ns[i]` is a prompt of SIZES[i] tokens from its beginning
    to its first token, `token_ns` each further token. `replicas` are ready, and have `room` permits free;
    where none is, one begins each `turn_ns`.
    """

    ready: bool
    begins_ns: int = 0
    own_ns: tuple[int, ...] = (0,) * len(SIZES)
    token_ns: int = 0
    replicas: int = 0
    room: int = 0
    turn_ns: int = 0
    hot: bool = False

    def own_of(self, prompt_tokens: int) -> int:
        """From its beginning to the first token of a prompt, linear between sizes and beyond the last two."""
        if prompt_tokens <= SIZES[0]:
            return self.own_ns[0]
        at = min(bisect_left(SIZES, prompt_tokens), len(SIZES) - 1)
        (x0, x1), (y0, y1) = SIZES[at - 1 : at + 1], self.own_ns[at - 1 : at + 1]
        return y0 + (y1 - y0) * (prompt_tokens - x0) // (x1 - x0)

    def problems(self) -> list[str]:
        """What cannot be, a line each: it comes from another site."""
        found = []
        if len(self.own_ns) != len(SIZES):
            found.append(f"own_ns must have {len(SIZES)} values, not {len(self.own_ns)}")
        counts = (self.begins_ns, self.token_ns, self.replicas, self.room, self.turn_ns)
        if min(*counts, *self.own_ns) < 0:
            found.append("no time and no count may be negative")
        if self.ready and not self.replicas:
            found.append("a pool without replicas cannot be ready")
        return found


def offer_of(
    pool: Pool,
    work: Work,
    *,
    permits: int = 1,
    regions: frozenset[str] | None = None,
    waiting: int = 0,
    wait_s: float | None = None,
    cost: float = 0.0,
    now_ns: int,
) -> SiteOffer:
    """What a pool offers a request.

    `regions` are those that its tenant allows. `waiting` requests wait for the pool here, and one more would
    for `wait_s`, None where that is not known (`FairQueue.by_pool_count`, `wait_s`).
    """
    may = _trusted(pool, regions, now_ns)
    if not may:
        return SiteOffer(ready=False, begins_ns=0, first_ns=0, token_ns=0, cost=cost)
    cached = context(work, pool, now_ns=now_ns).cached
    found = [Forecast._make(each) for each in forecasts(may, work, cached=cached)]
    at = min(range(len(may)), key=lambda i: found[i].ttft_ms)
    wait_ms = _wait_ms(may, permits, waiting, wait_s)
    return SiteOffer(
        ready=True,
        begins_ns=round((wait_ms + start_ms(may[at])) * MS_NS),
        first_ns=round((wait_ms + found[at].ttft_ms) * MS_NS),
        token_ns=round(found[at].tpot_ms * MS_NS),
        cost=cost,
        hot=_hot(may),
    )


def digest_of(pool: Pool, *, waiting: int = 0, wait_s: float | None = None, now_ns: int) -> SiteDigest:
    """What a pool offers anybody; `waiting` and `wait_s` as in `offer_of`."""
    may = _trusted(pool, None, now_ns)
    if not may:
        return SiteDigest(ready=False)
    first = min(may, key=start_ms)
    own = []
    token_ms = 0.0
    for size in SIZES:
        told = Forecast._make(forecasts((first,), Work(size, round(pool.calibration.output_tokens)))[0])
        own.append(max(0, round((told.ttft_ms - start_ms(first)) * MS_NS)))
        token_ms = token_ms or told.tpot_ms
    return SiteDigest(
        ready=True,
        begins_ns=round((_wait_ms(may, 1, waiting, wait_s) + start_ms(first)) * MS_NS),
        own_ns=tuple(own),
        token_ns=round(token_ms * MS_NS),
        replicas=len(may),
        room=sum(max(0, each.max_concurrent - each.load_permits) for each in may),
        turn_ns=round((UNKNOWN_WAIT_S if wait_s is None else wait_s) * 1e9 / (1 + waiting)),
        hot=_hot(may),
    )


def _trusted(pool: Pool, regions: frozenset[str] | None, now_ns: int) -> list[Endpoint]:
    return [
        each
        for each in pool.endpoints
        if each.ready and each.suspect_until_ns <= now_ns and (regions is None or each.region in regions)
    ]


def _wait_ms(endpoints: Sequence[Endpoint], permits: int, waiting: int, wait_s: float | None) -> float:
    """How long one more waits here before it is placed."""
    free = any(each.load_permits + permits <= each.max_concurrent for each in endpoints)
    if not waiting and free:
        return 0.0
    return 1e3 * (UNKNOWN_WAIT_S if wait_s is None else wait_s)


def _hot(endpoints: Sequence[Endpoint]) -> bool:
    return all(THROTTLED in each.health.causes for each in endpoints)
