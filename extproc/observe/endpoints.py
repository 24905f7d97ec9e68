"""An endpoint as people and their tools see it: plain values, None where nobody has said."""

from __future__ import annotations

from typing import Any

from extproc.core.endpoint import Endpoint
from extproc.core.reports import GpuReport, KvReport, ReplicaReport


def view(endpoint: Endpoint, *, now_ns: int) -> dict[str, Any]:
    """Everything known of an endpoint; ages in milliseconds, health and weight 0 to 1."""
    report = endpoint.report
    return {
        "address": endpoint.address,
        "pool": endpoint.pool,
        "zone": endpoint.zone,
        "region": endpoint.region,
        "ready": endpoint.ready,
        "draining": endpoint.draining,
        "announced": endpoint.announced,
        "suspect": endpoint.suspect_until_ns > now_ns,
        "health": round(endpoint.health.value, 3),
        "health_target": round(endpoint.health.target, 3),
        "causes": {
            name: {"kind": cause.kind.value, "factor": round(cause.factor, 3), "detail": cause.detail}
            for name, cause in endpoint.health.causes.items()
        },
        "in_flight": endpoint.requests,
        "in_flight_tokens": endpoint.tokens,
        "peers_in_flight": endpoint.peer_requests,
        "foreign": endpoint.foreign,
        "max_concurrent": endpoint.max_concurrent,
        "waiting_first": endpoint.load.queued,
        "streaming": endpoint.load.streaming,
        "kv_promised_tokens": endpoint.load.reserved_tokens,
        "hardware": endpoint.hardware,
        "speed_factor": round(endpoint.speed.factor, 3),
        "speed_confidence": round(endpoint.speed.confidence, 3),
        "node": report.node if report else None,
        "state": report.state.value if report else None,
        "detail": report.detail if report else "",
        "age_ms": None
        if endpoint.reported_ns is None
        else max(0, (now_ns - endpoint.reported_ns) // 1_000_000),
        "stale": endpoint.stale,
        "engine": report.engine if report else None,
        "models": list(report.models) if report else [],
        "waiting": report.waiting if report else None,
        "running": report.running if report else None,
        "kv_used_tokens": report.kv_used_tokens if report else None,
        "kv_capacity_tokens": report.kv_capacity_tokens if report else None,
        "cache_source": endpoint.cache.source,
        "cache_corrections": dict(endpoint.cache.corrections),
        "cache_tokens": endpoint.cache_tokens or None,
        "prefix_hit_ratio": prefix_hit_ratio(report) if report else None,
        "kv_events": _kv(report.kv) if report and report.kv else None,
        "adapters": None if endpoint.adapters is None else endpoint.adapters.names,
        "adapter_loads": None if endpoint.adapters is None else endpoint.adapters.loads,
        "probe_ttft_ms": report.probe_ttft_ms if report else None,
        "gpus": [_gpu(gpu) for gpu in report.gpus] if report else [],
    }


def prefix_hit_ratio(report: ReplicaReport) -> float | None:
    """The share of looked up prompt tokens that its engine found cached since its start; None: unknown."""
    queried, hit = report.prefix_queried_tokens, report.prefix_hit_tokens
    return round(min(1.0, hit / queried), 3) if queried and hit is not None else None


def _kv(kv: KvReport) -> dict[str, Any]:
    return {
        "cached_tokens": kv.cached_tokens,
        "complete": kv.complete,
        "events": kv.events,
        "unreadable": kv.unreadable,
        "gaps": kv.gaps,
        "replays": kv.replays,
        "clears": kv.clears,
    }


def _gpu(gpu: GpuReport) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "utilization_percent": gpu.utilization_percent,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_others_bytes": gpu.memory_others_bytes,
        "utilization_others_percent": gpu.utilization_others_percent,
        "power_w": gpu.power_w,
        "temperature_c": gpu.temperature_c,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "sm_clock_max_mhz": gpu.sm_clock_max_mhz,
        "throttle_reasons": gpu.throttle_reasons,
        "ecc_uncorrected": gpu.ecc_uncorrected,
        "lost": gpu.lost,
        "xids": [list(xid) for xid in gpu.xids],
    }
