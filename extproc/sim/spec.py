"""What one simulated replica is: its name, address, hardware, limits and default behaviour.

Pure: a value, its checks and what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from extproc.sim.slots import ReplicaLimits, unlike_problems
from extproc.sim.timing import HARDWARE, Hardware, hardware_named


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One replica to start. `ValueError` at construction lists every problem at once.

    Tokens, except: `max_concurrent_requests` and `max_client_batch_size` (requests),
    `max_batch_size` (sequences running at once; None no limit), `prefill_parallel` (lanes that take
    a prompt each, side by side, and share `max_batch_size` out; 1 is TGI), `payload_limit_bytes`,
    `bytes_per_token`,
    `noise` (relative standard deviation of a step, 0..0.3), `slowdown` (factor on every step: 3.0 is a
    straggler) and `time_scale` (10 runs ten times faster than life; every duration that a client or
    `/metrics` sees shrinks with it). `port` 0 takes a free one. `kv_capacity_tokens` None takes the
    hardware's. A prompt that does not force its output length gets one from a log-normal with this median
    (`output_median_tokens`) and shape (`output_sigma`).
    `seed` fixes the answers, alike on all replicas that share it, and with the name the noise.
    `slice_explicit_limits` re-queues long generations every 1,024 tokens also where the request named
    its limit (our contract's reading of TGI 3.3; its validation code of early 2025 slices only
    requests without a limit: set False for that).
    With `adapters_max` (places for LoRA adapters; 0: none) it knows `adapters` beside its model, answers 404
    for other names, and takes vLLM's calls where `adapter_calls`; one load takes `adapter_load_s`.
    What makes an engine unlike TGI is `ReplicaLimits`'; besides, `hidden_queue` tells nobody what waits, and
    each `stall_every_s` seconds of simulated time nothing moves for `stall_s` (0: never).
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    model_id: str = "meta-llama/Meta-Llama-3-8B-Instruct"
    hardware: str = "a100-80g/llama-3-8b"
    max_concurrent_requests: int = 128
    max_batch_prefill_tokens: int = 4096
    max_batch_size: int | None = None
    prefill_parallel: int = 1
    max_input_tokens: int = 8191
    max_total_tokens: int = 8192
    kv_capacity_tokens: int | None = None
    max_client_batch_size: int = 4
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    payload_limit_bytes: int = 2_000_000
    block_tokens: int = 16
    prefix_caching: bool = True
    prefill_interference: float = 0.0
    queue_order: str = "fifo"
    cache_share: float = 1.0
    eviction: str = "lru"
    adapters_max: int = 0
    adapters: tuple[str, ...] = ()
    adapter_calls: bool = False
    adapter_load_s: float = 1.0
    hidden_queue: bool = False
    stall_s: float = 0.0
    stall_every_s: float = 60.0
    slice_explicit_limits: bool = True
    bytes_per_token: int = 4
    time_scale: float = 1.0
    slowdown: float = 1.0
    noise: float = 0.0
    overhead_ms: float | None = None
    output_median_tokens: int = 120
    output_sigma: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError(f"replica {self.name!r}: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        found: list[str] = []
        if not self.name:
            found.append("name must not be empty")
        if self.hardware not in HARDWARE:
            found.append(f"unknown hardware {self.hardware!r}; known: {', '.join(sorted(HARDWARE))}")
        if not 0 <= self.port <= 65535:
            found.append(f"port must lie in 0..65535, not {self.port}")
        positive = (
            "max_concurrent_requests",
            "max_batch_prefill_tokens",
            "max_batch_size",
            "prefill_parallel",
            "max_input_tokens",
            "max_client_batch_size",
            "max_best_of",
            "payload_limit_bytes",
            "block_tokens",
            "bytes_per_token",
            "output_median_tokens",
        )
        found += [
            f"{field} must be at least 1, not {value}"
            for field in positive
            if (value := getattr(self, field)) is not None and value < 1
        ]
        found += [
            f"{field} must be above 0, not {value}"
            for field in ("time_scale", "slowdown")
            if not (value := getattr(self, field)) > 0
        ]
        found += unlike_problems(self)
        if not 0 <= self.stall_s < self.stall_every_s:
            found.append(f"stall_s ({self.stall_s}) must be below stall_every_s ({self.stall_every_s})")
        if self.adapters_max < 0 or self.adapter_load_s < 0:
            found.append("adapters_max and adapter_load_s must not be negative")
        if len(self.adapters) > self.adapters_max:
            found.append(f"{len(self.adapters)} adapters have no more than {self.adapters_max} places")
        if not 0 <= self.noise <= 0.3:
            found.append(f"noise must lie in 0..0.3, not {self.noise}")
        if self.output_sigma < 0:
            found.append(f"output_sigma must not be negative, not {self.output_sigma}")
        if self.max_total_tokens <= self.max_input_tokens:
            found.append(
                f"max_total_tokens ({self.max_total_tokens}) must be above "
                f"max_input_tokens ({self.max_input_tokens})"
            )
        if self.hardware in HARDWARE and self.kv_tokens < self.max_total_tokens:
            found.append(
                f"kv_capacity_tokens ({self.kv_tokens}) must hold one request of "
                f"max_total_tokens ({self.max_total_tokens})"
            )
        return found

    @property
    def kv_tokens(self) -> int:
        """KV capacity in force."""
        if self.kv_capacity_tokens is not None:
            return self.kv_capacity_tokens
        return hardware_named(self.hardware).kv_capacity_tokens

    def timing(self) -> Hardware:
        """The hardware's model, with this replica's own overhead where one is set."""
        hardware = hardware_named(self.hardware)
        return hardware if self.overhead_ms is None else hardware.with_overhead(self.overhead_ms)

    def limits(self) -> ReplicaLimits:
        """The scheduler's limits."""
        return ReplicaLimits(
            kv_capacity_tokens=self.kv_tokens,
            max_concurrent_requests=self.max_concurrent_requests,
            max_batch_prefill_tokens=self.max_batch_prefill_tokens,
            max_batch_size=self.max_batch_size,
            prefill_parallel=self.prefill_parallel,
            block_tokens=self.block_tokens,
            prefix_caching=self.prefix_caching,
            prefill_interference=self.prefill_interference,
            queue_order=self.queue_order,
            cache_share=self.cache_share,
            eviction=self.eviction,
        )
