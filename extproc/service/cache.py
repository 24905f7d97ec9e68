"""The running service's response cache: its rules by the configuration, where it keeps, its figures.

Owns what a configuration makes of tenants, pools and groups. Off without the section `cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.cache.purging import AnswerOrigin, PurgeOrder
from extproc.cache.sealed import AnswerSeal
from extproc.config.adapters import path_of
from extproc.config.cache import CacheConfig, PoolCache, TenantCache, TenantSemantic
from extproc.config.model import Config, PoolConfig
from extproc.config.secret import answer_keys
from extproc.core.cachekeys import CacheCharge, CacheRule, SemanticRule
from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Reservation
from extproc.core.tenant import Tenant
from extproc.observe.metrics.snapshot import CacheSeen
from extproc.service.parts import Part
from extproc.service.revisions import EngineRevisions
from extproc.wire.processor import Processor

if TYPE_CHECKING:
    from extproc.cache.redis.answers import RedisAnswers

#: Scopes shown in the status, those with most bytes.
SCOPES_SHOWN_MAX: Final = 100
#: How often what the replicas say of themselves is looked at.
LOOK_EVERY_NS: Final = 1_000_000_000
#: Rules kept ready; above it the table is begun anew.
RULES_MAX: Final = 100_000
NO_TENANT, NO_POOL = TenantCache(), PoolCache()


class CachePart(Part, Observer):
    """The cache of one service; nothing is looked up, and nothing kept, without the section `cache`."""

    name = "cache"

    def __init__(
        self,
        config: Config,
        processor: Processor,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
    ) -> None:
        self._processor, self._tenants_of, self._clock = processor, tenants, clock
        self.cache: ResponseCache | None = None
        self.store: MemoryAnswers | RedisAnswers | None = None
        self._rules: dict[tuple[str, str], CacheRule | None] = {}
        self._config = config
        #: What the replicas say that they run.
        self.revisions = EngineRevisions()
        self._looked_ns = clock() - LOOK_EVERY_NS
        #: The figures of the semantic cache, where there is one.
        self.semantic: Callable[[], Mapping[str, Any]] = dict
        self.apply(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where there is a cache."""
        return (self,) if self.cache is not None else ()

    def apply(self, config: Config) -> None:
        """A new configuration holds: of tenants, pools and revisions that are no more nothing is kept."""
        before, self._config = self._config, config
        self._rules.clear()
        self._tenants = {tenant.name: tenant.cache or NO_TENANT for tenant in config.tenants}
        self._pools = {pool.name: pool.cache for pool in config.pools}
        self.revisions.keep(set(self._pools))
        self._engines = {pool.name: pool.engine for pool in config.pools}
        self._adapters = {pool.name: _adapter_paths(pool) for pool in config.pools}
        section = config.cache
        if section is None:
            self.cache = self.store = self._processor.cache = None
            return
        if self.cache is None or self.store is None:
            self.store = self._made(section)
            self.cache = self._processor.cache = ResponseCache(
                self.store,
                self.rule_for,
                answer_bytes_max=section.answer_bytes_max,
                request_bytes_max=section.request_bytes_max,
                clock=self._clock,
            )
            self.cache.on_filled = self._filled
        self.store.bytes_max = section.bytes_max
        if not isinstance(self.store, MemoryAnswers):
            self.store.seal = AnswerSeal(answer_keys(section))
            self.store.budget_s = section.store_budget_ms / 1e3
        self.cache.answer_bytes_max = section.answer_bytes_max
        self.cache.request_bytes_max = section.request_bytes_max
        self._forget(before)

    def _forget(self, before: Config) -> None:
        """Purge what nobody may be given any more."""
        assert self.cache is not None
        old = {pool.name: pool for pool in before.pools}
        changed = {
            pool.name
            for pool in self._config.pools
            if (was := old.get(pool.name)) is not None
            and ((was.cache or NO_POOL).revision, was.engine, was.models)
            != ((pool.cache or NO_POOL).revision, pool.engine, pool.models)
        }
        gone = old.keys() - self._pools.keys()
        pools = changed | gone
        tenants = {tenant.name for tenant in before.tenants} - self._tenants.keys()
        left = {
            tenant.name
            for tenant in before.tenants
            if tenant.cache is not None
            and tenant.cache.share is not None
            and tenant.cache.share != (self._tenants.get(tenant.name) or NO_TENANT).share
        }
        told = {
            (pool.name, adapter)
            for pool in self._config.pools
            if (was := old.get(pool.name)) is not None
            for adapter, path in _adapter_paths(was).items()
            if self._adapters[pool.name].get(adapter) != path
        }
        orders = [
            *(PurgeOrder(pool=name) for name in sorted(pools)),
            # An adapter from another place has other weights.
            *(PurgeOrder(pool=name, model=adapter) for name, adapter in sorted(told)),
            *(PurgeOrder(tenant=name) for name in sorted(tenants)),
            # Who leaves a group takes its answers along.
            *(PurgeOrder(tenant=name, shared=True) for name in sorted(left)),
        ]
        if orders:
            self.cache.purge(orders)

    def _made(self, section: CacheConfig) -> MemoryAnswers | RedisAnswers:
        sharing = self._config.sharing
        if section.store == "memory" or sharing is None:
            return MemoryAnswers(section.bytes_max, clock=self._clock)
        from extproc.cache.redis.answers import RedisAnswers

        return RedisAnswers(
            sharing.redis,
            prefix=sharing.prefix,
            name=self._processor.scheduler.instance,
            seal=AnswerSeal(answer_keys(section)),
            bytes_max=section.bytes_max,
            budget_s=section.store_budget_ms / 1e3,
            clock=self._clock,
            on_purged=self._purged_elsewhere,
        )

    def _filled(self, reservation_id: str, became: str) -> None:
        """An answer has come: its request's span says what became of it. Who traces may be another by now."""
        self._processor.request_traces.filled(reservation_id, became)

    def _purged_elsewhere(self, orders: Sequence[PurgeOrder]) -> None:
        """Another service has purged: what is on its way here is not kept either."""
        if self.cache is not None:
            self.cache.forget(orders, elsewhere=True)

    async def start(self) -> None:
        """Connect, where answers are in Redis; what nobody may be given any more goes there."""
        if self.store is not None and not isinstance(self.store, MemoryAnswers):
            self.store.start(self.unwanted)

    async def stop(self) -> None:
        """Tell Redis what there is to tell."""
        if self.store is not None and not isinstance(self.store, MemoryAnswers):
            await self.store.close()

    def unwanted(self, scope: str, whose: AnswerOrigin) -> bool:
        """Whether nobody may be given such an answer: its tenant, pool or place in the group is gone."""
        if whose.pool not in self._pools:
            return True
        named = self._tenants.get(whose.tenant)
        if named is None and whose.tenant not in self._tenants_of():
            return True
        return scope != _scope_of(whose.tenant, named or NO_TENANT)

    def rule_for(self, tenant: str, pool: str) -> CacheRule | None:
        """By which rule a tenant's requests to a pool are cached; None where they are not."""
        key = (tenant, pool)
        if key not in self._rules:
            if len(self._rules) >= RULES_MAX:
                self._rules.clear()
            self._rules[key] = self._rule(tenant, pool)
        return self._rules[key]

    def _rule(self, name: str, pool: str) -> CacheRule | None:
        section, own, there = self._config.cache, self._tenants.get(name) or NO_TENANT, self._pools.get(pool)
        mode = own.mode or (there.mode if there is not None else "off")
        if section is None or mode == "off" or (there is not None and there.mode == "off"):
            return None
        if name not in self._tenants and name not in self._tenants_of():
            return None
        # A revision in the file is somebody's word who knows: what replicas say (a path) may differ then.
        revision = there.revision if there is not None else ""
        if pool in self.revisions.split and not revision:
            return None
        said = "" if revision else self.revisions.known.get(pool, "")
        return CacheRule(
            scope=_scope_of(name, own),
            asks=mode == "ask",
            sampled=own.sampled,
            tools=own.tools,
            joins=own.join,
            marks=own.mark_usage,
            charge=CacheCharge(own.charge),
            ttl_ns=int((own.ttl_s or section.ttl_s) * 1e9),
            bytes_max=own.bytes_max,
            revision=revision,
            served=f"{self._engines.get(pool, '')} {said}",
            adapters=self._adapters.get(pool, {}),
            semantic=_semantic(section, own.semantic),
        )

    def settled(self, event: Settled, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request has ended: its answer comes about now, or never."""
        if self.cache is not None:
            self.cache.settled(event.outcome.reservation.id, gpu_ms=event.charged.gpu_ms)

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request's end never came."""
        if self.cache is not None:
            self.cache.gone(reservation.id)

    def left(
        self,
        reservation_id: str,
        routing: RoutingRequest | None,
        *,
        gave_up: bool,  # noqa: ARG002 (an observer's)
        now_ns: int,  # noqa: ARG002
    ) -> None:
        """A client left before its decision reached Envoy: no answer comes."""
        if self.cache is not None and routing is None:
            self.cache.gone(reservation_id)

    def step(self, *, now_ns: int) -> None:
        """Let time pass."""
        if self.cache is None:
            return
        self.cache.step(now_ns=now_ns)
        if now_ns - self._looked_ns >= LOOK_EVERY_NS:
            self._looked_ns = now_ns
            new, other = self.revisions.look(self._processor.scheduler.fleet)
            if new:
                self._rules.clear()
            other = {name for name in other if not (self._pools.get(name) or NO_POOL).revision}
            if other:
                self.cache.purge([PurgeOrder(pool=name) for name in sorted(other)])

    def status(self) -> dict[str, Any]:
        """For `steersman status` and `steersman cache stats`; empty where there is no cache."""
        cache, store = self.cache, self.store
        if cache is None or store is None:
            return {}
        figures = store.figures()
        scopes = sorted(figures.scopes.items(), key=lambda item: -item[1].size)
        requests: dict[str, dict[str, int]] = {}
        for (tenant, outcome), count in sorted(cache.looked.items()):
            requests.setdefault(tenant, {})[outcome] = count
        return {
            "store": figures.kind,
            "away": figures.away,
            "answers": figures.answers,
            "bytes": figures.size,
            "bytes_max": figures.bytes_max,
            "evicted": figures.evicted,
            "refused": figures.refused,
            "dropped": figures.dropped,
            "awaited": cache.awaited,
            "joined": len(cache.flights),
            "scopes": {
                scope: {"answers": each.answers, "bytes": each.size}
                for scope, each in scopes[:SCOPES_SHOWN_MAX]
            },
            "split": {pool: list(several) for pool, several in self.revisions.split.items()},
            "requests": requests,
            "fills": dict(cache.filled),
            "semantic": self.semantic(),
            "saved": {tenant: msgspec.to_builtins(saved) for tenant, saved in cache.saved.items()},
        }

    def seen(self) -> CacheSeen:
        """For the metrics."""
        cache, store = self.cache, self.store
        if cache is None or store is None:
            return CacheSeen()
        figures = store.figures()
        return CacheSeen(
            requests=dict(cache.looked),
            fills=dict(cache.filled),
            saved={
                name: (each.input_tokens, each.output_tokens, each.gpu_ms / 1e3)
                for name, each in cache.saved.items()
            },
            answers=figures.answers,
            bytes=figures.size,
            evicted=figures.evicted,
            refused=figures.refused,
            dropped=figures.dropped,
            away=figures.away,
            on=True,
        )


def _adapter_paths(pool: PoolConfig) -> dict[str, str]:
    """Where a pool's engines are told to find each adapter; empty where they are not told."""
    adapters = pool.adapters
    if adapters is None or adapters.load is None:
        return {}
    return {name: path_of(adapters.load, name) for name in adapters.names}


def _semantic(section: CacheConfig, own: TenantSemantic | None) -> SemanticRule | None:
    """How a tenant's questions are compared; None where they are not."""
    if own is None:
        return None
    return SemanticRule(**own.model_dump(), chars_max=section.semantic.question_chars_max)


def _scope_of(tenant: str, own: TenantCache) -> str:
    """Whose answers a tenant is given."""
    return f"group:{own.share}" if own.share is not None else f"tenant:{tenant}"
