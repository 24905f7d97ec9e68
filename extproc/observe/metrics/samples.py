"""From a snapshot to samples, metric by metric, in the order of the table. Pure; runs in a thread.

Samples come one by one, so that whoever renders them may rest between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from extproc import __version__
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.observe.metrics.counting import COST, GPU_S, INPUT, OUTPUT, PLACES
from extproc.observe.metrics.labels import OTHER
from extproc.observe.metrics.snapshot import MetricsSnapshot
from extproc.observe.metrics.table import TABLE, Spec
from extproc.observe.metrics.text import MetricSample, histogram

#: A metric's samples.
Make = Callable[[MetricsSnapshot, Spec], Iterator[MetricSample]]

#: Cards of one endpoint that have series of their own.
GPUS_MAX = 16
#: What is counted of KV events: fields of KvReport.
KV_COUNTS = ("events", "unreadable", "gaps", "replays", "clears")
OUTCOMES = tuple((end.value, place) for end, place in PLACES.items())
YES, NO = "yes", "no"


def families(snapshot: MetricsSnapshot) -> Iterator[tuple[Spec, Iterator[MetricSample]]]:
    """Each metric with its samples; one that has none comes too."""
    for spec in TABLE:
        yield spec, _MAKE[spec.name](snapshot, spec)


def _requests(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, figures in snapshot.counts.traffic:
        for outcome, at in OUTCOMES:
            yield "", (*key, outcome), figures[at]


def _refusals(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, count in snapshot.counts.refusals.items():
        yield "", key, count


def _by_pool(snapshot: MetricsSnapshot, place: int) -> dict[tuple[str, str], float]:
    """A figure by tenant and pool, summed over classes; in values that no garbage collector follows."""
    found: dict[tuple[str, str], float] = {}
    for (tenant, pool, _), figures in snapshot.counts.traffic:
        key = (tenant, pool)
        found[key] = found.get(key, 0.0) + figures[place]
    return found


def _tokens(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for direction, place in (("input", INPUT), ("output", OUTPUT)):
        for key, tokens in _by_pool(snapshot, place).items():
            yield "", (*key, direction), tokens


def _cost(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, cost in _by_pool(snapshot, COST).items():
        yield "", key, cost


def _gpu_seconds(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, seconds in _by_pool(snapshot, GPU_S).items():
        yield "", key, seconds


def _slo(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, (met, missed) in snapshot.counts.slo:
        yield "", (*key, YES), met
        yield "", (*key, NO), missed


def _times(snapshot: MetricsSnapshot, spec: Spec) -> Iterator[MetricSample]:
    for key, histograms in snapshot.counts.times:
        yield from histogram(key, histograms[spec.name], spec.buckets)


def _decision(snapshot: MetricsSnapshot, spec: Spec) -> Iterator[MetricSample]:
    yield from histogram((), snapshot.counts.decision, spec.buckets)


def _lag(snapshot: MetricsSnapshot, spec: Spec) -> Iterator[MetricSample]:
    yield from histogram((), snapshot.counts.lag, spec.buckets)


def _decisions(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for (pool, strategy, degraded), count in snapshot.counts.decisions.items():
        yield "", (pool, strategy, YES if degraded else NO), count


def _plain(
    read: Callable[[MetricsSnapshot], Mapping[str, int]],
) -> Make:
    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for name, count in read(snapshot).items():
            yield "", (name,), count

    return samples


def _held(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, count in snapshot.held.items():
        yield "", key, count


def _quotas(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    places = zip(snapshot.quota_tenants, snapshot.quota_limits, snapshot.quota_ratios, strict=True)
    for tenant, limit, ratio in places:
        yield "", (tenant, limit), ratio


def _by_tenant(
    read: Callable[[MetricsSnapshot], Mapping[str, int]],
) -> Make:
    """The named ones' counts, and the sum of all others where there are any."""

    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        counts = read(snapshot)
        others = sum(counts.values())
        for name in snapshot.tenants:
            count = counts.get(name, 0)
            others -= count
            yield "", (name,), count
        if others:
            yield "", (OTHER,), others

    return samples


def _pool_endpoints(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for pool in snapshot.in_flight:
        yield "", (pool, YES), snapshot.endpoints[pool, True]
        yield "", (pool, NO), snapshot.endpoints[pool, False]


def _pool_bound(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for key, seconds in snapshot.bound.items():
        yield "", key, seconds


def _endpoints(snapshot: MetricsSnapshot, spec: Spec) -> Iterator[MetricSample]:
    what = spec.name.removeprefix("endpoint_")
    for each in snapshot.seen:
        report = each.report
        value: float | None
        match what:
            case "ready":
                value = each.ready
            case "health":
                value = each.health
            case "in_flight":
                value = each.in_flight
            case "stale":
                value = each.stale
            case "waiting":
                value = report.waiting if report is not None else None
            case "running":
                value = report.running if report is not None else None
            case "cache_tokens":
                value = each.cache_tokens or None
            case "kv_events_complete":
                kv = report.kv if report is not None else None
                value = kv.complete if kv is not None else None
            case _:
                used = report.kv_used_tokens if report is not None else None
                value = used / each.kv_tokens if used is not None and each.kv_tokens else None
        if value is not None:
            yield "", (each.pool, each.address), float(value)


def _cache_source(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for each in snapshot.seen:
        yield "", (each.pool, each.address, each.cache_source), 1.0


def _cache_corrections(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for each in snapshot.seen:
        for cause, count in each.cache_corrections.items():
            yield "", (each.pool, each.address, cause), count


def _reported(read: Callable[[ReplicaReport], Iterable[tuple[str, int | None]]]) -> Make:
    """Counters that an agent tells, each by its name; what it does not say is left out."""

    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for each in snapshot.seen:
            for what, count in read(each.report) if each.report is not None else ():
                if count is not None:
                    yield "", (each.pool, each.address, what), count

    return samples


def _prefix_tokens(report: ReplicaReport) -> Iterable[tuple[str, int | None]]:
    return ("queried", report.prefix_queried_tokens), ("hit", report.prefix_hit_tokens)


def _kv_events(report: ReplicaReport) -> Iterable[tuple[str, int | None]]:
    kv = report.kv
    return [(what, getattr(kv, what)) for what in KV_COUNTS] if kv is not None else ()


def _gpus(
    read: Callable[[GpuReport], float | None],
) -> Make:
    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for each in snapshot.seen:
            for gpu in each.report.gpus[:GPUS_MAX] if each.report is not None else ():
                value = read(gpu)
                if value is not None:
                    yield "", (each.address, gpu.uuid), float(value)

    return samples


def _utilization(gpu: GpuReport) -> float | None:
    return None if gpu.utilization_percent is None else gpu.utilization_percent / 100.0


def _errors(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for what, error in snapshot.errors.items():
        if error is not None:
            yield "", (what,), error


def _firing(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for rule, fires in snapshot.firing.items():
        yield "", (rule,), float(fires)


def _build(_snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    yield "", (__version__,), 1.0


_MAKE: Mapping[str, Make] = {
    "requests_total": _requests,
    "refusals_total": _refusals,
    "tokens_total": _tokens,
    "cost_total": _cost,
    "gpu_seconds_total": _gpu_seconds,
    "slo_requests_total": _slo,
    "ttft_seconds": _times,
    "tpot_seconds": _times,
    "request_seconds": _times,
    "hold_seconds": _times,
    "decision_seconds": _decision,
    "decisions_total": _decisions,
    "held": _held,
    "in_flight": _plain(lambda snapshot: snapshot.in_flight),
    "tenant_in_flight": _by_tenant(lambda snapshot: snapshot.in_flight_of),
    "tenant_held": _by_tenant(lambda snapshot: snapshot.held_of),
    "quota_used_ratio": _quotas,
    "pool_endpoints": _pool_endpoints,
    "pool_bound_seconds": _pool_bound,
    "endpoint_ready": _endpoints,
    "endpoint_health": _endpoints,
    "endpoint_in_flight": _endpoints,
    "endpoint_waiting": _endpoints,
    "endpoint_running": _endpoints,
    "endpoint_kv_utilization": _endpoints,
    "endpoint_cache_source": _cache_source,
    "endpoint_cache_tokens": _endpoints,
    "endpoint_cache_corrections_total": _cache_corrections,
    "endpoint_prefix_tokens_total": _reported(_prefix_tokens),
    "endpoint_kv_events_total": _reported(_kv_events),
    "endpoint_kv_events_complete": _endpoints,
    "endpoint_stale": _endpoints,
    "gpu_utilization_ratio": _gpus(_utilization),
    "gpu_memory_used_bytes": _gpus(lambda gpu: gpu.memory_used_bytes),
    "gpu_memory_total_bytes": _gpus(lambda gpu: gpu.memory_total_bytes),
    "gpu_temperature_celsius": _gpus(lambda gpu: gpu.temperature_c),
    "gpu_power_watts": _gpus(lambda gpu: gpu.power_w),
    "gpu_lost": _gpus(lambda gpu: gpu.lost),
    "prediction_error_ratio": _errors,
    "events_total": _plain(lambda snapshot: snapshot.counts.events),
    "event_loop_lag_seconds": _lag,
    "alerts_firing": _firing,
    "build_info": _build,
}
