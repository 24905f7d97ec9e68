"""Which resource a pool is bound by, and what other limits and cards might do: advice, never applied.

Owns the diagnosis and which changes are worth a simulation. Pure. What a change does is simulated elsewhere
(lab.capacity) on recorded traffic; nothing here is ever applied.

A pool is bound by *memory* where KV memory was full, by *permits* where max_concurrent was full and memory
was not, by *compute* where requests missed their targets or waited inside replicas while both had room; it is
*idle* where even the 99th percentile left most of each free, else *balanced*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from extproc.core.predict.hardware import GpuModel, find_gpu
from extproc.core.scaling.use import KV_FULL, PERMITS_FULL, ResourceUse
from extproc.core.scaling.values import ReplicaKind

#: What binds a pool as a whole.
PoolBound = Literal["memory", "compute", "permits", "idle", "balanced", "unknown"]

#: Looks below which nothing is said.
LOOKS_MIN: Final = 200.0
#: Below these a pool is idle: its 99th percentiles of memory and permits.
IDLE_SHARE: Final = 0.3
#: From this share of looks on, requests that wait inside replicas say that compute is short.
WAITING_SHARE: Final = 0.2
#: Cards that a larger one is looked for among, as NVML names them; the smallest that is larger comes first.
LARGER: Final = ("L4", "A10G", "L40S", "A100-SXM4-40GB", "A100-SXM4-80GB", "H100", "H200", "B200")
#: Slices of a card that can be cut (MIG), by its memory in GiB; the largest first.
SLICES: Final = (
    (130.0, ("MIG 3g.71gb", "MIG 2g.35gb", "MIG 1g.18gb")),
    (75.0, ("MIG 3g.40gb", "MIG 2g.20gb", "MIG 1g.10gb")),
    (35.0, ("MIG 3g.20gb", "MIG 2g.10gb", "MIG 1g.5gb")),
)
#: Cards that can be cut.
CUT: Final = ("a100", "h100", "h200", "b200")
#: Cards or slices tried of one direction.
CARDS_TRIED: Final = 2


class PoolDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What binds, and why, in one line for people."""

    bound: PoolBound
    why: str


class VerticalChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of every replica of a pool; None ("", 1) leaves as it is. `how`: what a person would do."""

    name: str
    how: str
    max_concurrent: int | None = None
    prefill_budget_tokens: int | None = None
    kv_scale: float = 1.0
    hardware: str = ""


class ChangeGain(msgspec.Struct, frozen=True, kw_only=True):
    """A change, simulated: attainment (0..1) with it and without, seed by seed.

    `gain` is the mean difference, `low` and `high` its 95 % interval (None of one seed). Costs are of the
    whole pool an hour, None where a price is not known.
    """

    change: VerticalChange
    attainment: float
    gain: float
    low: float | None = None
    high: float | None = None
    ttft_p99_ms: float | None = None
    tpot_p50_ms: float | None = None
    cost_per_hour: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the interval leaves no doubt that it helps."""
        return self.low is not None and self.low > 0.0


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one pool. `gains` are simulated, the best first; none where nobody simulated."""

    pool: str
    diagnosis: PoolDiagnosis
    use: ResourceUse
    attainment: float | None = None
    cost_per_hour: float | None = None
    gains: tuple[ChangeGain, ...] = ()
    best: ChangeGain | None = None


def diagnose(use: ResourceUse, *, attainment: float | None = None, target: float = 0.99) -> PoolDiagnosis:
    """What binds a pool of this use; `attainment` (0..1) None where nobody measured it."""
    if use.looks < LOOKS_MIN:
        return PoolDiagnosis(bound="unknown", why=f"only {use.looks:.0f} looks at replicas so far")
    kv, permits = use.kv_p99 or 0.0, use.permits_p99
    said = f"KV memory p99 {kv:.0%}, max_concurrent p99 {permits:.0%}, busy {use.busy:.0%}"
    if use.kv_p99 is None:
        said = f"KV memory unknown, max_concurrent p99 {permits:.0%}, busy {use.busy:.0%}"
    missed = attainment is not None and attainment < target
    if kv >= KV_FULL:
        return PoolDiagnosis(bound="memory", why=f"KV memory was full ({said})")
    if permits >= PERMITS_FULL:
        return PoolDiagnosis(bound="permits", why=f"max_concurrent was full while KV memory was not ({said})")
    if missed or use.waiting >= WAITING_SHARE:
        why = f"targets were missed at {attainment:.1%}" if missed else "requests waited inside replicas"
        return PoolDiagnosis(bound="compute", why=f"{why} while memory and permits had room ({said})")
    if kv < IDLE_SHARE and permits < IDLE_SHARE:
        return PoolDiagnosis(bound="idle", why=f"most of each replica was never used ({said})")
    return PoolDiagnosis(bound="balanced", why=f"nothing was full, and little was spare ({said})")


def changes_for(bound: PoolBound, kind: ReplicaKind, cards: Sequence[str] = ()) -> list[VerticalChange]:
    """The changes worth a try for a pool so bound; `cards` are tried in place of our own choice.

    Of a pool that is idle smaller cards and slices, of one that is bound the limits and larger cards.
    """
    permits, budget = kind.permits, kind.prefill_budget_tokens
    found: list[VerticalChange] = []
    if bound in ("memory", "compute"):
        found += [_permits(max(1, permits * part // 4), "down") for part in (3, 2)]
    if bound in ("permits", "balanced"):
        found += [_permits(max(permits + 1, permits * part // 2), "up") for part in (3, 4)]
    if bound in ("compute", "balanced"):
        found += [_budget(max(256, budget // 2)), _budget(budget * 2)]
    if bound == "memory":
        found += [
            VerticalChange(
                name="KV cache in 8 bits",
                how="the engine's KV cache type fp8: twice the tokens; check the answers' quality",
                kv_scale=2.0,
            ),
            VerticalChange(
                name="5 % more memory for KV",
                how="the engine's memory share (gpu_memory_utilization, cuda-memory-fraction), where free",
                kv_scale=1.05,
            ),
        ]
    tried = list(cards) or (smaller_cards(kind) if bound == "idle" else larger_cards(kind, bound))
    found += [VerticalChange(name=f"on {card}", how=f"replicas on {card}", hardware=card) for card in tried]
    return [each for each in found if not _same(each, kind)]


def larger_cards(kind: ReplicaKind, bound: PoolBound) -> list[str]:
    """The next cards with more of what is short: memory where memory binds, else bandwidth and arithmetic."""
    own = find_gpu(kind.hardware)
    if own is None or bound not in ("memory", "compute"):
        return []

    def more(card: GpuModel) -> bool:
        if bound == "memory":
            return (
                card.memory_gib > 1.05 * own.memory_gib and card.bandwidth_gb_per_s >= own.bandwidth_gb_per_s
            )
        return card.bandwidth_gb_per_s > 1.05 * own.bandwidth_gb_per_s and card.tflops >= own.tflops

    return [name for name in LARGER if (card := find_gpu(name)) is not None and more(card)][:CARDS_TRIED]


def smaller_cards(kind: ReplicaKind) -> list[str]:
    """Slices of the pool's own card where it can be cut, else the next smaller cards."""
    own = find_gpu(kind.hardware)
    if own is None:
        return []
    whole = kind.hardware.lower()
    if any(name in whole for name in CUT) and "mig" not in whole:
        for memory_gib, slices in SLICES:
            if own.memory_gib >= memory_gib:
                return [f"{kind.hardware} {each}" for each in slices[:CARDS_TRIED]]
    found = [
        name
        for name in LARGER
        if (card := find_gpu(name)) is not None
        and card.memory_gib < own.memory_gib
        and card.bandwidth_gb_per_s < own.bandwidth_gb_per_s
    ]
    return found[-CARDS_TRIED:][::-1]


def advise(
    pool: str,
    use: ResourceUse,
    gains: Sequence[ChangeGain] = (),
    *,
    attainment: float | None = None,
    target: float = 0.99,
    cost_per_hour: float | None = None,
) -> Advice:
    """The pool's advice. Best surely helps most; of an idle pool it is the cheapest that keeps targets."""
    diagnosis = diagnose(use, attainment=attainment, target=target)
    best: ChangeGain | None = None
    if diagnosis.bound == "idle" and attainment is not None:
        keeps = [
            each
            for each in gains
            if each.change.hardware
            and each.attainment >= min(target, attainment)
            and _cheaper(each, cost_per_hour)
        ]
        # No price: the smallest slice, which stands last.
        best = min(keeps[::-1], key=lambda each: each.cost_per_hour or 0.0, default=None)
    else:
        best = max((each for each in gains if each.shown), key=lambda each: each.gain, default=None)
    return Advice(
        pool=pool,
        diagnosis=diagnosis,
        use=use,
        attainment=attainment,
        cost_per_hour=cost_per_hour,
        gains=tuple(sorted(gains, key=lambda each: -each.gain)),
        best=best,
    )


def recommendation(
    advice: Advice, kind: ReplicaKind, *, container: str, namespace: str = ""
) -> dict[str, Any]:
    """The advice as a VerticalPodAutoscaler object whose status recommends, for programs that read those.

    What fits is which GPU resource a container asks for: bounds run from it to today's. The engine's limits
    have no place there and stand in annotations. updateMode is Off: nothing acts on it, and the
    VerticalPodAutoscaler's own updater knows CPU and memory alone.
    """
    best = advice.best.change if advice.best is not None else None
    now = gpu_resource(kind.hardware)
    then = gpu_resource(best.hardware) if best is not None and best.hardware else now
    count = str(kind.gpus)
    notes = {"steersman.io/bound": advice.diagnosis.bound, "steersman.io/why": advice.diagnosis.why}
    if best is not None:
        notes["steersman.io/change"] = best.how
        if best.hardware:
            notes["steersman.io/hardware"] = best.hardware
        if best.max_concurrent is not None:
            notes["steersman.io/max-concurrent"] = str(best.max_concurrent)
        if best.prefill_budget_tokens is not None:
            notes["steersman.io/max-batch-prefill-tokens"] = str(best.prefill_budget_tokens)
    metadata: dict[str, Any] = {"name": f"steersman-{advice.pool}", "annotations": notes}
    if namespace:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "autoscaling.k8s.io/v1",
        "kind": "VerticalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": advice.pool},
            "updatePolicy": {"updateMode": "Off"},
        },
        "status": {
            "recommendation": {
                "containerRecommendations": [
                    {
                        "containerName": container,
                        "lowerBound": {then: count},
                        "target": {then: count},
                        "uncappedTarget": {then: count},
                        "upperBound": {now: count},
                    }
                ]
            }
        },
    }


def gpu_resource(hardware: str) -> str:
    """The extended resource by which Kubernetes counts such a card (NVIDIA's and AMD's device plugins)."""
    lowered = hardware.lower()
    if lowered.startswith(("amd", "mi")) and not lowered.startswith("mig"):
        return "amd.com/gpu"
    _, slash, part = lowered.partition("mig ")
    return f"nvidia.com/mig-{part.strip()}" if slash else "nvidia.com/gpu"


def _permits(count: int, way: str) -> VerticalChange:
    why = "fewer at once keep each token in time" if way == "down" else "more at once use what is free"
    return VerticalChange(
        name=f"max_concurrent {count}", how=f"max_concurrent: {count}; {why}", max_concurrent=count
    )


def _budget(tokens: int) -> VerticalChange:
    return VerticalChange(
        name=f"prefill {tokens}",
        how=f"the engine's max_batch_prefill_tokens {tokens} (vLLM: max_num_batched_tokens)",
        prefill_budget_tokens=tokens,
    )


def _same(change: VerticalChange, kind: ReplicaKind) -> bool:
    return (
        change.max_concurrent in (None, kind.permits)
        and change.prefill_budget_tokens in (None, kind.prefill_budget_tokens)
        and change.kv_scale == 1.0
        and change.hardware in ("", kind.hardware)
    )


def _cheaper(each: ChangeGain, cost: float | None) -> bool:
    return cost is None or each.cost_per_hour is None or each.cost_per_hour < cost
