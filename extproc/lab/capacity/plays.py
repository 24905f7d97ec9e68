"""Plays fleets of one scene, side by side in processes.

Owns the processes. Each is given the scene once; what crosses afterwards is a choice, a seed, and figures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from extproc.lab.capacity.choice import FleetChoice, planned
from extproc.lab.capacity.figures import FleetFigures, PlayedFleet, gathered, play_fleet
from extproc.lab.replay.rebuild import Scene
from extproc.lab.workers import worker_pool

if TYPE_CHECKING:
    from multiprocessing.pool import Pool

#: Worker processes at the most.
WORKERS_MAX: Final = 64
#: Told of each play that has ended.
PlayTold = Callable[[str], None]

#: A worker's own: the scene and prices that it was started with.
_GIVEN: dict[str, tuple[Scene, Mapping[str, float]]] = {}


class FleetPlays:
    """Plays choices of one scene; a context, which ends its processes. `workers` 0 is one a core."""

    def __init__(
        self,
        scene: Scene,
        *,
        seeds: Sequence[int],
        prices: Mapping[str, float] | None = None,
        workers: int = 0,
        told: PlayTold | None = None,
    ) -> None:
        # Rows are not played, and are most of what would be copied.
        self.scene, self.seeds, self.prices = replace(scene, rows=()), tuple(seeds), dict(prices or {})
        self._workers = min(workers or os.cpu_count() or 1, WORKERS_MAX)
        self._told = told
        self._pool: Pool | None = None
        self._known: dict[FleetChoice, FleetFigures] = {}

    def __enter__(self) -> Self:
        if self._workers > 1:
            self._pool = worker_pool(self._workers, _take, (self.scene, self.prices))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    @property
    def played(self) -> int:
        """Fleets that were played."""
        return len(self._known)

    def figures(self, choices: Sequence[FleetChoice]) -> list[FleetFigures]:
        """Each choice's figures, in their order; what was played before is not played again.

        Raises LogError for a choice that cannot be simulated, before any is.
        """
        fleets = {each: planned(self.scene, each, self.prices) for each in choices if each not in self._known}
        jobs = [(choice, seed) for choice in fleets for seed in self.seeds]
        plays: dict[FleetChoice, list[PlayedFleet]] = {}
        results: Iterable[PlayedFleet]
        if self._pool is None:
            results = (play_fleet(fleets[choice], seed=seed) for choice, seed in jobs)
        else:
            results = self._pool.imap(_play, jobs)
        for (choice, seed), found in zip(jobs, results, strict=True):
            plays.setdefault(choice, []).append(found)
            if self._told is not None:
                self._told(f"{choice.name}, seed {seed}: {found.attainment:.1%}")
        for choice, own in plays.items():
            self._known[choice] = gathered(fleets[choice], own)
        return [self._known[each] for each in choices]


def _take(scene: Scene, prices: Mapping[str, float]) -> None:
    _GIVEN["scene"] = (scene, prices)


def _play(job: tuple[FleetChoice, int]) -> PlayedFleet:
    choice, seed = job
    scene, prices = _GIVEN["scene"]
    return play_fleet(planned(scene, choice, prices), seed=seed)
