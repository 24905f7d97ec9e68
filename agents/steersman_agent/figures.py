"""The normal form: what engines, GPUs and a whole node say, in one vocabulary.

Values only. None means "it does not say", which is not zero. Seconds (`*_s`) are the agent's monotonic
clock; everything else carries its unit in its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from steersman_agent.state import ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One reading of an engine's metrics page.

    `prompt_tokens`, `output_tokens`, and what was looked up and found in the prefix cache, are counters of
    tokens. `progress` are figures that move only when the engine
    works, never because requests arrive; empty where it has none.
    """

    waiting: int | None = None
    running: int | None = None
    kv_used_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    #: The adapters with requests, and those on its cards whether asked for or not.
    adapters: tuple[str, ...] | None = None
    loaded_adapters: tuple[str, ...] | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    prefix_queried_tokens: int | None = None
    prefix_hit_tokens: int | None = None
    progress: tuple[float, ...] = ()

    @property
    def work(self) -> bool:
        """Whether it has requests."""
        return bool(self.running) or bool(self.waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an engine says about itself: the models it answers for and its limits."""

    models: tuple[str, ...] = ()
    #: Those of the models that are adapters.
    adapters: tuple[str, ...] | None = None
    max_concurrent: int | None = None
    kv_capacity_tokens: int | None = None
    prefill_budget_tokens: int | None = None
    #: What it runs exactly, in its own words; "" where it does not say.
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvView:
    """What an engine's KV events tell (kv_book.py). `complete`: every block that is held is known.

    `stored`, `removed` are our digests of token ids that changed within the last seconds. The rest counts
    since the agent's start: `clears` how often the whole cache was dropped, `gaps` how often events were lost
    for good.
    """

    cached_tokens: int = 0
    complete: bool = True
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica as it is reported. `scraped_s`, `probed_s`: when the figures were read, the probe made."""

    address: str
    pool: str
    zone: str
    region: str
    engine: str
    state: ReplicaState
    detail: str
    models: tuple[str, ...]
    adapters: tuple[str, ...]
    waiting: int | None = None
    running: int | None = None
    kv_used_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    max_concurrent: int | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    scraped_s: float | None = None
    probe_ttft_ms: float | None = None
    probed_s: float | None = None
    probe_failures: int = 0
    gpu_uuids: tuple[str, ...] = ()
    engine_starts: int = 0
    prefix_queried_tokens: int | None = None
    prefix_hit_tokens: int | None = None
    #: What its engine runs, in its own words.
    revision: str = ""
    #: The adapters on its cards, and those that it answers for; None where it does not say.
    loaded_adapters: tuple[str, ...] | None = None
    served_adapters: tuple[str, ...] | None = None
    kv: KvView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class XidEvent:
    """A GPU error that the driver told of, by NVIDIA's number."""

    code: int
    unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """A process on a GPU."""

    pid: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigDevice:
    """A slice of a GPU."""

    uuid: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFigures:
    """One GPU; the names are telemetry.proto's."""

    uuid: str
    index: int
    name: str = ""
    pci_id: str = ""
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
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    remapped_rows_corrected: int | None = None
    remapped_rows_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    nvlink_errors: int | None = None
    xids: tuple[XidEvent, ...] = ()
    processes: tuple[ProcessUse, ...] = ()
    mig_devices: tuple[MigDevice, ...] = ()
    lost: bool = False
    memory_others_bytes: int | None = None
    utilization_others_percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """Everything that one report tells."""

    node: str
    replicas: tuple[ReplicaView, ...] = ()
    gpus: tuple[GpuFigures, ...] = ()
