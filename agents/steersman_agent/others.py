"""What processes that are no replica's hold and compute on the cards, told apart from the engines' own.

Owns the arithmetic. Pure: readings come in as values. Memory is by the cards' lists of processes, where the
replicas' own are known. Utilisation has no owner in NVML: what a card computes while all its replicas are
idle is others'. While they work the last such figure stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from steersman_agent.figures import GpuFigures, ReplicaView

#: Readings in a row with idle replicas: NVML's figure is of the time before.
IDLE_READINGS_MIN: Final = 3
#: Readings with work after which an old figure says nothing any more.
BUSY_READINGS_MAX: Final = 120


def working(views: Iterable[ReplicaView]) -> dict[str, bool | None]:
    """GPU UUID → whether a replica of ours works on it; None where one does not say."""
    found: dict[str, bool | None] = {}
    for view in views:
        silent = view.running is None and view.waiting is None
        works = None if silent else bool(view.running) or bool(view.waiting)
        for uuid in view.gpu_uuids:
            before = found.get(uuid, False)
            found[uuid] = True if True in (before, works) else None if None in (before, works) else False
    return found


class Others:
    """The cards' other users, from reading to reading."""

    def __init__(self) -> None:
        self._idle: dict[str, int] = {}
        self._busy: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def look(
        self, gpus: Iterable[GpuFigures], own_pids: frozenset[int] | None, works: Mapping[str, bool | None]
    ) -> tuple[GpuFigures, ...]:
        """A reading of all cards with what others use filled in; `own_pids` None: not known."""
        return tuple(self._one(gpu, own_pids, works) for gpu in gpus)

    def _one(
        self, gpu: GpuFigures, own_pids: frozenset[int] | None, works: Mapping[str, bool | None]
    ) -> GpuFigures:
        # Slices do not disturb each other; cards without a replica of ours are nobody's business.
        if gpu.mig_devices or gpu.uuid not in works or gpu.lost:
            return gpu
        strangers = None if own_pids is None else [each for each in gpu.processes if each.pid not in own_pids]
        memory = None if strangers is None else sum(each.memory_bytes or 0 for each in strangers)
        return replace(
            gpu,
            memory_others_bytes=memory,
            utilization_others_percent=0 if strangers == [] else self._computed(gpu, works[gpu.uuid]),
        )

    def _computed(self, gpu: GpuFigures, works: bool | None) -> int | None:
        uuid = gpu.uuid
        if works is False and gpu.utilization_percent is not None:
            self._idle[uuid], self._busy[uuid] = self._idle.get(uuid, 0) + 1, 0
            if self._idle[uuid] >= IDLE_READINGS_MIN:
                self._seen[uuid] = gpu.utilization_percent
        else:
            self._idle[uuid], self._busy[uuid] = 0, self._busy.get(uuid, 0) + 1
            if self._busy[uuid] > BUSY_READINGS_MAX:
                self._seen.pop(uuid, None)
        return self._seen.get(uuid)
