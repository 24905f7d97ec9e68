"""Is a report plausible? Bounds for every field, and the first thing that is wrong.

Owns the bounds. An agent may be broken, replayed or lying; what it says is believed only within what a
machine can be, and a claim of idleness never takes away what our own ledger knows (fleet.py).
"""

from __future__ import annotations

from functools import lru_cache

from extproc._pb import telemetry_pb2 as pb
from extproc.addresses import canonical
from extproc.core.reports import GpuReport, KvReport, ReplicaReport, ReportedState

REPLICAS_MAX = 64
GPUS_MAX = 64
XIDS_MAX = 64
#: Digests of KV blocks that came, and that went.
DIGESTS_MAX = 1024
NAMES_MAX = 256
#: An IPv6 address in full, with brackets and port; a scope says nothing on another machine.
ADDRESS_MAX = 64
#: The same few thousand come every second.
ADDRESSES_CACHED_MAX = 16_384
TEXT_BYTES_MAX = 512
REQUESTS_MAX = 1_000_000
TOKENS_MAX = 1_000_000_000
#: A counter of tokens of an engine's whole life.
LIFE_TOKENS_MAX = 2**53
RATE_MAX = 10_000_000.0
MILLISECONDS_MAX = 3_600_000.0
#: A cache may hold a little more than it says it can (rounding to blocks), not twice as much.
KV_OVER_CAPACITY_MAX = 1.25

_STATES = {
    pb.STATE_UNKNOWN: ReportedState.DEGRADED,
    pb.LOADING: ReportedState.LOADING,
    pb.READY: ReportedState.READY,
    pb.DEGRADED: ReportedState.DEGRADED,
    pb.DRAINING: ReportedState.DRAINING,
    pb.GONE: ReportedState.GONE,
    pb.HUNG: ReportedState.HUNG,
    pb.WRONG_MODEL: ReportedState.WRONG_MODEL,
}


class ImplausibleError(ValueError):
    """A report that cannot be true; `str()` is the code that goes back to the agent."""


def replicas(report: pb.Report) -> list[ReplicaReport]:
    """The report's replicas as checked values; raises ImplausibleError."""
    if len(report.replicas) > REPLICAS_MAX or len(report.gpus) > GPUS_MAX:
        raise ImplausibleError("too_many")
    gpus = {gpu.uuid: _gpu(gpu) for gpu in report.gpus}
    checked = [_replica(replica, gpus, report) for replica in report.replicas]
    if len({replica.address for replica in checked}) != len(checked):
        raise ImplausibleError("address_twice")
    return checked


def _replica(replica: pb.Replica, gpus: dict[str, GpuReport], report: pb.Report) -> ReplicaReport:
    models, adapters, uuids = tuple(replica.models), tuple(replica.adapters), replica.gpu_uuids
    if len(models) > NAMES_MAX or len(adapters) > NAMES_MAX or len(uuids) > GPUS_MAX:
        raise ImplausibleError("too_many")
    loaded, served = _whole(replica, "loaded_adapters"), _whole(replica, "served_adapters")
    for text in (
        replica.pool,
        replica.zone,
        replica.region,
        replica.engine,
        replica.detail,
        replica.revision,
    ):
        _text(text)
    for text in (*models, *adapters):
        _text(text)
    state = _STATES.get(replica.state)
    if state is None:
        raise ImplausibleError("unknown_state")
    used = _count(replica, "kv_used_tokens", TOKENS_MAX)
    capacity = _count(replica, "kv_capacity_tokens", TOKENS_MAX)
    if used is not None and capacity is not None and used > capacity * KV_OVER_CAPACITY_MAX:
        raise ImplausibleError("kv_over_capacity")
    return ReplicaReport(
        address=_address(replica.address),
        pool=replica.pool,
        node=report.node,
        boot_id=report.boot_id,
        sent_unix_ms=report.sent_unix_ms,
        zone=replica.zone,
        region=replica.region,
        engine=replica.engine,
        state=state,
        detail=replica.detail,
        models=models,
        revision=replica.revision,
        adapters=adapters,
        loaded_adapters=loaded,
        served_adapters=served,
        waiting=_count(replica, "waiting", REQUESTS_MAX),
        running=_count(replica, "running", REQUESTS_MAX),
        kv_used_tokens=used,
        kv_capacity_tokens=capacity,
        max_concurrent=_count(replica, "max_concurrent", REQUESTS_MAX),
        prefill_tokens_per_s=_real(replica, "prefill_tokens_per_s", RATE_MAX),
        decode_tokens_per_s=_real(replica, "decode_tokens_per_s", RATE_MAX),
        probe_ttft_ms=_real(replica, "probe_ttft_ms", MILLISECONDS_MAX),
        probe_failures=min(replica.probe_failures, REQUESTS_MAX),
        engine_starts=_count(replica, "engine_starts", REQUESTS_MAX),
        prefix_queried_tokens=_count(replica, "prefix_queried_tokens", LIFE_TOKENS_MAX),
        prefix_hit_tokens=_count(replica, "prefix_hit_tokens", LIFE_TOKENS_MAX),
        kv=_kv(replica.kv) if replica.HasField("kv") else None,
        gpus=tuple([gpus[uuid] for uuid in dict.fromkeys(uuids) if uuid in gpus]),
    )


def _whole(replica: pb.Replica, field: str) -> tuple[str, ...] | None:
    """A list that is told as a whole, or not at all."""
    if not replica.HasField(field):
        return None
    names = tuple(getattr(replica, field).names)
    if len(names) > NAMES_MAX:
        raise ImplausibleError("too_many")
    for name in names:
        _text(name)
    return names


def _kv(kv: pb.KvCache) -> KvReport:
    if len(kv.stored) > DIGESTS_MAX or len(kv.removed) > DIGESTS_MAX:
        raise ImplausibleError("too_many")
    if kv.cached_tokens > TOKENS_MAX:
        raise ImplausibleError("kv_cached_tokens_out_of_range")
    return KvReport(
        cached_tokens=kv.cached_tokens,
        complete=kv.complete,
        stored_blocks=kv.stored_blocks,
        removed_blocks=kv.removed_blocks,
        clears=kv.clears,
        events=kv.events,
        unreadable=kv.unreadable,
        gaps=kv.gaps,
        replays=kv.replays,
        changes_left_out=kv.changes_left_out,
        stored=tuple(kv.stored),
        removed=tuple(kv.removed),
    )


def _gpu(gpu: pb.Gpu) -> GpuReport:
    for text in (gpu.uuid, gpu.name, gpu.pci_id):
        _text(text)
    if len(gpu.xids) > XIDS_MAX:
        raise ImplausibleError("too_many")
    used = _count(gpu, "memory_used_bytes", 1 << 50)
    total = _count(gpu, "memory_total_bytes", 1 << 50)
    if used is not None and total is not None and used > total:
        raise ImplausibleError("memory_over_total")
    return GpuReport(
        uuid=gpu.uuid,
        name=gpu.name,
        utilization_percent=_count(gpu, "utilization_percent", 100),
        memory_used_bytes=used,
        memory_total_bytes=total,
        power_w=_real(gpu, "power_w", 100_000.0),
        power_limit_w=_real(gpu, "power_limit_w", 100_000.0),
        temperature_c=_count(gpu, "temperature_c", 250),
        sm_clock_mhz=_count(gpu, "sm_clock_mhz", 100_000),
        sm_clock_max_mhz=_count(gpu, "sm_clock_max_mhz", 100_000),
        throttle_reasons=_count(gpu, "throttle_reasons", (1 << 64) - 1),
        ecc_corrected=_count(gpu, "ecc_corrected", (1 << 64) - 1),
        ecc_uncorrected=_count(gpu, "ecc_uncorrected", (1 << 64) - 1),
        retirement_pending=gpu.retirement_pending if gpu.HasField("retirement_pending") else None,
        remap_pending=gpu.remap_pending if gpu.HasField("remap_pending") else None,
        remap_failed=gpu.remap_failed if gpu.HasField("remap_failed") else None,
        nvlink_errors=_count(gpu, "nvlink_errors", (1 << 64) - 1),
        lost=gpu.lost,
        memory_others_bytes=_count(gpu, "memory_others_bytes", 1 << 50),
        utilization_others_percent=_count(gpu, "utilization_others_percent", 100),
        xids=tuple([(xid.code, xid.unix_ms) for xid in gpu.xids]),
    )


def _text(text: str) -> None:
    if len(text) * 4 > TEXT_BYTES_MAX and len(text.encode()) > TEXT_BYTES_MAX:
        raise ImplausibleError("text_too_long")


@lru_cache(ADDRESSES_CACHED_MAX)
def _address(text: str) -> str:
    """Canonical ip:port, as the configuration spells it."""
    try:
        if len(text) <= ADDRESS_MAX:
            return canonical(text)
    except ValueError:
        pass
    raise ImplausibleError("bad_address")


def _count(message: pb.Replica | pb.Gpu, field: str, most: int) -> int | None:
    value: int = getattr(message, field)
    # Only of a zero it is not plain whether it was said.
    if not value and not message.HasField(field):
        return None
    if value > most:
        raise ImplausibleError(f"{field}_out_of_range")
    return value


def _real(message: pb.Replica | pb.Gpu, field: str, most: float) -> float | None:
    value: float = getattr(message, field)
    if not value and not message.HasField(field):
        return None
    # What is no number is in no order.
    if not 0.0 <= value <= most:
        raise ImplausibleError(f"{field}_out_of_range")
    return value
