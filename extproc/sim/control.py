"""A replica's control surface: `/info`, `/sim/state`, and the faults a test scripts with `/sim/fault`.

`/sim` is ours, not TGI's. Owns which faults there are; the scheduler's own (slow, hung, refusing) are
handed to it, the rest (error answers, failing health) live here.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Any

from msgspec import Meta, Struct

from extproc.sim.engine import SimEngine
from extproc.sim.lora_routes import LoraRoutes
from extproc.sim.spec import ReplicaSpec
from extproc.sim.timing import TIMING_LABEL


class FaultOrder(Struct, forbid_unknown_fields=True):
    """`POST /sim/fault`: what is left out stays as it is; `clear` undoes everything first.

    `slowdown` is a factor on every step; `hang` stops all progress; `refuse` answers `overloaded` to
    everything; `refuse_share` (0..1) of generation requests get `status` before anything else;
    `healthy` false fails the health routes.
    """

    slowdown: Annotated[float, Meta(gt=0)] | None = None
    hang: bool | None = None
    refuse: bool | None = None
    refuse_share: Annotated[float, Meta(ge=0, le=1)] | None = None
    status: Annotated[int, Meta(ge=400, le=599)] | None = None
    healthy: bool | None = None
    clear: bool = False


class HttpFaults:
    """Faults outside the scheduler. Deterministic: a seed gives the same requests the same fate."""

    def __init__(self, seed: int | str) -> None:
        self.refuse_share = 0.0
        self.status = 503
        self.unhealthy = False
        self.struck = 0
        self._rng = Random(seed)

    def strike(self) -> int:
        """The status to answer this request with instead of serving it; 0 to serve it."""
        if self.refuse_share and self._rng.random() < self.refuse_share:
            self.struck += 1
            return self.status
        return 0

    def apply(self, fault: FaultOrder, engine: SimEngine) -> None:
        """Set what the request names."""
        if fault.clear:
            self.refuse_share, self.status, self.unhealthy = 0.0, 503, False
            engine.set_fault(slowdown=engine.spec.slowdown, hang=False, refuse=False)
        if fault.refuse_share is not None:
            self.refuse_share = fault.refuse_share
        if fault.status is not None:
            self.status = fault.status
        if fault.healthy is not None:
            self.unhealthy = not fault.healthy
        engine.set_fault(slowdown=fault.slowdown, hang=fault.hang, refuse=fault.refuse)


def info(spec: ReplicaSpec) -> dict[str, Any]:
    """TGI's `/info`, which tells no KV capacity; `docker_label` says what this is."""
    return {
        "model_id": spec.model_id,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": spec.max_concurrent_requests,
        "max_best_of": spec.max_best_of,
        "max_stop_sequences": spec.max_stop_sequences,
        "max_input_tokens": spec.max_input_tokens,
        "max_total_tokens": spec.max_total_tokens,
        "validation_workers": 2,
        "max_client_batch_size": spec.max_client_batch_size,
        "router": "text-generation-router",
        "version": "3.3.7",
        "sha": None,
        "docker_label": f"{TIMING_LABEL} ({spec.hardware})",
    }


def state(engine: SimEngine, faults: HttpFaults, lora: LoraRoutes, port: int) -> dict[str, Any]:
    """`GET /sim/state`: exact gauges, for tests to compare telemetry with. Tokens, requests, ratios."""
    spec, replica = engine.spec, engine.replica
    return {
        "name": spec.name,
        "port": port,
        "hardware": spec.hardware,
        "time_scale": spec.time_scale,
        "waiting": replica.waiting,
        "running": replica.running,
        "permits_in_use": replica.permits_in_use,
        "max_concurrent_requests": spec.max_concurrent_requests,
        "kv_used_tokens": replica.kv_used_tokens,
        "kv_reserved_tokens": replica.batch_current_max_tokens,
        "kv_cached_tokens": replica.cache.used_tokens,
        "kv_capacity_tokens": spec.kv_tokens,
        "served": engine.served,
        "cancelled": engine.cancelled,
        "overloaded": engine.metrics.failures["overloaded"],
        "struck": faults.struck,
        "tokens": replica.tokens_total,
        "cached_prompt_tokens": engine.cached_prompt_tokens,
        "steps": replica.steps,
        "slowdown": replica.slowdown,
        "hung": replica.hung,
        "healthy": not faults.unhealthy,
        "adapters": sorted(lora.loaded),
        "adapter_loads": lora.loads,
        "adapter_unloads": lora.unloads,
        "adapters_unloaded_in_use": lora.unloaded_in_use,
    }
