"""The sequences that decode in one replica, and how far they are.

Owns the step counter, when each sequence makes its last token, the KV tokens attended to, and the run of
decode steps under way. Knows no queue, no prompts, no chance and no events. A join or a leave costs
O(log B), a step or a leap over many O(1): a sequence's tokens follow from the step counter.
"""

from __future__ import annotations

from heapq import heappop, heappush

from extproc.sim.run import DecodeRun
from extproc.sim.slots import Slot, SlotState
from extproc.sim.timing import Hardware


class DecodeBatch:
    """The decoding sequences; `leap` is how many steps the one start under way takes, less those booked."""

    __slots__ = (
        "_ends",
        "_hardware",
        "_run",
        "_serial",
        "kv_tokens",
        "leap",
        "size",
        "steps",
        "tokens_total",
    )

    def __init__(self, hardware: Hardware) -> None:
        self.size = 0
        self.kv_tokens = 0
        self.steps = 0  # completed, those without a decoding sequence included
        self.tokens_total = 0
        self.leap = 1
        self._hardware = hardware
        self._ends: list[tuple[int, int, Slot]] = []  # (step that makes the last token, serial, …)
        self._serial = 0
        self._run: DecodeRun | None = None  # the decode steps so far since the batch changed

    def made(self, sequence: Slot) -> int:
        """Tokens that a decoding sequence made in its slice."""
        return self.steps - sequence.joined_step + 1

    def join(self, sequence: Slot) -> None:
        """Its first token of at least two was made in the step that just ended."""
        sequence.state = SlotState.DECODING
        sequence.joined_step = self.steps
        self._run = None
        self.size += 1
        self.kv_tokens += sequence.input_tokens + 1
        self._serial += 1
        heappush(self._ends, (self.steps + sequence.slice - 1, self._serial, sequence))

    def leave(self, sequence: Slot) -> None:
        """It decodes no longer; the caller sets its state."""
        self._run = None
        self.size -= 1
        self.kv_tokens -= sequence.input_tokens + self.made(sequence)

    def ended(self) -> Slot | None:
        """Take out the next sequence whose slice is complete; None where there is no other."""
        ends = self._ends
        while ends and ends[0][0] <= self.steps:
            sequence = heappop(ends)[2]
            if sequence.state is SlotState.DECODING:  # else cancelled before its end
                self.leave(sequence)
                return sequence
        return None

    def plan(self, *, single: bool) -> int:
        """How many decode steps to take at once: one, or those up to the next sequence's end."""
        if not single:
            ends = self._ends
            while ends[0][2].state is not SlotState.DECODING:
                heappop(ends)
            self.leap = ends[0][0] - self.steps
        return self.leap

    def start(self, now_ns: int, factor: float) -> int:
        """Start the steps planned, each stretched by `factor`; when the last of them ends."""
        run = self._run
        if run is None or run.factor != factor:
            self._run = run = DecodeRun(
                self._hardware,
                self.size,
                kv_tokens=self.kv_tokens,
                factor=factor,
                began_ns=now_ns,
                first_step=self.steps,
            )
        return run.ends_ns(self.steps + self.leap)

    def break_run(self) -> None:
        """The next step does not follow the last as one decode step the other."""
        self._run = None

    def finish(self) -> None:
        """The step, or all that was left of the leap, ended."""
        self._count(self.leap)
        self.leap = 1

    def book(self, now_ns: int) -> None:
        """Count the steps of a leap (of at least 2) under way that have ended."""
        assert self._run is not None, "a leap is over a run"
        done = self._run.steps_at(now_ns) - self.steps
        self._count(done)
        self.leap -= done

    def cut(self) -> int:
        """Leave of a leap (of at least 2, booked up to now) the step under way; when that ends."""
        assert self._run is not None, "a leap is over a run"
        self.leap = 1
        return self._run.ends_ns(self.steps + 1)

    def _count(self, steps: int) -> None:
        self.steps += steps
        tokens = steps * self.size
        self.kv_tokens += tokens
        self.tokens_total += tokens
