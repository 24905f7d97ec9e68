"""Judges whether a replica generates: by its counters while there is traffic, by prompts when not.

Owns when to send the light prompt, what its answer means, and the replica's own custom (`Baseline`).
Pure: seconds are handed in, replies come as values.

With work in flight a counter that stands still for a timeout is as good as a prompt that is not
answered, and costs the engine nothing; prompts are for idle replicas and for those found wanting. How long
an engine's counters may stand still is learnt from those that went on: a step with a long prompt's prefill
in it takes seconds (a real vLLM on a busy machine was called hung six times in a minute).
"""

from __future__ import annotations

from typing import Final

from steersman_agent.reply import PageReply, Reply
from steersman_agent.state import Channel, ReplicaState, Symptom

#: A prompt is slow above this many times the replica's custom, and this much above it at least.
SLOW_FACTOR, SLOW_MARGIN_MS = 3.0, 100.0
#: Prompts before the custom is known.
BASELINE_PROMPTS_MIN: Final = 3
#: Weight of a new time in the custom; a slow one counts less, so trouble does not become the custom.
BASELINE_WEIGHT, BASELINE_WEIGHT_SLOW = 0.2, 0.01
#: While a replica is degraded or hung: the first and the longest pause between prompts. A hung engine
#: may hold a permit for every prompt that we gave up on, so the pause grows.
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 5.0
#: A stillness that ended by itself is this engine's way (the prefill of a long prompt is one step): shorter
#: ones say nothing. It counts up to so many seconds, and with each further move for this share of it.
STILL_S_MAX, STILL_KEPT = 10.0, 0.999
#: 4xx that do tell of the engine's health: timeout, failed generation (TGI), overload. The others say
#: that it will not have such a prompt (a key is wanted, no such route): that is our business.
TELLING_4XX: Final = frozenset({408, 424, 429})


class Baseline:
    """How long the prompt takes on this replica by custom, milliseconds."""

    __slots__ = ("_count", "ms")

    def __init__(self) -> None:
        self.ms: float | None = None
        self._count = 0

    def slow(self, ms: float) -> bool:
        """Whether a time is far above the custom; the time then joins it."""
        if self.ms is None:
            self.ms, self._count = ms, 1
            return False
        known = self._count >= BASELINE_PROMPTS_MIN
        slow = known and ms > max(SLOW_FACTOR * self.ms, self.ms + SLOW_MARGIN_MS)
        if known:
            weight = BASELINE_WEIGHT_SLOW if slow else BASELINE_WEIGHT
            self.ms += weight * (ms - self.ms)
        else:
            self.ms = min(self.ms, ms)  # the first prompts after a start are slow ones
        self._count += 1
        return slow


class Prober:
    """The generation channel of one replica. `interval_s` 0: no prompts, counters only."""

    def __init__(self, *, interval_s: float, timeout_s: float) -> None:
        self.channel = Channel("generation")
        self.baseline = Baseline()
        self.ttft_ms: float | None = None
        self.answered_s: float | None = None
        self.failures = 0
        #: The status with which the engine will not have our prompt, if so.
        self.unwanted: int | None = None
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._progress: tuple[float, ...] = ()
        self._work = False
        self._moves = 0
        self._moves_at_begin: int | None = None  # not None: a prompt is in flight
        self._evidence_s = float("-inf")
        self._still_since_s: float | None = None
        #: When its counters last moved or its work arrived, and how long they have stood still and gone on.
        self._moved_s = 0.0
        self._stood_s = 0.0
        self._not_before_s = 0.0
        self._pause_s = RETRY_FIRST_S

    def reset(self, now_s: float) -> None:
        """The process is another one now; its custom stays, as the hardware does."""
        self.channel.reset(now_s)
        self._progress, self._work, self._still_since_s = (), False, None
        self._evidence_s, self._not_before_s, self._pause_s = float("-inf"), 0.0, RETRY_FIRST_S

    def observe(self, progress: tuple[float, ...], now_s: float, *, work: bool) -> bool:
        """Take a reading of the counters; whether they moved."""
        moved = bool(progress) and bool(self._progress) and progress != self._progress
        # What arrived since the last reading has not stood still since then.
        arrived, had_work = work and not self._work, self._work
        self._progress, self._work = progress, work
        if moved:
            self._moves += 1
            self._evidence_s = now_s
            self.channel.feed(Symptom.MOVED, now_s)
            if had_work:
                stood_s = min(now_s - self._moved_s, STILL_S_MAX)
                self._stood_s = max(STILL_KEPT * self._stood_s, stood_s)
        if moved or arrived or not work or not progress or self._still_since_s is None:
            self._still_since_s = self._moved_s = now_s
        elif now_s - self._still_since_s >= max(self._timeout_s, self._stood_s):
            # A reading tells of one silence at most, however long we have not looked.
            self._still_since_s = now_s
            still_ms = (now_s - self._moved_s) * 1000
            self.channel.feed(
                Symptom.TIMED_OUT, now_s, f"work in flight, and no counter moved for {still_ms:.0f} ms"
            )
        return moved

    def due(self, now_s: float) -> bool:
        """Whether to send the prompt now."""
        if self._interval_s <= 0 or self._moves_at_begin is not None or now_s < self._not_before_s:
            return False
        if self.channel.state is ReplicaState.DEGRADED:
            return True  # it has to show that it can, traffic or not
        if self._work and self._progress:
            return False  # `observe` judges
        return (
            self.channel.heading
            or self.channel.state is ReplicaState.HUNG
            or now_s - self._evidence_s >= self._interval_s
        )

    def begin(self) -> None:
        """The prompt is sent."""
        self._moves_at_begin = self._moves

    def finish(self, reply: Reply, now_s: float) -> None:
        """The prompt came back."""
        moved_meanwhile, self._moves_at_begin = self._moves != self._moves_at_begin, None
        if isinstance(reply, PageReply) and reply.good:
            self.ttft_ms, self.answered_s, self.failures = reply.elapsed_s * 1000, now_s, 0
            self._evidence_s, self._pause_s = now_s, RETRY_FIRST_S
            # Beside other work a prompt is slower by right: it neither shows trouble nor cures it.
            slow = not self._work and self.baseline.slow(self.ttft_ms)
            detail = f"a prompt took {self.ttft_ms:.0f} ms, by custom {self.baseline.ms or 0:.0f} ms"
            self.channel.feed(Symptom.SLOW if slow else Symptom.ANSWERED, now_s, detail)
            self._not_before_s = now_s + (
                RETRY_FIRST_S if self.channel.state is ReplicaState.DEGRADED else 0.0
            )
            return
        if isinstance(reply, PageReply) and 400 <= reply.status < 500 and reply.status not in TELLING_4XX:
            self.unwanted, self._evidence_s = reply.status, now_s  # asked again by the interval
            return
        # Refusing while it is full is right, and so is being late while others are served.
        if isinstance(reply, PageReply):
            signal = None if reply.status == 429 and self._work else Symptom.UNWELL
            detail = f"a prompt was answered with status {reply.status}"
        else:
            late = reply.signal is Symptom.TIMED_OUT and moved_meanwhile
            signal = None if late or reply.signal is Symptom.REFUSED else reply.signal
            detail = f"a prompt: {reply.detail}"
        if signal is not None:
            self.failures += 1
            self.channel.feed(signal, now_s, detail)
        if signal is not None and self.channel.heading:
            self._not_before_s = now_s  # make sure at once
        else:
            self._not_before_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)
