"""What a node agent says of a replica and its GPUs, as checked values.

Owns the shapes only; where they come from is telemetry's, what follows from them health.py's and
fleet.py's. None means that the engine or the driver does not say, which is not zero.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class ReportedState(Enum):
    """What a replica is up to, as its agent sees it."""

    LOADING = "loading"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    GONE = "gone"
    HUNG = "hung"
    WRONG_MODEL = "wrong model"


#: States in which a replica takes new work.
SERVING = frozenset({ReportedState.READY, ReportedState.DEGRADED})


class GpuReport(msgspec.Struct, frozen=True, kw_only=True):
    """One card. Clocks in MHz; `xids` are (code, unix milliseconds), newest last."""

    uuid: str
    name: str = ""
    utilization_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    throttle_reasons: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    retirement_pending: bool | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    nvlink_errors: int | None = None
    lost: bool = False
    xids: tuple[tuple[int, int], ...] = ()
    #: What processes that are no replica's hold and compute; None where it is not known.
    memory_others_bytes: int | None = None
    utilization_others_percent: int | None = None


class KvReport(msgspec.Struct, frozen=True, kw_only=True):
    """What KV events tell of a prefix cache. Counts since the agent's start, digests as prefix.chain_ids has.

    `complete`: every block that is held is known. `gaps` are events that were lost for good.
    """

    cached_tokens: int = 0
    complete: bool = False
    stored_blocks: int = 0
    removed_blocks: int = 0
    clears: int = 0
    events: int = 0
    unreadable: int = 0
    gaps: int = 0
    replays: int = 0
    changes_left_out: int = 0
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """One replica in one report. Rates in tokens per second, times in milliseconds."""

    address: str
    pool: str
    node: str = ""
    boot_id: int = 0
    #: The node's clock when it spoke: its XIDs' times are by the same one. 0 where it does not say.
    sent_unix_ms: int = 0
    zone: str = ""
    region: str = ""
    engine: str = ""
    state: ReportedState = ReportedState.READY
    detail: str = ""
    models: tuple[str, ...] = ()
    #: The LoRA adapters with requests; those on its cards, and those that it answers for by name: all of
    #: them, or None where nobody says.
    adapters: tuple[str, ...] = ()
    loaded_adapters: tuple[str, ...] | None = None
    served_adapters: tuple[str, ...] | None = None
    #: What the engine runs, in its own words; "" where it does not say.
    revision: str = ""
    waiting: int | None = None
    running: int | None = None
    kv_used_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    max_concurrent: int | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    probe_ttft_ms: float | None = None
    probe_failures: int = 0
    gpus: tuple[GpuReport, ...] = ()
    #: How often its agent saw the engine begin anew.
    engine_starts: int | None = None
    #: Prompt tokens looked up in its prefix cache and found there, by the engine's own counters.
    prefix_queried_tokens: int | None = None
    prefix_hit_tokens: int | None = None
    #: Where its KV events are heard.
    kv: KvReport | None = None
    #: The address lies in the networks of the node that speaks: it may silence it by its word alone.
    own: bool = True


#: States in which the process that was there is not, or not yet.
_WITHOUT = frozenset({ReportedState.LOADING, ReportedState.GONE})


def began_anew(before: ReplicaReport, now: ReplicaReport) -> bool:
    """Whether another process of the engine answers: what the one before had cached is gone."""
    if before.state in _WITHOUT and now.state in SERVING:
        return True
    if before.boot_id != now.boot_id:
        return False
    if before.kv is not None and now.kv is not None and before.kv.clears < now.kv.clears:
        return True
    if before.engine_starts is None or now.engine_starts is None:
        return False
    return before.engine_starts < now.engine_starts
