"""What one replica has to do: who waits for a first token there, who streams, what memory is promised.

Owns the sums of one endpoint in prefill work, decode work and KV memory, entered and left request by
request: nothing is touched per token. Knows no strategy and no clock. Names of the sums in formulas:
Q `queued`, PN `queued_tokens`, PS `queued_ms`, B `streaming`, K `context_tokens`, V `reserved_tokens`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from typing import NamedTuple

import msgspec

MS_NS = 1_000_000
#: A running stream's expected length is looked up again after this.
LENGTH_REFRESH_NS = 250_000_000
#: TGI reserves KV memory for at most so many output tokens at once (its slice), whatever the limit says.
SLICE_TOKENS = 1024
#: A bin of the residual lengths (predict/lengths.py).
RESIDUAL_BIN_TOKENS = 16
#: The share of a running stream's time to spare that the guard counts on: lengths and steps are guesses.
#: Simulated at .4 to .7: below, more is shed; above, more short answers miss their TPOT.
SPARE_SHARE = 0.5
#: What is no stream has no first token to hear of: after so many times its prediction it counts as running.
UNHEARD_OTHER = 1.0
#: The least that is waited for a first token before that.
UNHEARD_MIN_NS = 100_000_000
#: Requests of an endpoint that are looked through for one that computes a prefix.
SHARERS_LOOKED_AT_MAX = 64
#: Placements whose times are remembered: who came while another waited for its first token.
PLACED_KEPT = 64


class Plan(NamedTuple):
    """What a placement expects of its endpoint. Of this process alone: it does not ride in the ticket.

    Tokens are over all sequences, but `output_tokens`, which is one sequence's. `prefill_ms` is its own
    prefill, `ttft_ms` from dispatch to first token, everything ahead of it included; `tpot_ms` one step
    with it there. `tpot_target_ms` is its class's. `residuals[i]` is the mean of what is left of an
    output after 16·i tokens. A tuple: one is made for each decision, and a frozen class costs three times it.
    """

    uncached_tokens: int
    cached_tokens: int
    prefill_ms: float
    kv_tokens: int
    output_tokens: float
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    tpot_target_ms: float = 100.0
    residuals: Sequence[float] = ()
    prefix: Sequence[int] = ()
    block_tokens: float = 64.0
    #: Nothing else was to be prefilled, or ran, when it was placed: its first token times its prefill.
    alone: bool = False
    #: Nobody waited for a first token, and it is prefilled in one go: of its time to first token all but half
    #: a step is its own prefill.
    next: bool = False
    #: What of `ttft_ms` is the wait for prefills ahead, and what it would be with one prefill at a time.
    wait_ms: float = 0.0
    wait_most_ms: float = 0.0
    #: What its first token waits for is known: what its endpoint holds of its prefix is sure (nothing else of
    #: it was ever given there), and no more wait in its engine than ours.
    sure: bool = True
    #: Tokens of its prefix that were given to its endpoint before, whatever it is taken to hold of them.
    given_tokens: int = 0

    @property
    def latest_ms(self) -> float:
        """Its time to first token, were one prompt prefilled at a time."""
        return self.ttft_ms - self.wait_ms + self.wait_most_ms


class Job:
    """One request on one replica."""

    __slots__ = (
        "ahead",
        "ahead_ms",
        "batch_mark",
        "behind",
        "context_mark",
        "context_tokens",
        "entered",
        "first_ns",
        "interference_mark",
        "length",
        "length_ns",
        "permits",
        "placed_ns",
        "plan",
        "queued",
        "silent",
    )

    def __init__(self, plan: Plan, permits: int, now_ns: int) -> None:
        self.plan = plan
        #: The how-many-th it is that was placed there.
        self.entered = 0
        #: Requests that were to be prefilled before it when it was placed (0 where one of them is not sure
        #: to take as long as was planned), and what was left of that.
        self.ahead = 0
        self.ahead_ms = 0.0
        self.permits = permits
        #: Sequences that were there when it was placed.
        self.behind = 0
        self.placed_ns = now_ns
        self.queued = True
        #: Its first token is to be heard of, and was not, however late it is.
        self.silent = False
        self.first_ns = 0
        #: What it is counted with in `Load.context_tokens`: its prompt and half of what it may write.
        self.context_tokens = 0
        #: Expected tokens in all, as of `length_ns`.
        self.length = plan.output_tokens
        self.length_ns = 0
        #: What had been prefilled, and the integrals, when its first token came.
        self.interference_mark = 0.0
        self.batch_mark = 0
        self.context_mark = 0


class Decoded(msgspec.Struct, frozen=True):
    """How one stream's decode went: what the predictor learns from.

    Means over its life: `batch` sequences and `context_tokens` beside it, itself included;
    `interference_ms` is the prefill of others that came between its tokens.
    """

    elapsed_ms: float
    batch: float
    context_tokens: float
    interference_ms: float


class Load:
    """The sums of one endpoint."""

    __slots__ = (
        "_batch_ns",
        "_context_ns",
        "_ended",
        "_integrated_ns",
        "_pending",
        "_placed_ns",
        "_prefilling_ns",
        "_streams",
        "_tight_stall",
        "_tight_step_ms",
        "_tight_until_ns",
        "_tightest_ms",
        "_unsure",
        "context_tokens",
        "entered",
        "left_ns",
        "next_tightest_ms",
        "prefilled_ms",
        "queued",
        "queued_ms",
        "queued_tokens",
        "reserved_tokens",
        "silent",
        "streaming",
        "taken",
    )

    def __init__(self) -> None:
        #: Requests that were ever placed here.
        self.entered = 0
        self.queued = 0
        self.queued_tokens = 0
        self.queued_ms = 0.0
        self.streaming = 0
        #: Sequences that are here, whether they wait or decode.
        self.taken = 0
        #: Sequences whose first token is to be heard of; and when the last of the others ended.
        self.silent = 0
        self.left_ns = -1
        self.context_tokens = 0
        self.reserved_tokens = 0
        #: Prefill done here, ever, in predicted milliseconds.
        self.prefilled_ms = 0.0
        self._streams: dict[str, Job] = {}
        #: Those that wait for a first token, oldest first; since when the first of them is at work at most.
        self._pending: dict[Job, None] = {}
        self._prefilling_ns = 0
        #: Those of them that may take less than was planned, or more.
        self._unsure = 0
        #: When the last ones were placed; when the last ones ended, and of how many sequences.
        self._placed_ns: deque[int] = deque(maxlen=PLACED_KEPT)
        self._ended: deque[tuple[int, int]] = deque(maxlen=PLACED_KEPT)
        self._batch_ns = self._context_ns = 0
        self._integrated_ns = 0
        self._tightest_ms = math.inf
        #: The same of the stream that has second least to spare, as of the last `tightest_ms`.
        self.next_tightest_ms = math.inf
        self._tight_until_ns = -1
        self._tight_step_ms = 0.0
        self._tight_stall = 1.0

    def enter(self, plan: Plan, permits: int, *, now_ns: int) -> Job:
        """A request is placed here: its prefill is still to do."""
        job = Job(plan, permits, now_ns)
        self.entered += 1
        job.entered = self.entered
        job.behind = self.taken
        self.taken += permits
        self._placed_ns.append(now_ns)
        if self._pending:
            head = next(iter(self._pending))
            done_ms = (now_ns - max(head.placed_ns, self._prefilling_ns)) / MS_NS
            if not self._unsure:
                job.ahead = self.queued
            job.ahead_ms = self.queued_ms - min(done_ms, head.plan.prefill_ms)
        self._pending[job] = None
        self._unsure += not plan.sure
        self.reserved_tokens += plan.kv_tokens
        self.queued += 1
        self.queued_tokens += plan.uncached_tokens
        self.queued_ms += plan.prefill_ms
        self._tight_until_ns = -1
        return job

    def first(self, id: str, job: Job, *, now_ns: int) -> None:  # noqa: A002 (the reservation's own word)
        """Its first token came: from prefill to decode."""
        if not job.queued:
            return
        self._integrate(now_ns)
        self._leave_queue(job)
        self._prefilling_ns = now_ns
        self.prefilled_ms += job.plan.prefill_ms
        job.queued = False
        job.first_ns = job.length_ns = now_ns
        job.interference_mark = self.prefilled_ms
        job.batch_mark, job.context_mark = self._batch_ns, self._context_ns
        plan = job.plan
        job.context_tokens = (
            plan.uncached_tokens + plan.cached_tokens + int(plan.output_tokens * job.permits / 2)
        )
        self.streaming += job.permits
        self.context_tokens += job.context_tokens
        self._streams[id] = job
        self._tight_until_ns = -1

    def awaits(self, job: Job) -> None:
        """Its first token will be heard of."""
        job.silent = True
        self.silent += job.permits

    def heard(self, job: Job) -> None:
        """Its first token was heard of, whatever was taken for true before."""
        if job.silent:
            job.silent = False
            self.silent -= job.permits

    def computing(self, prefix: Sequence[int], blocks: int) -> Job | None:
        """The oldest request here whose prompt begins with so many blocks of a prefix; None without one.

        Of the first SHARERS_LOOKED_AT_MAX: those that wait for their first token, then those that decode.
        """
        last = blocks - 1
        for job in islice(chain(self._pending, self._streams.values()), SHARERS_LOOKED_AT_MAX):
            own = job.plan.prefix
            # Hashes are chained: where one is equal, so are all before it.
            if last < len(own) and own[last] == prefix[last]:
                return job
        return None

    def leave(self, id: str, job: Job, *, now_ns: int) -> Decoded | None:  # noqa: A002
        """It is over, or moved; how its decode went, None where it had no first token."""
        self.reserved_tokens -= job.plan.kv_tokens
        self.taken -= job.permits
        self._ended.append((now_ns, job.permits))
        self._tight_until_ns = -1
        if job.silent:
            # It stays so: its end tells that nobody heard of it.
            self.silent -= job.permits
        else:
            self.left_ns = now_ns
        if job.queued:
            self._leave_queue(job)
            return None
        self._integrate(now_ns)
        del self._streams[id]
        self.streaming -= job.permits
        self.context_tokens -= job.context_tokens
        elapsed_ns = now_ns - job.first_ns
        if elapsed_ns <= 0:
            return None
        return Decoded(
            elapsed_ns / MS_NS,
            (self._batch_ns - job.batch_mark) / elapsed_ns,
            (self._context_ns - job.context_mark) / elapsed_ns,
            max(0.0, self.prefilled_ms - job.interference_mark),
        )

    def tightest_ms(self, step_ms: float, *, now_ns: int, stall: float = 1.0) -> float:
        """The least time that a stall by others' prefill may take without a running stream missing its TPOT.

        `stall` is the share of a prefill that holds up those that decode beside it (predict/admission.py).

        Over streams that can still meet theirs: slack_j = .5·(S_j − step)·(made_j + left_j) −
        stall·(prefill of others since its first token + prefill still queued here). (With (.7·S_j − step)
        in place of .5·(S_j − step) nothing is left to a 70B model, whose step alone takes half of its
        target: 96.6 against 97.6 % attainment, simulated.) Infinite where nothing streams. O(B) after a
        change, else kept for a quarter of a second.
        """
        if (
            now_ns < self._tight_until_ns
            and abs(step_ms - self._tight_step_ms) <= 0.02 * step_ms
            and stall == self._tight_stall
        ):
            return self._tightest_ms
        least = second = math.inf
        done_ms = self.prefilled_ms + self.queued_ms
        for job in self._streams.values():
            if now_ns - job.length_ns > LENGTH_REFRESH_NS:
                _expect(job, stall * (self.prefilled_ms - job.interference_mark), step_ms, now_ns)
            slack_ms = SPARE_SHARE * (job.plan.tpot_target_ms - step_ms) * job.length
            slack_ms -= stall * (done_ms - job.interference_mark)
            if 0.0 <= slack_ms < least:
                least, second = slack_ms, least
            elif least <= slack_ms < second:
                second = slack_ms
        self._tightest_ms, self.next_tightest_ms = least, second
        self._tight_step_ms = step_ms
        self._tight_stall = stall
        self._tight_until_ns = now_ns + LENGTH_REFRESH_NS
        return least

    def joined(self, job: Job, until_ns: int) -> bool:
        """Whether anybody else was placed here after it and until then."""
        later = self.entered - job.entered
        if later >= PLACED_KEPT:
            return True
        return later > 0 and self._placed_ns[-later] <= until_ns

    def beside(self, job: Job, start_ns: int, *, at_end: bool) -> int:
        """The sequences that were placed here before it and had not ended when its prefill began.

        An engine starts them in order: each of them had a slot then. `at_end`: one of those that ended since
        it was placed made room for it, the one next to `start_ns`. 0 where it is not known: of more than
        PLACED_KEPT ends since.
        """
        since = [each for each in self._ended if each[0] > job.placed_ns]
        if len(since) == PLACED_KEPT:
            return 0
        if at_end and since:
            start_ns = min(since, key=lambda each: abs(each[0] - start_ns))[0]
        return job.behind - sum(permits for ended_ns, permits in since if ended_ns <= start_ns)

    def _leave_queue(self, job: Job) -> None:
        del self._pending[job]
        self._unsure -= not job.plan.sure
        self.queued -= 1
        self.queued_tokens -= job.plan.uncached_tokens
        # From nothing again whenever it is empty, so that rounding does not add up.
        self.queued_ms = self.queued_ms - job.plan.prefill_ms if self.queued else 0.0

    def _integrate(self, now_ns: int) -> None:
        passed_ns = now_ns - self._integrated_ns
        if passed_ns > 0:
            self._batch_ns += self.streaming * passed_ns
            self._context_ns += self.context_tokens * passed_ns
            self._integrated_ns = now_ns


def _expect(job: Job, stalled_ms: float, step_ms: float, now_ns: int) -> None:
    """Look a running stream's length up again: what it has made, and the mean of what is left then."""
    job.length_ns = now_ns
    residuals = job.plan.residuals
    if not residuals:
        return
    decoding_ms = (now_ns - job.first_ns) / MS_NS - stalled_ms
    made = max(0, int(decoding_ms / step_ms)) if step_ms > 0 else 0
    job.length = made + residuals[min(made // RESIDUAL_BIN_TOKENS, len(residuals) - 1)]


def unheard_ns(plan: Plan, *, times: float) -> int:
    """How long after its placing a request counts as prefilling while no first token is heard of: so many
    times its prediction, and UNHEARD_MIN_NS at least."""
    return max(UNHEARD_MIN_NS, int(times * plan.latest_ms * MS_NS))
