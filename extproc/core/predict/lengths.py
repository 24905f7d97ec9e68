"""How many tokens answers have: online histograms by tenant, model and token limit.

Owns the histograms, their forgetting and their bound. Knows nothing of time, prompts or endpoints.

A question climbs a ladder until a rung has seen LEARNED_MIN answers: the tenant's with this model and
limit, then everybody's with them, then the whole pool's; until then the configured prior holds, bent by
the little that was seen.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from math import log1p
from typing import Final

from extproc.core.predict.errors import Errors

#: Bins of 16 tokens up to 1,024, then each as wide as all before it, up to the longest answer counted.
BIN_TOKENS, FINE_TOKENS, LENGTH_MAX = 16, 1_024, 131_072
#: A histogram answers for itself from so many answers on.
LEARNED_MIN: Final = 20.0
#: When so many answers are held, all are halved: the last thousand or so count.
HELD_MAX: Final = 1_024.0
#: Answers that the configured prior weighs.
PRIOR_WEIGHT: Final = 8.0
#: Weight, in answers, of "as long again as the mean" for one that outlives what was seen.
OUTLIVED_WEIGHT: Final = 0.5
#: Sums are made anew once this share of the held answers is newer.
STALE_SHARE: Final = 1.0 / 32.0

#: A curve of residuals is made anew once this share of the held answers is newer.
CURVE_STALE_SHARE: Final = 0.1

_EDGES: Final = [
    *(float(edge) for edge in range(0, FINE_TOKENS + 1, BIN_TOKENS)),
    *(float(FINE_TOKENS << power) for power in range(1, (LENGTH_MAX // FINE_TOKENS).bit_length())),
]
_BINS: Final = len(_EDGES) - 1


def _bin(tokens: int) -> int:
    """The bin of so many tokens, 0 or more; the last for all beyond."""
    if tokens < FINE_TOKENS:
        return tokens // BIN_TOKENS
    return min(bisect_right(_EDGES, tokens), _BINS) - 1


class _Histogram:
    """Counts and token sums by bin, with sums from each bin upwards made when they are asked for."""

    __slots__ = (
        "_above",
        "_counts",
        "_curve",
        "_curve_fresh",
        "_fresh",
        "_tokens",
        "_tokens_above",
        "held",
        "total",
    )

    def __init__(self) -> None:
        self._counts = array("d", bytes(8 * _BINS))
        self._tokens = array("d", bytes(8 * _BINS))
        self._above = self._tokens_above = array("d", bytes(8 * (_BINS + 1)))
        self._fresh = 0.0
        self._curve: Sequence[float] = ()
        self._curve_fresh = 0.0
        self.held = 0.0
        self.total = 0.0

    def saw(self, tokens: int) -> None:
        at = _bin(tokens)
        self._counts[at] += 1.0
        self._tokens[at] += tokens
        self.held += 1.0
        self.total += tokens
        self._fresh += 1.0
        self._curve_fresh += 1.0
        if self.held >= HELD_MAX:
            self._counts = array("d", [count / 2.0 for count in self._counts])
            self._tokens = array("d", [total / 2.0 for total in self._tokens])
            self.held /= 2.0
            self.total /= 2.0
            self._fresh = HELD_MAX

    def _sum(self) -> None:
        """Makes the sums from each bin upwards."""
        above, tokens_above = [0.0] * (_BINS + 1), [0.0] * (_BINS + 1)
        count = tokens = 0.0
        for at in range(_BINS - 1, -1, -1):
            above[at] = count = count + self._counts[at]
            tokens_above[at] = tokens = tokens + self._tokens[at]
        self._above, self._tokens_above, self._fresh = array("d", above), array("d", tokens_above), 0.0

    def quantile(self, q: float) -> float:
        """Tokens that a share `q` of the answers does not exceed, straight within a bin; 0 when empty."""
        if self._fresh > self.held * STALE_SHARE:
            self._sum()
        above = self._above
        left = above[0] * (1.0 - min(max(q, 0.0), 1.0))
        # `above` falls with the bin: the last bin from which more than `left` answers lie upwards.
        low, high = 0, _BINS - 1
        while low < high:
            middle = (low + high + 1) // 2
            if above[middle] > left:
                low = middle
            else:
                high = middle - 1
        inside = above[low] - above[low + 1]
        if inside <= 0.0:
            return 0.0
        share = min(max((above[low] - left) / inside, 0.0), 1.0)
        return _EDGES[low] + share * (_EDGES[low + 1] - _EDGES[low])

    def residual(self, made: int, otherwise: float) -> float:
        """Mean of what follows after `made` tokens; `otherwise` weighs where few went on so long."""
        if self._fresh > self.held * STALE_SHARE:
            self._sum()
        if made >= LENGTH_MAX:
            return otherwise
        at = _bin(made)
        upper = _EDGES[at + 1]
        above = self._above
        beyond = above[at + 1]
        inside = (above[at] - beyond) * (upper - made) / (upper - _EDGES[at])
        count = beyond + inside
        tokens = self._tokens_above[at + 1] - made * beyond + inside * (upper - made) / 2.0
        return (tokens + OUTLIVED_WEIGHT * otherwise) / (count + OUTLIVED_WEIGHT)

    def residuals(self) -> Sequence[float]:
        """The same after every BIN_TOKENS tokens up to FINE_TOKENS."""
        if self._curve_fresh > self.held * CURVE_STALE_SHARE:
            mean = self.total / self.held if self.held else 0.0
            self._curve = array(
                "d", [max(1.0, self.residual(made, mean)) for made in range(0, FINE_TOKENS, BIN_TOKENS)]
            )
            self._curve_fresh = 0.0
        return self._curve


class OutputLengths:
    """The lengths of one pool's answers.

    Keys are (tenant, model, power of two of the limit); at `keys_max` the one that learned least
    recently goes. At most about 4 KiB a key.
    """

    __slots__ = ("_by_key", "_keys_max", "_pool", "_prior_tokens", "errors")

    def __init__(self, prior_tokens: float = 256.0, *, keys_max: int = 4096) -> None:
        self._prior_tokens = min(max(prior_tokens, 1.0), float(LENGTH_MAX))
        self._keys_max = max(keys_max, 0)
        self._pool = _Histogram()
        self._by_key: OrderedDict[tuple[str | None, str, int], _Histogram] = OrderedDict()
        #: Errors of the mean that was expected when each answer ended.
        self.errors = Errors()

    def __len__(self) -> int:
        return len(self._by_key)

    def saw(self, tenant: str, model: str, limit: int | None, tokens: int) -> None:
        """An answer under this limit ended after `tokens`; negative ones are left out, long ones cut."""
        if tokens < 0:
            return
        tokens = min(tokens, LENGTH_MAX)
        self.errors.saw(self.expected(tenant, model, limit), tokens)
        self._pool.saw(tokens)
        by_key, bucket = self._by_key, _bucket(limit)
        for key in ((None, model, bucket), (tenant, model, bucket)):
            held = by_key.get(key)
            if held is None:
                held = by_key[key] = _Histogram()
            else:
                by_key.move_to_end(key)
            held.saw(tokens)
        while len(by_key) > self._keys_max:
            by_key.popitem(last=False)

    def expected(self, tenant: str, model: str, limit: int | None) -> float:
        """Mean tokens of such an answer, at most `limit`."""
        rung = self._rung(tenant, model, limit)
        mean = self._pool_mean() if rung is None else rung.total / rung.held
        return mean if limit is None or mean < limit else float(max(limit, 0))

    def quantile(self, tenant: str, model: str, limit: int | None, q: float) -> float:
        """Tokens that a share `q` of such answers does not exceed, at most `limit`.

        Before enough is learned lengths are taken for exponential: `−mean·ln(1−q)`.
        """
        rung = self._rung(tenant, model, limit)
        if rung is not None:
            tokens = rung.quantile(q)
        elif q < 1.0:
            tokens = min(-self._pool_mean() * log1p(-max(q, 0.0)), float(LENGTH_MAX))
        else:
            tokens = float(LENGTH_MAX)
        return tokens if limit is None or tokens < limit else float(max(limit, 0))

    def residual(self, tenant: str, model: str, limit: int | None, made: int) -> float:
        """Mean tokens yet to come of an answer that has `made`, at least 1, at most what `limit` leaves.

        Before enough is learned lengths have no memory: the mean again (exponential).
        """
        if made < 0:
            made = 0
        rung = self._rung(tenant, model, limit)
        left = self._pool_mean() if rung is None else rung.residual(made, rung.total / rung.held)
        if limit is not None and left > limit - made:
            left = float(limit - made)
        return max(left, 1.0)

    def residuals(self, tenant: str, model: str, limit: int | None) -> Sequence[float]:
        """Mean tokens yet to come after 0, 16, 32 … tokens, the last for all beyond; for many look-ups.

        As `residual` of the pool's model and limit would say; empty before enough is learned. Made anew
        when a tenth of the answers that are held has come since.
        """
        rung = self._rung(tenant, model, limit)
        return () if rung is None else rung.residuals()

    def confidence(self, tenant: str, model: str, limit: int | None) -> float:
        """How far the mean may be trusted for one answer, 0 to 1: evidence, and how narrow lengths are."""
        rung = self._rung(tenant, model, limit)
        if rung is None:
            return 0.0
        median = rung.quantile(0.5)
        spread = (rung.quantile(0.9) - rung.quantile(0.1)) / max(median, BIN_TOKENS)
        return rung.held / (rung.held + LEARNED_MIN) / (1.0 + spread)

    def _rung(self, tenant: str, model: str, limit: int | None) -> _Histogram | None:
        """The nearest histogram that has learned enough; None where even the pool has not."""
        bucket = _bucket(limit)
        get = self._by_key.get
        held = get((tenant, model, bucket))
        if held is not None and held.held >= LEARNED_MIN:
            return held
        held = get((None, model, bucket))
        if held is not None and held.held >= LEARNED_MIN:
            return held
        return self._pool if self._pool.held >= LEARNED_MIN else None

    def _pool_mean(self) -> float:
        pool = self._pool
        return (pool.total + PRIOR_WEIGHT * self._prior_tokens) / (pool.held + PRIOR_WEIGHT)


def _bucket(limit: int | None) -> int:
    """The power of two above the limit; -1 where there is none."""
    return -1 if limit is None else limit.bit_length()
