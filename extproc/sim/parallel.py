"""An engine that takes several prompts side by side: lanes behind one address, each a replica of its own.

Data-parallel ranks or cards behind one port, or slots that each run by themselves: what one lane does costs
the others nothing, or, where `prefill_interference` says so, a share of a prefill that begins beside it.
Owns the lanes, the queue before them and the order of their events. KV memory and prefix cache are one for
all. The rules inside a lane are `replica.py`'s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from random import Random
from typing import Unpack

from extproc.sim.events import (
    Accepted,
    Cancelled,
    Finished,
    FirstToken,
    Overloaded,
    RequestId,
    Resumed,
    SimRequest,
    Stepped,
)
from extproc.sim.fifo import put, rank
from extproc.sim.lora_replica import LoraReplica
from extproc.sim.replica import SimReplica
from extproc.sim.slots import ReplicaConduct, ReplicaLimits
from extproc.sim.timing import Hardware


class ParallelReplica(SimReplica):
    """One simulated replica of `limits.prefill_parallel` lanes, with the interface of `SimReplica`.

    `limits.max_batch_size` sequences are shared out among the lanes; what finds no place waits, first come,
    first served. Where it is not set each request goes to the lane with the fewest.
    """

    def __init__(self, hardware: Hardware, limits: ReplicaLimits, **conduct: Unpack[ReplicaConduct]) -> None:
        super().__init__(hardware, limits, **conduct)
        count, most = limits.prefill_parallel, limits.max_batch_size
        lane_limits = replace(limits, prefill_parallel=1, max_batch_size=most and max(1, most // count))
        self._lane_max = lane_limits.max_batch_size
        self._lanes = [SimReplica(hardware, lane_limits, **_own(conduct)) for _ in range(count)]
        for lane in self._lanes:
            lane.memory, lane.cache = self.memory, self.cache
            if limits.prefill_interference:
                lane.beside = partial(self._beside, lane)
        #: Before the lanes: (request, when it came); a request's lane once it has one.
        self._before: deque[tuple[SimRequest, int]] = deque()
        self._lane_of: dict[RequestId, int] = {}

    @property
    def waiting(self) -> int:
        """Queued requests, before the lanes and in them."""
        return len(self._before) + sum(lane.waiting for lane in self._lanes)

    @property
    def running(self) -> int:
        """Sequences in the lanes' batches."""
        return sum(lane.running for lane in self._lanes)

    @property
    def permits_in_use(self) -> int:
        """Requests accepted and not yet over."""
        return len(self._before) + sum(lane.permits_in_use for lane in self._lanes)

    @property
    def has_room(self) -> bool:
        """As in `SimReplica`, of any lane."""
        if self._before or self.permits_in_use >= self.limits.max_concurrent_requests:
            return False
        return not self._refuse and any(lane.has_room for lane in self._lanes)

    @property
    def steps(self) -> int:
        """Engine steps completed, of all lanes."""
        return sum(lane.steps for lane in self._lanes)

    @property
    def tokens_total(self) -> int:
        """Tokens made since the start."""
        return sum(lane.tokens_total for lane in self._lanes)

    def tokens_made(self, request_id: RequestId) -> int:
        """As in `SimReplica`."""
        at = self._lane_of.get(request_id)
        if at is not None:
            return self._lanes[at].tokens_made(request_id)
        if any(request.request_id == request_id for request, _ in self._before):
            return 0
        raise KeyError(request_id)

    def submit(
        self, request: SimRequest, *, now_ns: int, came_ns: int | None = None
    ) -> Accepted | Overloaded:
        """As in `SimReplica`; ValueError likewise."""
        self._run_to(now_ns)
        if self._refuse or self.permits_in_use >= self.limits.max_concurrent_requests:
            return Overloaded(self.permits_in_use)
        if request.request_id in self._lane_of:
            raise ValueError(f"request id {request.request_id!r} is live")
        entry = (request, now_ns if came_ns is None else came_ns)
        put(self._before, entry, lambda one: rank(self.limits.queue_order, one[0]))
        self._fill(now_ns)
        return Accepted(self.waiting)

    def cancel(self, request_id: RequestId, *, now_ns: int) -> bool:
        """As in `SimReplica`."""
        self._run_to(now_ns)
        at = self._lane_of.get(request_id)
        if at is not None:
            return self._lanes[at].cancel(request_id, now_ns=now_ns)
        for entry in self._before:
            if entry[0].request_id == request_id:
                self._before.remove(entry)
                self._pending.append(Cancelled(request_id, now_ns, 0))
                return True
        return False

    def set_fault(
        self,
        *,
        now_ns: int,
        slowdown: float | None = None,
        hang: bool | None = None,
        refuse: bool | None = None,
    ) -> None:
        """As in `SimReplica`, in every lane."""
        self._run_to(now_ns)
        for lane in self._lanes:
            lane.set_fault(now_ns=now_ns, slowdown=slowdown, hang=hang)
        self._slowdown = self._slowdown if slowdown is None else slowdown
        self._hung = self._hung if hang is None else hang
        self._refuse = self._refuse if refuse is None else refuse

    def next_event_ns(self) -> int | None:
        """As in `SimReplica`."""
        if self._pending:
            return self._now
        return min((at for lane in self._lanes if (at := lane.next_event_ns()) is not None), default=None)

    def _beside(self, lane: SimReplica) -> float:
        """What stretches a prefill that begins in `lane` now; one under way is not stretched by it."""
        others = sum(other.prefilling for other in self._lanes if other is not lane)
        return 1.0 + self.limits.prefill_interference * others

    def _run_to(self, now_ns: int) -> None:
        if now_ns < self._now:
            raise ValueError(f"time ran backwards: {now_ns} after {self._now}")
        while True:
            due = [(at, i) for i, lane in enumerate(self._lanes) if (at := lane.next_event_ns()) is not None]
            if not due or min(due)[0] > now_ns:
                break
            at_ns, number = min(due)
            ended = False
            for event in self._lanes[number].advance(at_ns):
                ended = ended or isinstance(event, Finished | Cancelled)
                if isinstance(event, Finished | Cancelled):
                    self._lane_of.pop(event.request_id, None)
                if isinstance(event, Stepped | FirstToken | Resumed):
                    event = replace(event, lane=number)
                self._pending.append(event)
            if ended:
                self._fill(at_ns)
        self._now = now_ns

    def _fill(self, now_ns: int) -> None:
        """Give lanes with room what waits, and let those look again that waited for memory."""
        while self._before:
            number = min(range(len(self._lanes)), key=lambda i: self._lanes[i].permits_in_use)
            lane = self._lanes[number]
            if self._lane_max is not None and lane.permits_in_use >= self._lane_max:
                break
            request, came_ns = self._before.popleft()
            self._lane_of[request.request_id] = number
            lane.submit(request, now_ns=now_ns, came_ns=came_ns)
        for lane in self._lanes:
            lane.wake(now_ns)


def replica_of(
    hardware: Hardware,
    limits: ReplicaLimits,
    *,
    rng: Random,
    noise: float = 0.0,
    slowdown: float = 1.0,
    step_events: bool = False,
) -> SimReplica:
    """The replica that these limits describe."""
    kind = ParallelReplica if limits.prefill_parallel > 1 else SimReplica
    if limits.adapter_places:
        kind = LoraReplica
    return kind(hardware, limits, rng=rng, noise=noise, slowdown=slowdown, step_events=step_events)


def _own(conduct: ReplicaConduct) -> ReplicaConduct:
    """A lane's, with chance of its own."""
    return {**conduct, "rng": Random(conduct["rng"].random())}
