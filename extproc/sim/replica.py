"""TGI v3's router and scheduler as a pure state machine over published step times.

Owns the permits, admission from the queue, chunked prefill and the choice of each step; who decodes and
how far is `batch.py`'s, the queue `fifo.py`'s, KV memory `memory.py`'s. Knows no asyncio, no clock (time
is `now_ns` handed in, whole nanoseconds of simulated time), no I/O and no chance but the injected
`Random`: equal calls with equal seeds give equal events, so the HTTP server and the discrete-event
simulation run the very same replica.

The rules, after TGI v3.3 (facts in the contract this project keeps):

- a permit per request, taken before anything else; none free means overloaded;
- the queue is FIFO (unless `queue_order` says otherwise) and stops at the first entry that does not fit;
- the queue also waits while the batch holds `max_batch_size` sequences, where that is set;
- prefill is chunked: a step has `max_batch_prefill_tokens − running` tokens of room for prompts, those
  part-way through first, and the running sequences make a token in the same step;
- a loop is an optional prefill, then a decode step, which admits nobody;
- a generation longer than a slice (1024) gives its KV back and re-enters the queue at its end;
- cancelling is noticed at the sequence's next token; while queued, when the entry reaches the head
  (its permit is free at once).

Unless every step is to be shown (`step_events`), decode steps that change but the step counter are one leap,
up to the next sequence's end; a call from outside that could change them cuts it at the end of the step under
way. Events and times are those of single steps, to the nanosecond.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from random import Random
from sys import maxsize

from extproc.sim.batch import DecodeBatch
from extproc.sim.events import (
    Accepted,
    Cancelled,
    Event,
    Finished,
    FirstToken,
    Overloaded,
    RequestId,
    Requeued,
    Resumed,
    SimRequest,
    Stepped,
)
from extproc.sim.fifo import Fifo
from extproc.sim.memory import Memory
from extproc.sim.slots import ReplicaLimits, Slot, SlotState
from extproc.sim.timing import Hardware

__all__ = ["ReplicaLimits", "SimReplica"]


class SimReplica:
    """One simulated replica. Calls must come with non-decreasing `now_ns` ≥ 0.

    `noise` is the standard deviation of a step's relative length (0 to 0.3), drawn from `rng`. A leap
    over n steps draws once, with noise/√n: its length has about the mean and variance of n single draws,
    but the steps inside share one factor, and a leap cut after k < n of them has the spread k/√n for √k.
    `step_events` adds a `Stepped` per engine step, which a token-streaming shell needs and a
    discrete-event simulation does not; with it there are no leaps.
    """

    def __init__(
        self,
        hardware: Hardware,
        limits: ReplicaLimits,
        *,
        rng: Random,
        noise: float = 0.0,
        slowdown: float = 1.0,
        step_events: bool = False,
    ) -> None:
        if not 0.0 <= noise <= 0.3:
            raise ValueError(f"noise must lie in 0..0.3, not {noise}")
        if slowdown <= 0:
            raise ValueError(f"slowdown must be positive, not {slowdown}")
        self.hardware = hardware
        self.limits = limits
        self.memory = Memory(limits)
        self.cache = self.memory.cache
        self._batch = DecodeBatch(hardware)
        self._batch_max = maxsize if limits.max_batch_size is None else limits.max_batch_size
        self._rng = rng
        self._noise = noise
        self._slowdown = slowdown
        self._refuse = False
        self._hung_left_ns = -1  # what was left of the step when the hang began; −1: not hung
        self._hung = False
        self._step_events = step_events
        #: What stretches a prefill that begins now, where other lanes share its card (parallel.py).
        self.beside: Callable[[], float] | None = None
        # Work.
        self._sequences: dict[RequestId, Slot] = {}
        self._queue = Fifo(limits.queue_order)
        self._fifo = limits.queue_order == "fifo"
        self._prefilling: list[Slot] = []
        self._dropping: list[Slot] = []
        self._permits = 0
        self._blocked: tuple[Slot, int] | None = None
        # The step under way, or the leap.
        self._chunks: list[tuple[Slot, int]] = []
        self._admitted = 0
        self._owes_decode = False
        self._now = 0
        self._step_began = 0
        self._step_ends: int | None = None
        self._pending: list[Event] = []

    # Gauges.

    @property
    def waiting(self) -> int:
        """Queued requests, those whose client left excluded."""
        return self._queue.live

    @property
    def running(self) -> int:
        """Sequences in the batch: prefilling and decoding."""
        return self._batch.size + len(self._prefilling)

    @property
    def permits_in_use(self) -> int:
        """Requests accepted and not yet over."""
        return self._permits

    @property
    def prefilling(self) -> bool:
        """Whether the step under way computes prompts."""
        return bool(self._chunks) and self._step_ends is not None

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do and would start a request now."""
        return not (self.permits_in_use or self._hung or self._refuse)

    @property
    def has_room(self) -> bool:
        """Whether it would prefill a request now: nothing waits, no prompt is computed, a place is free."""
        most = min(self._batch_max, self.limits.max_concurrent_requests)
        busy = self._queue.live or self._prefilling or self._hung or self._refuse
        return not busy and self.permits_in_use < most

    @property
    def kv_used_tokens(self) -> int:
        """KV tokens reserved by the batch plus those in the prefix cache; never above the capacity."""
        return self.memory.used_tokens

    @property
    def batch_current_max_tokens(self) -> int:
        """KV tokens reserved by the running batch (TGI's gauge of that name), cached prefixes excluded."""
        return self.memory.reserved_tokens

    @property
    def steps(self) -> int:
        """Engine steps completed."""
        return self._batch.steps

    @property
    def tokens_total(self) -> int:
        """Tokens made since the start, for cancelled requests too."""
        return self._batch.tokens_total

    @property
    def slowdown(self) -> float:
        """Factor on every step's length."""
        return self._slowdown

    @property
    def hung(self) -> bool:
        """Whether a hang fault is on."""
        return self._hung

    def tokens_made(self, request_id: RequestId) -> int:
        """Tokens made so far for a live request; `KeyError` for an unknown or finished one."""
        return self._made(self._sequences[request_id])

    # Inputs.

    def submit(
        self, request: SimRequest, *, now_ns: int, came_ns: int | None = None
    ) -> Accepted | Overloaded:
        """Take a permit and queue the request; an idle replica starts it at once.

        `came_ns` is when it came, where it waited elsewhere in the engine before. `ValueError` where it
        could never run (it would block the queue for ever) or its id is live: both are the caller's to
        prevent, as TGI's validation does.
        """
        self._run_to(now_ns)
        self.limits.check(request)
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is live")
        if self._refuse or self._permits >= self.limits.max_concurrent_requests:
            return Overloaded(self._permits)
        sequence = Slot(request, now_ns if came_ns is None else came_ns)
        self._sequences[request.request_id] = sequence
        self._permits += 1
        if (not self._queue or not self._fifo) and self.running < self._batch_max:
            self._cut()  # it may be admitted; behind others, or while the batch is full, it is not
        self._queue.push(sequence)
        waiting = self._queue.live
        if self._step_ends is None and not self._hung:
            self._start_step(now_ns)
        return Accepted(waiting)

    def cancel(self, request_id: RequestId, *, now_ns: int) -> bool:
        """Note that the client left; False where the request is unknown or already over."""
        self._run_to(now_ns)
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.cancelled:
            return False
        self._cut()
        sequence.cancelled = True
        if sequence.state is SlotState.QUEUED:
            self._queue.forsake()
            self._leave(sequence)
            self._pending.append(Cancelled(request_id, now_ns, sequence.base))
        else:
            self._dropping.append(sequence)
        return True

    def set_fault(
        self,
        *,
        now_ns: int,
        slowdown: float | None = None,
        hang: bool | None = None,
        refuse: bool | None = None,
    ) -> None:
        """Script a fault; None leaves a setting as it is.

        `slowdown` (> 0) counts from the next step; `hang` freezes the step under way and all after it,
        submissions still queue; `refuse` answers every submission with `Overloaded`.
        """
        self._run_to(now_ns)
        if slowdown is not None:
            if slowdown <= 0:
                raise ValueError(f"slowdown must be positive, not {slowdown}")
            if slowdown != self._slowdown:
                self._cut()
                self._slowdown = slowdown
        if refuse is not None:
            self._refuse = refuse
        if hang is None or hang == self._hung:
            return
        self._hung = hang
        self._cut()
        self._batch.break_run()
        if hang:
            self._hung_left_ns = -1 if self._step_ends is None else self._step_ends - now_ns
            self._step_ends = None
        elif self._hung_left_ns >= 0:
            self._step_ends = now_ns + self._hung_left_ns
        else:
            self._start_step(now_ns)

    def wake(self, now_ns: int) -> None:
        """Memory that others held may be free: an idle replica looks at its queue again."""
        self._run_to(now_ns)
        if self._queue and self._step_ends is None and not self._hung:
            self._start_step(now_ns)

    # Time.

    def next_event_ns(self) -> int | None:
        """When to call `advance` next; None while nothing will happen by itself."""
        if self._pending:
            return self._now
        return self._step_ends

    def advance(self, now_ns: int) -> list[Event]:
        """Run every step that ends by `now_ns`; the events in order, those pending from other calls first."""
        self._run_to(now_ns)
        events, self._pending = self._pending, []
        return events

    def _run_to(self, now_ns: int) -> None:
        if now_ns < self._now:
            raise ValueError(f"time ran backwards: {now_ns} after {self._now}")
        ends = self._step_ends
        while ends is not None and ends <= now_ns:
            self._finish_step(ends)
            self._start_step(ends)
            ends = self._step_ends
        self._now = now_ns
        if self._batch.leap > 1 and now_ns > self._step_began:
            self._batch.book(now_ns)

    def _cut(self) -> None:
        """Let a leap end with the step under way."""
        if self._batch.leap > 1:
            self._step_ends = self._batch.cut()

    def _start_step(self, now_ns: int) -> None:
        """Choose what the next step computes and for how long; idle where there is nothing."""
        batch = self._batch
        room = self.limits.max_batch_prefill_tokens - batch.size
        chunks: list[tuple[Slot, int]] = []
        for sequence in self._prefilling:
            if room <= 0:
                break
            n = min(room, sequence.left)
            chunks.append((sequence, n))
            room -= n
        admitted = 0
        single = self._step_events
        if self._queue and room > 0:
            had_batch = batch.size > 0 or bool(chunks)
            if self._owes_decode and had_batch:
                self._owes_decode = False
                single = True  # the step after it may admit
            else:
                admitted = self._admit(now_ns, room, chunks)
                self._owes_decode = had_batch and admitted > 0
        else:
            self._owes_decode = False
        self._chunks = chunks
        self._admitted = admitted
        self._step_began = now_ns
        if chunks:
            batch.break_run()
            tokens = squares = 0
            for sequence, n in chunks:
                done = sequence.input_tokens - sequence.left
                tokens += n
                squares += n * (2 * done + n)  # (done + n)² − done²
            ms = self.hardware.mixed_ms(tokens, squares, batch.size, batch.kv_tokens)
            if self.beside is not None:
                ms *= self.beside()
            self._step_ends = now_ns + max(1, round(ms * self._factor(1) * 1e6))
        elif batch.size:
            self._step_ends = batch.start(now_ns, self._factor(batch.plan(single=single)))
        else:
            self._step_ends = None

    def _factor(self, steps: int) -> float:
        """What stretches the next `steps` steps together."""
        if not self._noise:
            return self._slowdown
        return self._slowdown * max(0.1, self._rng.gauss(1.0, self._noise / sqrt(steps)))

    def _admit(self, now_ns: int, room: int, chunks: list[tuple[Slot, int]]) -> int:
        """Move entries from the queue's head into the batch until one does not fit; how many."""
        admitted = 0
        queue = self._queue
        memory = self.memory
        places = self._batch_max - self.running
        while room > 0 and admitted < places and (sequence := queue.head()) is not None:
            if self._blocked == (sequence, memory.frees) or not memory.allocate(sequence):
                self._blocked = (sequence, memory.frees)
                break
            queue.pop()
            sequence.state = SlotState.PREFILLING
            if sequence.admitted_ns < 0:
                sequence.admitted_ns = now_ns
            n = min(room, sequence.left)
            chunks.append((sequence, n))
            room -= n
            self._prefilling.append(sequence)
            admitted += 1
        return admitted

    def _finish_step(self, at_ns: int) -> None:
        """Apply the step, or what is left of the leap, that ends at `at_ns`."""
        batch = self._batch
        decoded = batch.size
        batch.finish()
        if self._dropping:
            self._drop(at_ns)
        while (ended := batch.ended()) is not None:
            self._end_slice(ended, at_ns)
        chunks = self._chunks
        joined = [sequence for sequence, n in chunks if sequence.left == n] if chunks else chunks
        batch.tokens_total += len(joined)
        if self._step_events:
            tokens = sum(n for _, n in chunks)
            made = decoded + len(joined)
            self._pending.append(Stepped(at_ns, at_ns - self._step_began, tokens, made, self._admitted))
        if chunks:
            for sequence, n in chunks:
                sequence.left -= n
                if not sequence.left:
                    self._join(sequence, at_ns)
            self._prefilling = [sequence for sequence in self._prefilling if sequence.left]

    def _join(self, sequence: Slot, at_ns: int) -> None:
        """Prefill is done and its token made: start decoding, unless that was all."""
        if sequence.cancelled:  # noticed only now: chunks without a token tell nobody
            self.memory.free(sequence)
            self._leave(sequence)
            self._pending.append(Cancelled(sequence.request.request_id, at_ns, sequence.base + 1))
            return
        if sequence.first_ns < 0:
            sequence.first_ns = at_ns
            self._pending.append(FirstToken(sequence.request.request_id, at_ns, sequence.cached))
        else:
            self._pending.append(Resumed(sequence.request.request_id, at_ns, sequence.base + 1))
        if sequence.slice == 1:
            self._end_slice(sequence, at_ns)
        else:
            self._batch.join(sequence)

    def _end_slice(self, sequence: Slot, at_ns: int) -> None:
        """The slice's last token was made: finish, or give the KV back and queue again."""
        request = sequence.request
        self.memory.free(sequence)
        made = sequence.base + sequence.slice
        if made < request.output_tokens:
            sequence.sliced(made, self.limits.block_tokens)
            self._pending.append(Requeued(request.request_id, at_ns, made))
            self._queue.push(sequence)
            return
        self._leave(sequence)
        self._pending.append(
            Finished(
                request_id=request.request_id,
                at_ns=at_ns,
                prompt_tokens=request.prompt_tokens,
                cached_tokens=sequence.cached,
                output_tokens=made,
                submitted_ns=sequence.submitted_ns,
                admitted_ns=sequence.admitted_ns,
                first_token_ns=sequence.first_ns,
            )
        )

    def _drop(self, at_ns: int) -> None:
        """Let go of cancelled sequences whose token was just made; those still prefilling stay."""
        later: list[Slot] = []
        for sequence in self._dropping:
            if sequence.state is SlotState.DECODING:
                made = self._made(sequence)
                self._batch.leave(sequence)
                self.memory.free(sequence)
                self._leave(sequence)
                self._pending.append(Cancelled(sequence.request.request_id, at_ns, made))
            elif sequence.state is SlotState.PREFILLING:
                later.append(sequence)
        self._dropping = later

    def _leave(self, sequence: Slot) -> None:
        sequence.state = SlotState.GONE
        self._permits -= 1
        del self._sequences[sequence.request.request_id]

    def _made(self, sequence: Slot) -> int:
        if sequence.state is not SlotState.DECODING:
            return sequence.base
        return sequence.base + self._batch.made(sequence)
