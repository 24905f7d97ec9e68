"""Runs a pure replica against a real, scaled clock on one event loop.

Owns the mapping from loop time to simulated nanoseconds, the one timer a replica needs, and who waits
for which request. Knows no HTTP. The rules are all `replica.py`'s: this only says when, and to whom.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from extproc.sim.events import (
    Cancelled,
    Finished,
    FirstToken,
    Overloaded,
    RequestId,
    Requeued,
    Resumed,
    SimRequest,
    Stepped,
)
from extproc.sim.metrics import SimMetrics
from extproc.sim.parallel import replica_of
from extproc.sim.protocol import PlannedAnswer, SimError, overloaded
from extproc.sim.spec import ReplicaSpec

KEEP_ALIVE_S = 15.0


class EngineJob:
    """One request in flight: how far it is, and a way to wait for more."""

    __slots__ = (
        "_waiter",
        "finished",
        "keep_alive",
        "lane",
        "made",
        "plan",
        "request_id",
        "streaming",
        "woken_at_s",
    )

    def __init__(self, request_id: int, plan: PlannedAnswer, *, streaming: bool, now_s: float) -> None:
        self.request_id = request_id
        self.plan = plan
        self.streaming = streaming
        self.made = 0
        self.lane = 0
        self.finished: Finished | None = None
        self.keep_alive = False
        self.woken_at_s = now_s
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let the waiting handler look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def changed(self) -> None:
        """Until something happened; the caller checks what, so spurious wakes are fine."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def end(self) -> Finished:
        """Until the last token."""
        while self.finished is None:
            await self.changed()
        return self.finished


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """Where one request's time went; seconds of wall time."""

    validation_s: float
    queue_s: float
    inference_s: float


class SimEngine:
    """One replica, live. Use from its event loop's thread only; `close` when done."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self.metrics = SimMetrics(
            max_input_tokens=spec.max_input_tokens, max_total_tokens=spec.max_total_tokens
        )
        self.replica = replica_of(
            spec.timing(),
            spec.limits(),
            rng=Random(f"{spec.seed}/{spec.name}/noise"),
            noise=spec.noise,
            slowdown=spec.slowdown,
            step_events=True,
        )
        self.served = 0
        self.cancelled = 0
        self.cached_prompt_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._origin_s = self._loop.time()
        self._ns_per_s = 1e9 * spec.time_scale
        self._jobs: dict[RequestId, EngineJob] = {}
        self._streaming: dict[RequestId, EngineJob] = {}  # decoding now, and somebody reads token by token
        self._next_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = -1
        self._closed = False
        self._keep_alive_timer = self._loop.call_later(KEEP_ALIVE_S / 3, self._keep_alive)
        self._stall_timer: asyncio.TimerHandle | None = None
        if spec.stall_s:
            self._stall_in(spec.stall_every_s - spec.stall_s, hang=True)

    def close(self) -> None:
        """Stop the timers; jobs in flight are never woken again. Safe to call twice."""
        self._closed = True
        self._keep_alive_timer.cancel()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def has_permit(self) -> bool:
        """Whether a request would get a permit now; TGI takes it before it validates."""
        return self.replica.permits_in_use < self.spec.max_concurrent_requests

    def submit(self, plan: PlannedAnswer, *, streaming: bool) -> EngineJob:
        """Queue a request; `SimError` 429 where the replica is overloaded."""
        self._next_id += 1
        request_id = self._next_id
        request = SimRequest(
            request_id=request_id,
            prompt_tokens=plan.prompt_tokens,
            output_tokens=plan.output_tokens,
            max_new_tokens=plan.max_new_tokens,
            blocks=plan.blocks,
            sliced=plan.sliced,
        )
        answer = self.replica.submit(request, now_ns=self._now_ns())
        if isinstance(answer, Overloaded):
            self._pump()
            raise overloaded()
        job = EngineJob(request_id, plan, streaming=streaming, now_s=self._loop.time())
        self._jobs[request_id] = job
        metrics = self.metrics
        metrics.input_length.saw(plan.prompt_tokens)
        metrics.max_new_tokens.saw(plan.max_new_tokens)
        self._pump()
        return job

    def abandon(self, job: EngineJob) -> None:
        """The client left; permit and KV go at the job's next token. Harmless after the end."""
        if self._jobs.pop(job.request_id, None) is None:
            return
        self._streaming.pop(job.request_id, None)
        self.replica.cancel(job.request_id, now_ns=self._now_ns())
        self._pump()

    def set_fault(
        self, *, slowdown: float | None = None, hang: bool | None = None, refuse: bool | None = None
    ) -> None:
        """See `SimReplica.set_fault`."""
        self.replica.set_fault(now_ns=self._now_ns(), slowdown=slowdown, hang=hang, refuse=refuse)
        self._pump()

    def settle(self) -> None:
        """Bring the replica up to now, so that its gauges can be read."""
        self._pump()

    def timing(self, finished: Finished, *, validation_s: float) -> RequestTiming:
        """A finished request's times as its client felt them."""
        scale = self._ns_per_s
        inference_ns = finished.prefill_ns + finished.decode_ns
        return RequestTiming(validation_s, finished.queue_ns / scale, inference_ns / scale)

    def _now_ns(self) -> int:
        return int((self._loop.time() - self._origin_s) * self._ns_per_s)

    def _pump(self) -> None:
        """Hand out all that has happened by now and set the timer for what comes next."""
        replica = self.replica
        streaming = self._streaming
        events = replica.advance(self._now_ns())
        for event in events:
            if isinstance(event, Stepped):
                self._count_step(event)
                for job in streaming.values():
                    if job.lane == event.lane:
                        job.made += 1
            elif isinstance(event, FirstToken | Resumed):
                joined = self._jobs.get(event.request_id)
                if joined is not None and joined.streaming:
                    joined.made += 1
                    joined.lane = event.lane
                    streaming[joined.request_id] = joined
            elif isinstance(event, Requeued):
                parted = streaming.pop(event.request_id, None)
                if parted is not None:
                    parted.made = event.tokens_made
                    parted.wake()
            elif isinstance(event, Finished):
                self._finish(event)
            elif isinstance(event, Cancelled):
                self.cancelled += 1
                self.metrics.failures["dropped"] += 1
        if events and streaming:
            now_s = self._loop.time()
            for job in streaming.values():
                job.woken_at_s = now_s
                job.wake()
        self._set_timer()

    def _finish(self, event: Finished) -> None:
        self.served += 1
        self.cached_prompt_tokens += event.cached_tokens
        job = self._jobs.pop(event.request_id, None)
        if job is None:
            return
        self._streaming.pop(job.request_id, None)
        job.made = event.output_tokens
        job.finished = event
        job.wake()

    def _count_step(self, event: Stepped) -> None:
        self.metrics.stepped(
            method="prefill" if event.prefill_tokens else "decode",
            duration_s=event.duration_ns / self._ns_per_s,
            admitted=event.admitted,
            concatenated=event.batch > event.admitted,
        )

    def _set_timer(self) -> None:
        due_ns = self.replica.next_event_ns()
        timer = self._timer
        if timer is not None:
            if due_ns == self._timer_ns:
                return
            timer.cancel()
            self._timer = None
        if due_ns is not None and not self._closed:
            self._timer_ns = due_ns
            self._timer = self._loop.call_at(self._origin_s + due_ns / self._ns_per_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _stall_in(self, seconds: float, *, hang: bool) -> None:
        """Hang, or go on, after so many simulated seconds; and so on for ever."""

        def turn() -> None:
            self.set_fault(hang=hang)
            spec = self.spec
            self._stall_in(spec.stall_s if hang else spec.stall_every_s - spec.stall_s, hang=not hang)

        self._stall_timer = self._loop.call_later(seconds * 1e9 / self._ns_per_s, turn)

    def _keep_alive(self) -> None:
        """Mark streams that have been silent for long: their handlers send a comment."""
        now_s = self._loop.time()
        self._keep_alive_timer = self._loop.call_later(KEEP_ALIVE_S / 3, self._keep_alive)
        for job in self._jobs.values():
            if job.streaming and now_s - job.woken_at_s >= KEEP_ALIVE_S:
                job.woken_at_s = now_s
                job.keep_alive = True
                job.wake()


def validation_error(error: SimError, metrics: SimMetrics) -> SimError:
    """Count an error where TGI counts it and hand it on."""
    if error.metric is not None:
        metrics.failures[error.metric] += 1
    return error
