"""How long one engine step takes on a named piece of hardware.

Owns the published timing models and KV capacities; the arithmetic is the predictor's, the coefficients are
not. Knows no clock, no chance, no scheduler. Label what comes out "simulated; timings from splitwise-sim /
vidur".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from extproc.core.predict.timing import Timing

TIMING_LABEL: Final = "simulated; timings from splitwise-sim / vidur"

SPLITWISE: Final = "splitwise-sim traces/splitwise_perf_model.csv.gz (MIT), least-squares fits"
VIDUR: Final = "vidur's measured linear operators plus analytic attention; no host overhead inside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One GPU group serving one model, as it truly is: the predictor learns it, and may be wrong about it.

    All times are milliseconds, all sizes tokens. `timing` has the predictor's form (core/predict/timing.py)
    and this hardware's own coefficients. What that form has no word for is ours alone: a prefill by a table
    of `(tokens, ms)`, interpolated linearly, where the source gives points; a floor under it; `overhead_ms`,
    host work added to every step; a step that prefills and decodes. KV capacities are right within 10 %.
    """

    name: str
    source: str
    kv_capacity_tokens: int
    #: Of a mutable class, but constant here.
    timing: Timing = field(hash=False)
    prefill_floor_ms: float = 0.0
    prefill_table: tuple[tuple[int, float], ...] = ()
    overhead_ms: float = 0.0

    def with_overhead(self, overhead_ms: float) -> Hardware:
        """The same hardware under a host that adds `overhead_ms` to every step."""
        return replace(self, overhead_ms=overhead_ms)

    def prefill_ms(self, n: int, context: int = 0) -> float:
        """Time to prefill `n` tokens of one sequence behind `context` tokens already in its cache."""
        return self.prefill_batch_ms(n, (context + n) ** 2 - context**2)

    def prefill_batch_ms(self, n: int, squares: int) -> float:
        """Time to prefill `n` tokens together; overhead included.

        `squares` is the sum over sequences of `(context + n)² − context²`, the attention work. The
        splitwise fits are linear (or a table) in `n` and ignore it: their attention is inside the fit
        at context 0, so late chunks of a long prompt come out somewhat too cheap there.
        """
        if self.prefill_table:
            ms = _interpolate(self.prefill_table, n)
        else:
            ms = self.timing.prefill_batch_ms(n, squares)
        return max(ms, self.prefill_floor_ms) + self.overhead_ms

    def decode_ms(self, batch: int, kv_tokens: int) -> float:
        """Time for one decode step of `batch` sequences holding `kv_tokens` in all; overhead included."""
        return self.timing.step_ms(batch, kv_tokens) + self.overhead_ms

    def mixed_ms(self, n: int, squares: int, batch: int, kv_tokens: int) -> float:
        """Time for a prefill that also advances `batch` running sequences by one token.

        Ours, not published: the prefill already reads the weights, so running sequences add only
        their marginal terms b·B + c·K.
        """
        at = self.timing
        return (
            self.prefill_batch_ms(n, squares)
            + at.decode_per_sequence_ms * batch
            + at.decode_per_context_token_ms * kv_tokens
        )


def _interpolate(table: tuple[tuple[int, float], ...], n: int) -> float:
    """Linear between points, and along the first and last segment outside them."""
    at = min(max(bisect_right(table, (n, 0.0)), 1), len(table) - 1)
    (x0, y0), (x1, y1) = table[at - 1], table[at]
    return y0 + (y1 - y0) * (n - x0) / (x1 - x0)


_ALL: Final = (
    Hardware(
        name="a100-80g/llama-3-8b",
        source=VIDUR,
        kv_capacity_tokens=450_000,
        timing=Timing(9.8, 0.029, 9.2e-5, 6.9, 0.0669, 1.7e-6),
        overhead_ms=2.0,
    ),
    Hardware(
        name="h100-80g/llama-3-8b",
        source=VIDUR,
        kv_capacity_tokens=450_000,
        timing=Timing(6.0, 0.0118, 5.6e-5, 3.1, 0.0220, 6e-7),
        overhead_ms=2.0,
    ),
    Hardware(
        name="h100-tp4/llama-2-70b",
        source=SPLITWISE,
        kv_capacity_tokens=485_000,
        timing=Timing(28.7, 0.281, 0.000123, 16.0, 0.1055, 0.0),
        prefill_floor_ms=50.0,
    ),
    Hardware(
        name="h100-tp8/llama-2-70b",
        source=SPLITWISE,
        kv_capacity_tokens=1_400_000,
        timing=Timing(29.6, 0.202, 0.000218, 3.6, 0.0952, 0.0),
        prefill_floor_ms=50.0,
    ),
    # Below 512 tokens the tables run to nothing, which no forward pass does: the floor is one decode
    # step's weights (ours, not published).
    Hardware(
        name="a100-tp4/llama-2-70b",
        source=SPLITWISE,
        kv_capacity_tokens=485_000,
        timing=Timing(42.9, 0.186, 0.000479, 0.0, 0.0, 0.0),
        prefill_floor_ms=42.9,
        prefill_table=((512, 127), (1024, 247), (2048, 427), (4096, 1069), (8192, 2620), (16384, 5132)),
    ),
    Hardware(
        name="a100-tp8/llama-2-70b",
        source=SPLITWISE,
        kv_capacity_tokens=1_400_000,
        timing=Timing(43.6, 0.197, 0.000414, 0.0, 0.0, 0.0),
        prefill_floor_ms=43.6,
        prefill_table=((512, 93), (1024, 161), (2048, 283), (4096, 708), (8192, 1781), (16384, 3525)),
    ),
)

HARDWARE: Final[Mapping[str, Hardware]] = MappingProxyType({hardware.name: hardware for hardware in _ALL})


def hardware_named(name: str) -> Hardware:
    """The registered hardware; `ValueError` naming the known ones where there is none."""
    try:
        return HARDWARE[name]
    except KeyError:
        known = ", ".join(sorted(HARDWARE))
        raise ValueError(f"unknown hardware {name!r}; known: {known}") from None
