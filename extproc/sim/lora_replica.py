"""A simulated replica that serves LoRA adapters, as vLLM does.

Owns its places: an adapter is loaded when a request for it is admitted, and the step that admits it takes as
much longer (vLLM loads between two steps, and everybody waits). With every place taken by adapters at work a
request for another one stays in the queue, and those behind it go on. The least recently used goes first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Unpack

from extproc.sim.events import Accepted, Overloaded, RequestId, SimRequest
from extproc.sim.replica import SimReplica
from extproc.sim.slots import ReplicaConduct, ReplicaLimits, Slot, SlotState
from extproc.sim.timing import Hardware


class AdapterPlaces:
    """Which adapters are loaded, and how many requests each has; `loads` and `drops` since the start."""

    def __init__(self, places: int) -> None:
        self._places = places
        #: The least recently used first.
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._running: Counter[str] = Counter()
        self.loads = self.drops = 0

    @property
    def loaded(self) -> tuple[str, ...]:
        """All that are loaded."""
        return tuple(self._loaded)

    @property
    def at_work(self) -> tuple[str, ...]:
        """Those with a request."""
        return tuple(self._running)

    def admits(self, name: str) -> bool:
        """Whether a request for it could begin now; the base ("") needs no place."""
        if not name or name in self._loaded or len(self._loaded) < self._places:
            return True
        return any(not self._running[each] for each in self._loaded)

    def take(self, name: str) -> bool:
        """A request for it begins; whether it had to be loaded for that."""
        if not name:
            return False
        fresh = name not in self._loaded
        if fresh:
            if len(self._loaded) >= self._places:
                del self._loaded[next(each for each in self._loaded if not self._running[each])]
                self.drops += 1
            self.loads += 1
        self._loaded[name] = None
        self._loaded.move_to_end(name)
        self._running[name] += 1
        return fresh

    def leave(self, name: str) -> None:
        """One of its requests is over."""
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]


class LoraReplica(SimReplica):
    """See the module; `limits.adapter_places` of them, each loaded in `limits.adapter_load_ms`."""

    def __init__(self, hardware: Hardware, limits: ReplicaLimits, **conduct: Unpack[ReplicaConduct]) -> None:
        super().__init__(hardware, limits, **conduct)
        self.adapters = AdapterPlaces(limits.adapter_places)
        self._holding: dict[RequestId, str] = {}
        self._load_ns = 0

    def submit(
        self, request: SimRequest, *, now_ns: int, came_ns: int | None = None
    ) -> Accepted | Overloaded:
        """As every replica; it may be admitted past others that wait."""
        self._run_to(now_ns)
        self._cut()
        return super().submit(request, now_ns=now_ns, came_ns=came_ns)

    def _start_step(self, now_ns: int) -> None:
        self._load_ns = 0
        super()._start_step(now_ns)
        if self._load_ns and self._step_ends is not None:
            self._step_ends += self._load_ns

    def _admit(self, now_ns: int, room: int, chunks: list[tuple[Slot, int]]) -> int:
        admitted, places = 0, self._batch_max - self.running
        while room > 0 and admitted < places:
            sequence = self._queue.first(lambda each: self.adapters.admits(each.request.adapter))
            if sequence is None or not self.memory.allocate(sequence):
                break
            self._queue.take(sequence)
            name = sequence.request.adapter
            if self.adapters.take(name):
                self._load_ns += int(self.limits.adapter_load_ms * 1e6)
            if name:
                self._holding[sequence.request.request_id] = name
            sequence.state = SlotState.PREFILLING
            if sequence.admitted_ns < 0:
                sequence.admitted_ns = now_ns
            n = min(room, sequence.left)
            chunks.append((sequence, n))
            room -= n
            self._prefilling.append(sequence)
            admitted += 1
        return admitted

    def _end_slice(self, sequence: Slot, at_ns: int) -> None:
        self._gives(sequence)
        super()._end_slice(sequence, at_ns)

    def _leave(self, sequence: Slot) -> None:
        self._gives(sequence)
        super()._leave(sequence)

    def _gives(self, sequence: Slot) -> None:
        name = self._holding.pop(sequence.request.request_id, "")
        if name:
            self.adapters.leave(name)
