"""What a response cache would have saved on recorded traffic: hits, tokens, replicas' time, attainment.

Owns the figures. Which requests are equal the record says (`record.repeats`): keyed hashes of whole requests,
never a text. Simulated: hits are played over the record, and the requests that are left are played on the
replicas, with and without the cache by the same seeds. A replica's time is by the learned timings
(`core.scaling.capacity.work_ms`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from extproc.core.scaling.capacity import work_ms
from extproc.lab.replay.log import LogError, RecordRow
from extproc.lab.replay.play import play, slo_of
from extproc.lab.replay.rebuild import Scene
from extproc.lab.report.cells import MeanInterval, interval
from extproc.sim.answers import TOKEN_BYTES, AskedAnswer, CacheSize, answered_again, with_hits
from extproc.sim.served import Served, met

#: Reasons of `core.cachekeys.Unfit` that a tenant may set aside (`tenants[].cache`).
SETTABLE: Final = ("sampled", "tools")


@dataclass(slots=True)
class TenantSaving:
    """One tenant's: requests, those that may be cached, hits, and what hits did not ask of a replica."""

    requests: int = 0
    cacheable: int = 0
    hits: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    gpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheSaving:
    """All of it. `unfit` counts requests that are not cached, `without` and `saved` are attainments."""

    cache: CacheSize
    allowed: tuple[str, ...]
    tenants: Mapping[str, TenantSaving]
    unfit: Mapping[str, int]
    without: MeanInterval
    saved: MeanInterval

    @property
    def whole(self) -> TenantSaving:
        """The sum of all tenants."""
        whole = TenantSaving()
        for each in self.tenants.values():
            whole.requests += each.requests
            whole.cacheable += each.cacheable
            whole.hits += each.hits
            whole.input_tokens += each.input_tokens
            whole.output_tokens += each.output_tokens
            whole.gpu_s += each.gpu_s
        return whole


def hits_of(scene: Scene, cache: CacheSize, allowed: Sequence[str] = ()) -> list[bool]:
    """Of each request of a scene whether the cache would have answered it; `allowed` are of SETTABLE.

    Raises LogError where the record does not know which requests are equal.
    """
    if not any(row.question for row in scene.rows):
        raise LogError(
            "the record does not say which requests are equal; record it anew with "
            "'record: {file: …, repeats: true}'"
        )
    return answered_again(
        (
            AskedAnswer(
                arrival.at_ns,
                (row.tenant, row.question) if _cacheable(row, allowed) else None,
                (row.answer_bytes or arrival.output_tokens * TOKEN_BYTES) if row.outcome == "ok" else 0,
            )
            for row, arrival in zip(scene.rows, scene.workload.arrivals, strict=True)
        ),
        cache,
    )


def saving(
    scene: Scene, cache: CacheSize, *, seeds: Sequence[int], allowed: Sequence[str] = ()
) -> CacheSaving:
    """What a cache would have saved on a scene, under the recorded strategy. Raises LogError."""
    hits = hits_of(scene, cache, allowed)
    tenants: dict[str, TenantSaving] = {}
    unfit: Counter[str] = Counter()
    timing = scene.machines[0].timing
    for row, arrival, hit in zip(scene.rows, scene.workload.arrivals, hits, strict=True):
        found = tenants.setdefault(row.tenant, TenantSaving())
        found.requests += 1
        if not _cacheable(row, allowed):
            unfit[row.unfit or "unread"] += 1
            continue
        found.cacheable += 1
        if hit:
            found.hits += 1
            found.input_tokens += arrival.prompt_tokens
            found.output_tokens += arrival.output_tokens
            cached = min(row.cached_tokens, arrival.prompt_tokens - 1)
            found.gpu_s += work_ms(timing, arrival.prompt_tokens, cached, arrival.output_tokens) / 1e3
    left = without(scene, hits)
    slo = slo_of(scene)

    def share(served: Sequence[Served]) -> float:
        return sum(met(each, slo) for each in served) / len(served)

    return CacheSaving(
        cache,
        tuple(allowed),
        tenants,
        dict(unfit),
        interval([share(play(scene, seed=seed)) for seed in seeds]),
        interval(
            [
                share(with_hits(scene.workload, hits, play(left, seed=seed) if left.rows else []))
                for seed in seeds
            ]
        ),
    )


def _cacheable(row: RecordRow, allowed: Sequence[str]) -> bool:
    return bool(row.question) and set(row.unfit.split(",")) <= {"", *allowed}


def without(scene: Scene, hits: Sequence[bool]) -> Scene:
    """The scene with the requests alone that reach a replica."""
    stays = [at for at, hit in enumerate(hits) if not hit]
    arrivals = tuple(scene.workload.arrivals[at] for at in stays)
    rows = [scene.rows[at] for at in stays]
    return replace(scene, rows=rows, workload=replace(scene.workload, arrivals=arrivals))
