"""From a snapshot to samples, metric by metric, in the order of the table. Pure; runs in a thread.

Samples come one by one, so that whoever renders them may rest between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from extproc import __version__
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.core.scaling.reported import reported_milli
from extproc.core.scaling.values import PoolPlan
from extproc.observe.metrics.counting import COST, GPU_S, INPUT, OUTPUT, PLACES, POOLS_MAX
from extproc.observe.metrics.labels import OTHER
from extproc.observe.metrics.snapshot import CacheSeen, MetricsSnapshot, SeenScaling
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
#: Words of PoolPlan (core/scaling/values.py).
BINDINGS = ("ttft", "tpot", "permits", "kv", "none")
BOUNDS = ("min", "max", "budget", "step", "hold", "schedule")


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


def _plain(read: Callable[[MetricsSnapshot], Mapping[str, int]]) -> Make:
    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for name, count in read(snapshot).items():
            yield "", (name,), count

    return samples


def _paired(read: Callable[[MetricsSnapshot], Mapping[tuple[str, str], float]]) -> Make:
    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for key, figure in read(snapshot).items():
            yield "", key, figure

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


def _adapter_loads(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for each in snapshot.seen:
        if each.adapter_loads is not None:
            yield "", (each.pool, each.address), each.adapter_loads


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


def _pooled(read: Callable[[SeenScaling], float], *, fresh: bool = False) -> Make:
    """A figure of each pool that scales; with `fresh` none of a plan that is too old."""

    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for each in snapshot.scaling.pools[:POOLS_MAX]:
            if not (fresh and each.stale):
                yield "", (each.plan.pool,), read(each)

    return samples


def _parted(read: Callable[[PoolPlan], Iterable[tuple[str, float]]]) -> Make:
    """Some figures of each pool's plan, by a second label."""

    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for each in snapshot.scaling.pools[:POOLS_MAX]:
            for part, value in read(each.plan):
                yield "", (each.plan.pool, part), value

    return samples


def _stages(plan: PoolPlan) -> Iterable[tuple[str, float]]:
    return ("ready", plan.ready), ("loading", plan.loading), ("draining", plan.draining)


def _forecast(plan: PoolPlan) -> Iterable[tuple[str, float]]:
    band = plan.forecast
    return ("low", band.low), ("median", band.median), ("high", band.high)


def _loads(plan: PoolPlan) -> Iterable[tuple[str, float]]:
    return ("50", plan.load_time.p50_s), ("90", plan.load_time.p90_s)


def _one_of(names: Sequence[str], read: Callable[[PoolPlan], str]) -> Callable[[PoolPlan], Any]:
    """1 for the one that holds, 0 for the others: a series does not stop when another begins."""
    return lambda plan: [(name, float(read(plan) == name)) for name in names]


def _cached(read: Callable[[CacheSeen], float]) -> Make:
    """A figure of the cache, where there is one."""

    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        if snapshot.cache.on:
            yield "", (), read(snapshot.cache)

    return samples


def _keyed(read: Callable[[MetricsSnapshot], Mapping[Any, float]]) -> Make:
    """A count by several labels, which are its key."""
    return lambda snapshot, _: (("", key, count) for key, count in read(snapshot).items())


def _spill_spent(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for pool, spent in snapshot.spill_spent.items():
        yield "", (pool,), spent


def _saved_tokens(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for place, direction in enumerate(("input", "output")):
        for tenant, saved in snapshot.cache.saved.items():
            yield "", (tenant, direction), saved[place]


def _saved_seconds(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    for tenant, saved in snapshot.cache.saved.items():
        yield "", (tenant,), saved[2]


def _silence(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
    if snapshot.scaling.silence_s is not None:
        yield "", (), snapshot.scaling.silence_s


def _variants(read: Callable[[PoolPlan], float]) -> Make:
    def samples(snapshot: MetricsSnapshot, _spec: Spec) -> Iterator[MetricSample]:
        for each in snapshot.scaling.pools[:POOLS_MAX]:
            if not each.stale:
                yield "", (each.plan.pool, each.namespace, each.accelerator), read(each.plan)

    return samples


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
    "endpoint_adapter_loads_total": _adapter_loads,
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
    "adapter_events_total": _keyed(lambda snapshot: snapshot.adapter_events),
    "adapter_replicas": _keyed(lambda snapshot: snapshot.adapter_replicas),
    "adapter_calls_total": _keyed(lambda snapshot: snapshot.adapter_calls),
    "spilled_total": _keyed(lambda snapshot: snapshot.spilled),
    "spill_spent": _spill_spent,
    "site_up": _keyed(lambda snapshot: snapshot.site_up),
    "site_round_trip_seconds": _keyed(lambda snapshot: snapshot.site_way_s),
    "site_choices_total": _keyed(lambda snapshot: snapshot.site_choices),
    "client_places_total": _keyed(lambda snapshot: snapshot.client_places),
    "cache_requests_total": _keyed(lambda snapshot: snapshot.cache.requests),
    "cache_fills_total": _plain(lambda snapshot: snapshot.cache.fills),
    "cache_answers": _cached(lambda cache: cache.answers),
    "cache_bytes": _cached(lambda cache: cache.bytes),
    "cache_evicted_total": _cached(lambda cache: cache.evicted),
    "cache_store_up": _cached(lambda cache: float(not cache.away)),
    "cache_refused_total": _plain(lambda snapshot: snapshot.cache.refused),
    "cache_dropped_total": _plain(lambda snapshot: snapshot.cache.dropped),
    "cache_saved_tokens_total": _saved_tokens,
    "cache_saved_gpu_seconds_total": _saved_seconds,
    "semantic_requests_total": _paired(lambda snapshot: snapshot.cache.semantic.requests),
    "semantic_refused_total": _plain(lambda snapshot: snapshot.cache.semantic.refused),
    "semantic_checks_total": _plain(lambda snapshot: snapshot.cache.semantic.checks),
    "semantic_questions": _cached(lambda cache: cache.semantic.questions),
    "semantic_off": _cached(lambda cache: cache.semantic.off),
    "semantic_up": _cached(lambda cache: float(cache.semantic.up or not cache.semantic.on)),
    "prompt_error_ratio": _paired(lambda snapshot: snapshot.tokens.errors),
    "prompt_counts_total": _paired(lambda snapshot: snapshot.tokens.prompts),
    "prompt_texts_total": _paired(lambda snapshot: snapshot.tokens.texts),
    "prompt_counts_bytes": _plain(lambda snapshot: snapshot.tokens.bytes),
    "tokenizer_usable": _plain(lambda snapshot: snapshot.tokens.usable),
    "scaling_wanted_replicas": _pooled(lambda each: each.plan.wanted, fresh=True),
    "scaling_reported_replicas": _pooled(
        lambda each: reported_milli(each.plan.wanted, each.plan.had) / 1_000, fresh=True
    ),
    "scaling_replicas": _parted(_stages),
    "scaling_forecast_requests_per_second": _parted(_forecast),
    "scaling_horizon_seconds": _pooled(lambda each: each.plan.horizon_s),
    "scaling_load_seconds": _parted(_loads),
    "scaling_loads_measured": _pooled(lambda each: each.plan.load_time.measured),
    "scaling_binding": _parted(_one_of(BINDINGS, lambda plan: plan.need.binding)),
    "scaling_bound": _parted(_one_of(BOUNDS, lambda plan: plan.bound)),
    "scaling_unmet_replicas": _pooled(lambda each: each.unmet),
    "scaling_overdue_ratio": _pooled(lambda each: each.overdue),
    "scaling_turns": _pooled(lambda each: each.turns),
    "scaling_plan_age_seconds": _pooled(lambda each: each.age_s),
    "scaler_silence_seconds": _silence,
    "desired_replicas": _variants(lambda plan: plan.wanted),
    "current_replicas": _variants(lambda plan: plan.had),
    "desired_ratio": _variants(lambda plan: plan.wanted / plan.had if plan.had else plan.wanted),
    "prediction_error_ratio": _errors,
    "events_total": _plain(lambda snapshot: snapshot.counts.events),
    "event_loop_lag_seconds": _lag,
    "alerts_firing": _firing,
    "build_info": _build,
}
