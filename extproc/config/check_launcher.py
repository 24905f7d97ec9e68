"""The checks of replicas that the service starts itself."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.locations import Loc
from extproc.config.model import Config


def launcher_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Launchers that could not start what is wanted, or would get in each other's way."""
    for i, pool in enumerate(config.pools):
        scaling = pool.scaling
        if scaling is None or scaling.launcher is None:
            continue
        where, launcher = ("pools", i, "scaling", "launcher"), scaling.launcher
        if len(config.service_addresses) > 1:
            yield (
                where,
                (
                    "goes with one service: several would each start replicas of their own; list one address "
                    "under gateway.services, or take the launcher out"
                ),
            )
        if len(set(launcher.gpus)) < len(launcher.gpus):
            yield (*where, "gpus"), "names a card twice; each bears one replica"
        elif launcher.gpus and len(launcher.gpus) < pool.gpus * scaling.max_replicas:
            yield (
                (*where, "gpus"),
                (
                    f"{len(launcher.gpus)} are too few for {scaling.max_replicas} replicas of {pool.gpus}; "
                    f"name {pool.gpus * scaling.max_replicas}, or lower pools[{i}].scaling.max_replicas"
                ),
            )
        first, last = launcher.ports
        if first and last - first + 1 < scaling.max_replicas:
            yield (
                (*where, "ports"),
                f"{last - first + 1} ports are too few for {scaling.max_replicas} replicas; widen the range",
            )
