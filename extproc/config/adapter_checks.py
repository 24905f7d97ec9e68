"""What is wrong with a pool's LoRA adapters. Owns locations and their spelling; a message says the mend."""

from __future__ import annotations

from collections.abc import Iterator

from extproc import engines
from extproc.config.locations import Loc, repeats
from extproc.config.pools import PoolConfig
from extproc.meant import meant


def adapter_checks(i: int, pool: PoolConfig) -> Iterator[tuple[Loc, str]]:
    """Adapters that clients could not ask for, that leave no base, or that no call could load."""
    if pool.adapters is None:
        return
    names, loading = pool.adapters.names, pool.adapters.load
    at: Loc = ("pools", i, "adapters", "names")
    yield from repeats(((*at, j), name) for j, name in enumerate(names))
    for j, name in enumerate(names):
        if name not in pool.models:
            yield (*at, j), f"{name!r} is not among pools[{i}].models; add it there{meant(name, pool.models)}"
    if set(pool.models) <= set(names):
        yield at, f"every model of the pool is an adapter; put their base first into pools[{i}].models"
    if loading is None:
        return
    at = ("pools", i, "adapters", "load")
    for name in loading.paths:
        if name not in names:
            yield (
                (*at, "paths", name),
                f"{name!r} is not among pools[{i}].adapters.names; add it there{meant(name, names)}",
            )
    if not engines.named(pool.engine).load_adapter:
        able = " and ".join(name for name in engines.names() if engines.named(name).load_adapter)
        yield (
            at,
            f"{pool.engine} has no calls that load adapters; {able} have. Start it with them, without load",
        )
