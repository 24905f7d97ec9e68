"""All figures of one moment, taken from the running scheduler in slices that never keep a decision waiting.

The counters are copied in one go, so that they agree with one another; endpoints and quotas follow in slices
between which the event loop runs. What is taken is plain or immutable: the rest is done in a thread. It is
taken into few large containers, since many small ones that live through a scrape call for a full garbage
collection, which stops everything.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from extproc.core.reports import ReplicaReport
from extproc.core.scaling.values import PoolPlan
from extproc.core.scheduler import Scheduler
from extproc.observe.metrics.counting import Counting, Counts

#: Endpoints, and tenants with quotas, that are read before the event loop runs again: about a millisecond.
ENDPOINTS_A_SLICE, QUOTAS_A_SLICE = 200, 50
#: Alert rules shown.
RULES_MAX = 256


class SeenEndpoint(NamedTuple):
    """An endpoint as it was; `report` is None where its agent is silent or stale."""

    pool: str
    address: str
    ready: bool
    health: float
    in_flight: int
    #: None where no agent has ever spoken.
    stale: bool | None
    report: ReplicaReport | None
    kv_tokens: int
    cache_source: str
    #: 0 where nothing was learnt.
    cache_tokens: int
    #: By cause. Of texts and numbers alone: no garbage collector follows it.
    cache_corrections: dict[str, int]
    #: None where its pool has no adapters.
    adapter_loads: int | None = None


class SeenScaling(NamedTuple):
    """A pool that scales, as it was: its newest plan, how old that is, and what is wrong."""

    plan: PoolPlan
    age_s: float
    #: Whether it is too old to go by; then it says no number of replicas.
    stale: bool = False
    unmet: float = 0.0
    overdue: float = 0.0
    turns: int = 0
    namespace: str = ""
    accelerator: str = ""


class ScalingSeen(NamedTuple):
    """Everything of scaling; `silence_s` is None without an external scaler."""

    pools: tuple[SeenScaling, ...] = ()
    silence_s: float | None = None


class SemanticSeen(NamedTuple):
    """Everything of the semantic cache."""

    #: By tenant and outcome; by kind of guard; by what came of a check.
    requests: Mapping[tuple[str, str], int] = MappingProxyType({})
    refused: Mapping[str, int] = MappingProxyType({})
    checks: Mapping[str, int] = MappingProxyType({})
    questions: int = 0
    #: Tenants and groups for which it is off by its own figures; whether its process is there.
    off: int = 0
    up: bool = False
    on: bool = False


class CacheSeen(NamedTuple):
    """Everything of the response cache; tenants by their own names, a few hundred of them."""

    #: By tenant and outcome; by what became of answers.
    requests: Mapping[tuple[str, str], int] = MappingProxyType({})
    fills: Mapping[str, int] = MappingProxyType({})
    #: Input tokens, output tokens and replica seconds, by tenant.
    saved: Mapping[str, tuple[float, float, float]] = MappingProxyType({})
    answers: int = 0
    bytes: int = 0
    evicted: int = 0
    #: What a store that others reach gave back wrong, and what it was not told; whether it cannot be reached.
    refused: Mapping[str, int] = MappingProxyType({})
    dropped: Mapping[str, int] = MappingProxyType({})
    away: bool = False
    #: Whether there is one at all.
    on: bool = False
    semantic: SemanticSeen = SemanticSeen()


class TokensSeen(NamedTuple):
    """How prompts are sized, by pool and a word; `usable` and `bytes` are of pools with a tokenizer."""

    #: By "estimate" and "tokenizer".
    errors: Mapping[tuple[str, str], float] = MappingProxyType({})
    prompts: Mapping[tuple[str, str], int] = MappingProxyType({})
    texts: Mapping[tuple[str, str], int] = MappingProxyType({})
    usable: Mapping[str, bool] = MappingProxyType({})
    bytes: Mapping[str, int] = MappingProxyType({})

    def labelled(self, of: Callable[[str], str]) -> TokensSeen:
        """The same by pools' label values."""
        return TokensSeen(
            {(of(pool), word): value for (pool, word), value in self.errors.items()},
            {(of(pool), word): value for (pool, word), value in self.prompts.items()},
            {(of(pool), word): value for (pool, word), value in self.texts.items()},
            {of(pool): value for pool, value in self.usable.items()},
            {of(pool): value for pool, value in self.bytes.items()},
        )


@dataclass(slots=True)
class MetricsSnapshot:
    """Label values and figures, by metric."""

    counts: Counts
    held: Mapping[tuple[str, str], int]
    #: Those that have a name.
    tenants: list[str]
    #: By tenant, with or without a name.
    in_flight_of: Mapping[str, int]
    held_of: Mapping[str, int]
    errors: Mapping[str, float | None]
    firing: Mapping[str, bool]
    in_flight: Counter[str] = field(default_factory=Counter)
    #: By pool and readiness.
    endpoints: Counter[tuple[str, bool]] = field(default_factory=Counter)
    seen: list[SeenEndpoint] = field(default_factory=list)
    #: For how long what binds a pool has bound it, by pool and resource, in seconds.
    bound: dict[tuple[str, str], float] = field(default_factory=dict)
    #: Used over allowed, and whose and which limit it is, side by side.
    quota_ratios: array[float] = field(default_factory=lambda: array("d"))
    quota_tenants: list[str] = field(default_factory=list)
    quota_limits: list[str] = field(default_factory=list)
    scaling: ScalingSeen = field(default_factory=ScalingSeen)
    #: Spilled requests by pool, other pool and why; what they cost in the last hour, by pool.
    spilled: dict[tuple[str, str, str], int] = field(default_factory=dict)
    spill_spent: dict[str, float] = field(default_factory=dict)
    #: Other sites by the pool that they are: whether each answered, and the seconds there and back.
    site_up: dict[tuple[str], int] = field(default_factory=dict)
    site_way_s: dict[tuple[str], float] = field(default_factory=dict)
    #: Requests by why they stay or go, and by where their clients are.
    site_choices: dict[tuple[str], int] = field(default_factory=dict)
    client_places: dict[tuple[str], int] = field(default_factory=dict)
    #: LoRA adapters by pool and name: what became of them, and how many replicas have each; by pool, call and
    #: result: the calls that load them.
    adapter_events: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    adapter_replicas: Counter[tuple[str, str]] = field(default_factory=Counter)
    adapter_calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    cache: CacheSeen = field(default_factory=CacheSeen)
    tokens: TokensSeen = field(default_factory=TokensSeen)
    #: What other parts show: prometheus_client's metrics.
    extra: list[Any] = field(default_factory=list)


async def take(
    counting: Counting,
    scheduler: Scheduler,
    *,
    endpoints_max: int,
    clock: Callable[[], int],
    bound: Callable[[], Mapping[tuple[str, str], float]] = dict,
    firing: Callable[[], Mapping[str, bool]],
    scaling: Callable[[], ScalingSeen] = ScalingSeen,
    extra: Iterable[Callable[[], Iterable[Any]]] = (),
    cache: Callable[[], CacheSeen] = CacheSeen,
    tokens: Callable[[], TokensSeen] | None = None,
    adapter_calls: Callable[[], Mapping[tuple[str, str, str], int]] = dict,
) -> MetricsSnapshot:
    """Take everything; on the event loop that owns the scheduler."""
    found = _counted(counting, scheduler, firing())
    for (pool, resource), seconds in bound().items():
        found.bound[counting.pools.of(pool), resource] = seconds
    found.scaling = scaling()
    found.cache = _labelled(cache(), counting)
    _spills(found, counting, scheduler, clock())
    for name, link in scheduler.sites.links.by_pool.items():
        label = (counting.pools.of(name),)
        found.site_up[label], found.site_way_s[label] = int(not link.trouble), link.way_ns / 1e9
    found.site_choices = {(reason,): count for reason, count in scheduler.sites.counts.items()}
    found.client_places = {
        (name.removeprefix("place."),): count
        for name, count in scheduler.counts.items()
        if name.startswith("place.")
    }
    _adapters(found, counting, scheduler)
    for (pool, call, result), count in adapter_calls().items():
        found.adapter_calls[counting.pools.of(pool), call, result] += count
    if tokens is not None:
        found.tokens = tokens().labelled(counting.pools.of)
    for more in extra:
        found.extra += more()
    await asyncio.sleep(0)
    await _endpoints(found, counting, scheduler, endpoints_max)
    await _quotas(found, scheduler, clock)
    return found


def _spills(found: MetricsSnapshot, counting: Counting, scheduler: Scheduler, now_ns: int) -> None:
    spills = scheduler.spills
    for (pool, to, why), count in spills.counts.items():
        key = counting.pools.of(pool), counting.pools.of(to), why
        found.spilled[key] = found.spilled.get(key, 0) + count
    for pool in scheduler.settings.spills:
        found.spill_spent[counting.pools.of(pool)] = spills.spent(pool, now_ns=now_ns)


def _adapters(found: MetricsSnapshot, counting: Counting, scheduler: Scheduler) -> None:
    of_pool, of_adapter = counting.pools.of, counting.adapters.of
    for pool in scheduler.fleet.pools.values():
        if pool.adapters is None:
            continue
        counts = pool.adapter_counts
        for what, by_name in (
            ("requests", counts.requests),
            ("loads", counts.loads),
            ("drops", counts.drops),
        ):
            for name, count in by_name.items():
                found.adapter_events[of_pool(pool.name), of_adapter(name), what] += count
        for each in pool.endpoints:
            for name in each.adapters.names if each.adapters is not None else ():
                found.adapter_replicas[of_pool(pool.name), of_adapter(name)] += 1


def _labelled(cache: CacheSeen, counting: Counting) -> CacheSeen:
    """The same by tenants' label values, of which there is a bound."""
    requests: Counter[tuple[str, str]] = Counter()
    for (tenant, outcome), count in cache.requests.items():
        requests[counting.tenants.of(tenant), outcome] += count
    saved: dict[str, tuple[float, float, float]] = {}
    for tenant, more in cache.saved.items():
        label = counting.tenants.of(tenant)
        before = saved.get(label, (0.0, 0.0, 0.0))
        saved[label] = (before[0] + more[0], before[1] + more[1], before[2] + more[2])
    questions: Counter[tuple[str, str]] = Counter()
    for (tenant, outcome), count in cache.semantic.requests.items():
        questions[counting.tenants.of(tenant), outcome] += count
    return cache._replace(
        requests=requests, saved=saved, semantic=cache.semantic._replace(requests=questions)
    )


def _counted(counting: Counting, scheduler: Scheduler, firing: Mapping[str, bool]) -> MetricsSnapshot:
    feedback, classes = scheduler.settlement.feedback, scheduler.policy.classes
    held: Counter[tuple[str, str]] = Counter()
    for (pool, klass), count in Counter(
        (each.pool, each.klass) for each in scheduler.dispatcher.waiting.values()
    ).items():
        name = classes[min(klass, len(classes) - 1)].name
        held[counting.pools.of(pool), counting.classes.of(name)] += count
    counts = counting.read()
    for key, _ in counts.times:
        # Where somebody may wait, nobody waiting is said too.
        held.setdefault(key, 0)
    return MetricsSnapshot(
        counts=counts,
        held=held,
        tenants=list(counting.tenants.named),
        in_flight_of=dict(scheduler.ledger.by_tenant),
        held_of=dict(scheduler.dispatcher.queue.by_tenant),
        errors={"ttft": feedback.ttft.median, "completion": feedback.completion.median},
        firing=dict(list(firing.items())[:RULES_MAX]),
    )


async def _endpoints(found: MetricsSnapshot, counting: Counting, scheduler: Scheduler, most: int) -> None:
    fleet = scheduler.fleet
    for name in fleet.pools:
        found.in_flight[counting.pools.of(name)] += 0
    everyone = [*fleet.endpoints, *fleet.leaving.values()]
    members = len(everyone) - len(fleet.leaving)
    for begin in range(0, len(everyone), ENDPOINTS_A_SLICE):
        for number, endpoint in enumerate(everyone[begin : begin + ENDPOINTS_A_SLICE], begin):
            pool = counting.pools.of(endpoint.pool)
            found.in_flight[pool] += endpoint.requests
            if number >= members:
                continue
            found.endpoints[pool, endpoint.ready] += 1
            if number < most:
                spoke = endpoint.report is not None
                found.seen.append(
                    SeenEndpoint(
                        pool,
                        endpoint.address,
                        endpoint.ready,
                        endpoint.health.value,
                        endpoint.requests,
                        endpoint.stale if spoke else None,
                        None if endpoint.stale else endpoint.report,
                        endpoint.kv_tokens,
                        endpoint.cache.source,
                        endpoint.cache_tokens,
                        dict(endpoint.cache.corrections),
                        None if endpoint.adapters is None else endpoint.adapters.loads,
                    )
                )
        await asyncio.sleep(0)


async def _quotas(found: MetricsSnapshot, scheduler: Scheduler, clock: Callable[[], int]) -> None:
    for begin in range(0, len(found.tenants), QUOTAS_A_SLICE):
        accounts, now_ns = scheduler.policy.accounts, clock()
        for name in found.tenants[begin : begin + QUOTAS_A_SLICE]:
            # Of no key and no model: what is limited is the tenant as a whole.
            account = accounts.of(name, "", "")
            for each in scheduler.quotas.usage(account, now_ns=now_ns) if account.scopes else ():
                found.quota_ratios.append(each.used / each.allowed if each.allowed else 0.0)
                found.quota_tenants.append(name)
                found.quota_limits.append(each.limit)
        await asyncio.sleep(0)
