"""What a prefill and a decode step cost on one engine: two affine models.

Owns the arithmetic alone. Knows nothing of where the coefficients come from, of endpoints or of queues.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

#: Work at which speeds are compared: a step of so many sequences, which hold so much context together.
TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS = 16, 16_000


@dataclass(slots=True)
class Timing:
    """Coefficients of one engine, in milliseconds and tokens; none is negative.

    Mutable on purpose: a learner changes the numbers in place, and whoever holds the object sees them.
    The form: `a + b·B + c·K` a decode step, `pa + pb·u + pc·((off+u)² − off²)`
    a prefill.
    """

    decode_base_ms: float
    decode_per_sequence_ms: float
    decode_per_context_token_ms: float
    prefill_base_ms: float
    prefill_per_token_ms: float
    prefill_per_square_ms: float

    def prefill_ms(self, tokens: float, cached: float = 0.0) -> float:
        """Milliseconds to prefill `tokens` uncached tokens behind `cached` ones; below 0 counts as 0.

        `(off+u)² − off²` is computed as `u·(u + 2·off)`, which loses no digits.
        """
        if tokens < 0.0:
            tokens = 0.0
        if cached < 0.0:
            cached = 0.0
        return self.prefill_batch_ms(tokens, tokens * (tokens + cached + cached))

    def prefill_batch_ms(self, tokens: float, squares: float) -> float:
        """The same of several sequences together: all their tokens, and the sum of `(off+u)² − off²`."""
        return (
            self.prefill_base_ms + self.prefill_per_token_ms * tokens + self.prefill_per_square_ms * squares
        )

    def step_ms(self, batch: float, context_tokens: float) -> float:
        """Milliseconds of a decode step of `batch` sequences that hold `context_tokens` together."""
        if batch < 0.0:
            batch = 0.0
        if context_tokens < 0.0:
            context_tokens = 0.0
        return (
            self.decode_base_ms
            + self.decode_per_sequence_ms * batch
            + self.decode_per_context_token_ms * context_tokens
        )

    def scaled(self, *, decode: float, prefill: float) -> Timing:
        """An engine whose steps and whose prefills take so many times as long."""
        a, b, c, pa, pb, pc = astuple(self)
        return Timing(decode * a, decode * b, decode * c, prefill * pa, prefill * pb, prefill * pc)
