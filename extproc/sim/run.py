"""When the steps of a run of decode steps end, in closed form.

A run is decode steps over one batch: nobody joins or leaves, so each step finds `batch` KV tokens more
than the one before, and the step times sum to a quadratic in their number. Owns that arithmetic and its
rounding to whole nanoseconds. Knows no scheduler, no chance and no events.

Single-stepping and jumping read their times from the same formula and the same start, so they agree to
the nanosecond.
"""

from __future__ import annotations

from math import sqrt

from extproc.sim.timing import Hardware


class DecodeRun:
    """Decode steps numbered from `first_step + 1`, back to back from `began_ns` on.

    `kv_tokens` is what the batch holds in the first of them, `factor` (> 0) stretches them all.
    """

    __slots__ = ("_growth_ns", "_step_ns", "began_ns", "factor", "first_step")

    def __init__(
        self,
        hardware: Hardware,
        batch: int,
        *,
        kv_tokens: int,
        factor: float,
        began_ns: int,
        first_step: int,
    ) -> None:
        self.factor = factor
        self.began_ns = began_ns
        self.first_step = first_step
        ns = factor * 1e6
        self._step_ns = hardware.decode_ms(batch, kv_tokens) * ns
        self._growth_ns = hardware.timing.decode_per_context_token_ms * batch * ns / 2

    def ends_ns(self, step: int) -> int:
        """When step number `step` ends: T(j) = j·s + g·j·(j − 1) after the start, j of them done.

        `s` is the first step's time, `2g` what each grows by; never under 1 ns a step.
        """
        count = step - self.first_step
        ns = round(count * (self._step_ns + self._growth_ns * (count - 1)))
        return self.began_ns + max(ns, count)

    def steps_at(self, now_ns: int) -> int:
        """The number of the last step that has ended by `now_ns` ≥ `began_ns`."""
        elapsed_ns = now_ns - self.began_ns
        # The root of T(j) = elapsed, in the form that needs no division by the growth (which may be 0).
        slope = self._step_ns - self._growth_ns
        divisor = slope + sqrt(slope * slope + 4 * self._growth_ns * elapsed_ns)
        count = elapsed_ns  # as many as there can be
        if divisor > 0:
            count = min(count, int(2 * elapsed_ns / divisor))
        step = self.first_step + count
        # Rounding leaves the root one off at most.
        while self.ends_ns(step + 1) <= now_ns:
            step += 1
        while self.ends_ns(step) > now_ns:
            step -= 1
        return step
