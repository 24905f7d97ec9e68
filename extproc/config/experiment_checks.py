"""What is wrong with a file's experiments, across its sections."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.experiments import ArmConfig, ExperimentShadow
from extproc.config.locations import Loc
from extproc.config.model import Config
from extproc.config.parameters import wrong_with
from extproc.meant import meant


def experiment_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Experiments that could not run, or would run into each other."""
    pools = {pool.name: pool for pool in config.pools}
    taken: dict[str, str] = {}
    for name, experiment in config.experiments.items():
        here: Loc = ("experiments", name)
        for j, pool in enumerate(experiment.pools):
            if pool not in pools:
                near = meant(pool, pools)
                yield (*here, "pools", j), f"there is no pool {pool!r}; there are {', '.join(pools)}{near}"
            elif pool in taken:
                message = (
                    f"pool {pool!r} is in experiment {taken[pool]!r} too; it can be in one, so stop the other"
                )
                yield (*here, "pools", j), message
            taken.setdefault(pool, name)
        if not experiment.arms and experiment.shadow is None:
            yield here, "compares nothing; give it two arms or more, a shadow, or both"
        if len(experiment.arms) == 1:
            yield (*here, "arms"), "has one arm alone; add what it is compared with"
        elif experiment.arms:
            try:
                _ = experiment.shares
            except ValueError as error:
                yield (*here, "arms"), str(error)
        starts, ends = experiment.starts, experiment.ends
        if starts is not None and ends is not None and ends <= starts:
            yield (*here, "ends"), "is not after starts, so that it would never run"
        built: list[tuple[Loc, ArmConfig | ExperimentShadow]] = [
            ((*here, "arms", arm), each) for arm, each in experiment.arms.items()
        ]
        if experiment.shadow is not None:
            built.append(((*here, "shadow"), experiment.shadow))
        for path, each in built:
            if wrong := wrong_with(each.strategy, each.parameters):
                yield (*path, "parameters"), wrong
