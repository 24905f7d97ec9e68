"""What a site offers, as it is told to another: small, signed, an answer to one question.

Owns what stands in it, how it is made of the fleet, and what a reader believes of it. Its age is reckoned
from when it was asked for, by the reader's own clock, and the question's name stands in it: so neither an old
one nor a clock that is off can make it look fresh.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Final

import msgspec

from extproc.core.accounts import Price
from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue import FairQueue
from extproc.core.faults import throttle
from extproc.core.fleet import Fleet, Pool
from extproc.core.forecast import forecasts, start_ms
from extproc.core.remote.signing import SiteKey, Untrusted, sign, verify
from extproc.core.work import Work

#: Prompts of so many tokens are told of; between them a reader interpolates.
SIZES: Final = (256, 1_024, 4_096, 16_384, 65_536)
#: Output that is reckoned with beside each of them.
OUTPUT_TOKENS: Final = 256
#: Pools and models that a site tells of, the file's first; and bytes of the whole, which a reader takes.
POOLS_MAX: Final = 64
MODELS_MAX: Final = 256
DIGEST_BYTES_MAX: Final = 128 * 1024
#: No time that is told is longer: an hour.
MS_MAX: Final = 3_600_000.0
ROOM_MAX: Final = 1_000_000
DIGEST: Final = "steersman-digest"


class PoolWord(msgspec.Struct, frozen=True):
    """One pool's offer: `ready` replicas, requests that it has `room` for, when one would begin, its first
    token by the prompt's size (SIZES) and each further one (milliseconds), its price. `hot`: all throttled.
    While there is no room one begins each `turn_ms`, 0 where too few have waited to know.
    """

    models: tuple[str, ...]
    ready: int
    room: int
    begins_ms: float
    first_ms: tuple[float, ...]
    token_ms: float
    input_per_million: float = 0.0
    output_per_million: float = 0.0
    hot: bool = False
    turn_ms: float = 0.0

    def first_of(self, prompt_tokens: int) -> float:
        """The first token of a prompt of so many tokens, in milliseconds: straight lines between SIZES."""
        right = min(max(1, bisect_left(SIZES, prompt_tokens)), len(SIZES) - 1)
        low, high = SIZES[right - 1], SIZES[right]
        at_low, at_high = self.first_ms[right - 1], self.first_ms[right]
        if prompt_tokens <= low:
            return at_low
        return at_low + (at_high - at_low) * (prompt_tokens - low) / (high - low)

    def own_of(self, prompt_tokens: int) -> float:
        """From a prompt's beginning to its first token, in milliseconds."""
        return max(0.0, self.first_of(prompt_tokens) - self.begins_ms)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost there."""
        price = Price(input_per_million=self.input_per_million, output_per_million=self.output_per_million)
        return price.of(input_tokens, output_tokens)


class Digest(msgspec.Struct, frozen=True):
    """A site's word: of whom, for whom, in answer to which question, when by its own clock, and its pools."""

    iss: str
    aud: str
    nonce: str
    at: float
    pools: tuple[PoolWord, ...] = ()

    def of(self, model: str) -> PoolWord | None:
        """The pool that serves a model."""
        return next((pool for pool in self.pools if model in pool.models), None)


_digests = msgspec.json.Decoder(Digest)


def told(
    fleet: Fleet, queue: FairQueue, price: Callable[[str], Price], *, but: Mapping[str, object], now_ns: int
) -> tuple[PoolWord, ...]:
    """What a fleet offers to everybody now, without pools of `but` (other sites) and reserved ones."""
    words: list[PoolWord] = []
    models_left = MODELS_MAX
    for pool in fleet.pools.values():
        if pool.name in but or pool.tenants is not None or len(words) >= POOLS_MAX or models_left <= 0:
            continue
        models = pool.models[:models_left]
        models_left -= len(models)
        words.append(_word(pool, models, queue, price(pool.name), now_ns))
    return tuple(words)


def digest(pools: tuple[PoolWord, ...], key: SiteKey, *, own: str, to: str, nonce: str, now_s: float) -> str:
    """The answer to a site's question."""
    return sign(Digest(iss=own, aud=to, nonce=nonce, at=now_s, pools=pools), key, kind=DIGEST)


def read_digest(
    text: str, keys: Mapping[str, tuple[str, SiteKey]], *, own: str, of: str, nonce: str
) -> Digest:
    """The answer of site `of` to the question of that name. Raises Untrusted."""
    owner, payload = verify(text, keys, kind=DIGEST, bytes_max=DIGEST_BYTES_MAX)
    try:
        found = _digests.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Untrusted("the digest cannot be read; are both sites of one version?") from error
    if owner != of or found.iss != of:
        raise Untrusted(f"the digest is site {owner!r}'s, not {of!r}'s")
    if found.aud != own or found.nonce != nonce:
        raise Untrusted("the digest answers another question")
    if len(found.pools) > POOLS_MAX or not all(_believable(pool) for pool in found.pools):
        raise Untrusted("the digest holds figures that cannot be")
    return found


def _believable(word: PoolWord) -> bool:
    times = (word.begins_ms, word.token_ms, word.turn_ms, *word.first_ms)
    return (
        len(word.first_ms) == len(SIZES)
        and 0 < len(word.models) <= MODELS_MAX
        and all(isfinite(each) and 0.0 <= each <= MS_MAX for each in times)
        and word.ready >= 0
        and 0 <= word.room <= ROOM_MAX
        and isfinite(word.cost(1, 1))
        and word.input_per_million >= 0.0
        and word.output_per_million >= 0.0
    )


def _word(pool: Pool, models: tuple[str, ...], queue: FairQueue, price: Price, now_ns: int) -> PoolWord:
    ready = [each for each in pool.endpoints if each.ready]
    waiting = queue.by_pool_count(pool.name)
    # Of a class that waits behind nobody: what it waits for is the queue as it is.
    one_more_ms = 1e3 * (queue.wait_s(pool.name, 0, now_ns=now_ns) or 0.0)
    wait_ms = one_more_ms if waiting else 0.0
    free = sum(max(0, each.max_concurrent - each.load_permits) for each in ready)
    firsts, tokens = _times(ready)
    begins = min((start_ms(each) for each in ready), default=0.0)
    return PoolWord(
        models=models,
        ready=len(ready),
        room=max(0, min(ROOM_MAX, free - waiting)),
        begins_ms=_bounded(wait_ms + begins),
        first_ms=tuple(_bounded(wait_ms + first) for first in firsts),
        token_ms=_bounded(tokens),
        input_per_million=price.input_per_million,
        output_per_million=price.output_per_million,
        hot=bool(ready) and all(hot(each) for each in ready),
        turn_ms=_bounded(one_more_ms / (1 + waiting)),
    )


def _times(ready: Sequence[Endpoint]) -> tuple[list[float], float]:
    """The best first token by size and the best further one of those that are ready."""
    if not ready:
        return [0.0] * len(SIZES), 0.0
    found = [forecasts(ready, Work(size, OUTPUT_TOKENS)) for size in SIZES]
    return [min(each[0] for each in row) for row in found], min(each[1] for each in found[0])


def hot(endpoint: Endpoint) -> bool:
    """Whether its card is throttled, as its agent says."""
    return endpoint.report is not None and any(throttle(gpu) is not None for gpu in endpoint.report.gpus)


def _bounded(ms: float) -> float:
    return round(min(MS_MAX, max(0.0, ms)), 3)
