"""Turns a node's view into a report, and says when one is due. Pure: seconds and numbers are handed in.

Owns what counts as a change: state, health and GPU faults always; queue and KV figures beyond a small
threshold. A report tells everything, so a later one makes an earlier one useless.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.figures import GpuFigures, NodeView, ReplicaView

#: By how much running must move to be told before the heartbeat: a part of max_concurrent, at least 1.
#: From or to 0 always; and any change of waiting, which is what a choice of replica turns on.
RUNNING_THRESHOLD_PART: Final = 0.02
#: KV likewise: a part of the capacity, or so many tokens where the capacity is unknown.
KV_THRESHOLD_PART, KV_THRESHOLD_TOKENS = 0.01, 512
#: Reasons for low clocks that are no fault: idle, set by the user, display, sync boost.
_HARMLESS_THROTTLE: Final = 0x1 | 0x2 | 0x10 | 0x100
_U32_MAX: Final = 2**32 - 1


class Pacer:
    """When the next report is due: at a change after the spacing, at the heartbeat otherwise."""

    def __init__(self, *, spacing_s: float, heartbeat_s: float) -> None:
        self._spacing_s = spacing_s
        self._heartbeat_s = heartbeat_s
        self._sent: NodeView | None = None
        self._sent_s = 0.0

    def due_s(self, view: NodeView, now_s: float) -> float:
        """The moment at which this view should be sent; `now_s` or before it: now."""
        if self._sent is None:
            return now_s
        pause_s = self._spacing_s if changed(self._sent, view) else self._heartbeat_s
        return self._sent_s + pause_s

    def sent(self, view: NodeView, now_s: float) -> None:
        """It was sent."""
        self._sent, self._sent_s = view, now_s


def changed(before: NodeView, after: NodeView) -> bool:
    """Whether the later view should not wait for the heartbeat."""
    if len(before.replicas) != len(after.replicas) or len(before.gpus) != len(after.gpus):
        return True
    # Views are kept while nothing is learnt, so most comparisons end at identity.
    return any(
        old is not new and _replica_changed(old, new)
        for old, new in zip(before.replicas, after.replicas, strict=True)
    ) or any(
        old is not new and _faults(old) != _faults(new)
        for old, new in zip(before.gpus, after.gpus, strict=True)
    )


def _replica_changed(old: ReplicaView, new: ReplicaView) -> bool:
    if _identity(old) != _identity(new):
        return True
    requests = max(1.0, RUNNING_THRESHOLD_PART * (new.max_concurrent or 0))
    tokens = KV_THRESHOLD_PART * new.kv_capacity_tokens if new.kv_capacity_tokens else KV_THRESHOLD_TOKENS
    return (
        old.waiting != new.waiting
        or _beyond(old.running, new.running, requests)
        or _beyond(old.kv_used_tokens, new.kv_used_tokens, tokens)
    )


def _identity(view: ReplicaView) -> tuple[object, ...]:
    return (
        view.address,
        view.pool,
        view.state,
        view.models,
        view.revision,
        view.adapters,
        view.loaded_adapters,
        view.served_adapters,
        view.kv_capacity_tokens,
        view.max_concurrent,
        view.gpu_uuids,
        view.probe_failures > 0,
        view.engine_starts,
        None if view.kv is None else (view.kv.clears, view.kv.complete),
    )


def _beyond(old: int | None, new: int | None, threshold: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) >= threshold or (old == 0) != (new == 0)


def _faults(gpu: GpuFigures) -> tuple[object, ...]:
    """What is wrong with a GPU; equal while nothing new is."""
    return (
        gpu.uuid,
        gpu.lost,
        gpu.xids,
        (gpu.throttle_reasons or 0) & ~_HARMLESS_THROTTLE,
        gpu.ecc_uncorrected,
        gpu.retirement_pending,
        gpu.remapped_rows_uncorrected,
        gpu.remap_pending,
        gpu.remap_failed,
        # To the tenth: told before the heartbeat when somebody comes or goes.
        (gpu.utilization_others_percent or 0) // 10,
        bool(gpu.memory_others_bytes),
    )


def encode(
    view: NodeView,
    *,
    boot_id: int,
    sequence: int,
    unix_ms: int,
    leaving: bool = False,
) -> pb.Report:
    """The report of a view."""
    return pb.Report(
        node=view.node,
        boot_id=boot_id,
        sequence=sequence,
        sent_unix_ms=unix_ms,
        replicas=[_replica(replica) for replica in view.replicas],
        gpus=[_gpu(gpu) for gpu in view.gpus],
        leaving=leaving,
    )


def _replica(view: ReplicaView) -> pb.Replica:
    return pb.Replica(
        address=view.address,
        pool=view.pool,
        zone=view.zone,
        region=view.region,
        engine=view.engine,
        state=pb.State.Name(view.state),
        detail=view.detail,
        models=view.models,
        adapters=view.adapters,
        waiting=view.waiting,
        running=view.running,
        kv_used_tokens=view.kv_used_tokens,
        kv_capacity_tokens=view.kv_capacity_tokens,
        max_concurrent=view.max_concurrent,
        prefill_tokens_per_s=view.prefill_tokens_per_s,
        decode_tokens_per_s=view.decode_tokens_per_s,
        probe_ttft_ms=view.probe_ttft_ms,
        probe_failures=view.probe_failures,
        gpu_uuids=view.gpu_uuids,
        engine_starts=view.engine_starts,
        prefix_queried_tokens=view.prefix_queried_tokens,
        prefix_hit_tokens=view.prefix_hit_tokens,
        revision=view.revision,
        loaded_adapters=_names(view.loaded_adapters),
        served_adapters=_names(view.served_adapters),
        kv=None if view.kv is None else pb.KvCache(**asdict(view.kv)),
    )


def _names(told: tuple[str, ...] | None) -> pb.AdapterNames | None:
    return None if told is None else pb.AdapterNames(names=told)


def describe(view: NodeView, now_s: float) -> dict[str, Any]:
    """A view as plain JSON values for people: null is unknown, ages instead of moments."""
    plain = asdict(view)
    for replica, told in zip(view.replicas, plain["replicas"], strict=True):
        told["state"] = replica.state.name
        told["metrics_age_ms"] = age_ms(told.pop("scraped_s"), now_s)
        told["probe_age_ms"] = age_ms(told.pop("probed_s"), now_s)
    return plain


def age_ms(at_s: float | None, now_s: float) -> int | None:
    """Milliseconds since a moment, within the wire's field; None for what never was."""
    return None if at_s is None else min(_U32_MAX, max(0, round((now_s - at_s) * 1000)))


#: Plain fields have the wire's names. What the service does not read stays here, for `agent --once`.
_GPU_FIELDS: Final = tuple(
    field.name for field in pb.Gpu.DESCRIPTOR.fields if field.name not in ("xids", "processes")
)


def _gpu(gpu: GpuFigures) -> pb.Gpu:
    return pb.Gpu(
        **{name: getattr(gpu, name) for name in _GPU_FIELDS},
        xids=[pb.Xid(code=xid.code, unix_ms=xid.unix_ms) for xid in gpu.xids],
        processes=[pb.Process(pid=use.pid, memory_bytes=use.memory_bytes) for use in gpu.processes],
    )


def resolve_gpus(wanted: Iterable[int | str], gpus: Iterable[GpuFigures]) -> tuple[str, ...]:
    """UUIDs of configured GPUs: by index, by UUID, or by a MIG slice's UUID (which gives its card's)."""
    found: dict[str, None] = {}
    known = list(gpus)
    for one in wanted:
        for gpu in known:
            if one == gpu.index or one == gpu.uuid or any(one == part.uuid for part in gpu.mig_devices):
                found[gpu.uuid] = None
    return tuple(uuid for uuid in found if uuid)
