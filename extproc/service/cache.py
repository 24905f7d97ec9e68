"""The running service's response cache: its rules by the configuration, its orders, its figures.

Owns what a configuration makes of tenants, pools and groups. Off without the section `cache`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

import msgspec

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.config.cache import PoolCache, TenantCache
from extproc.config.model import Config
from extproc.core.cachekeys import CacheCharge, CacheRule
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Reservation
from extproc.core.tenant import Tenant
from extproc.service.parts import Part
from extproc.wire.processor import Processor

#: Scopes shown in the status, those with most bytes.
SCOPES_SHOWN_MAX: Final = 100
#: Rules kept ready; above it the table is begun anew.
RULES_MAX: Final = 100_000
NO_TENANT, NO_POOL = TenantCache(), PoolCache()
NO_CACHE = "there is no cache: the configuration has no section `cache`"


class CachePart(Part, Observer):
    """The cache of one service; nothing is looked up, and nothing kept, without the section `cache`."""

    name = "cache"

    def __init__(self, config: Config, processor: Processor, *, clock: Callable[[], int]) -> None:
        self._processor, self._clock = processor, clock
        self.cache: ResponseCache | None = None
        self.store: MemoryAnswers | None = None
        self._rules: dict[tuple[str, str], CacheRule | None] = {}
        self._config = config
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
        section = config.cache
        if section is None:
            self.cache = self.store = self._processor.cache = None
            return
        if self.cache is None or self.store is None:
            self.store = MemoryAnswers(section.bytes_max)
            self.cache = self._processor.cache = ResponseCache(
                self.store,
                self.rule_for,
                answer_bytes_max=section.answer_bytes_max,
                request_bytes_max=section.request_bytes_max,
                clock=self._clock,
            )
        self.store.bytes_max = section.bytes_max
        self.cache.answer_bytes_max = section.answer_bytes_max
        self.cache.request_bytes_max = section.request_bytes_max
        self._forget(before)

    def _forget(self, before: Config) -> None:
        """Purge what nobody may be given any more."""
        assert self.store is not None
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
        if pools or tenants or left:
            # Who leaves a group takes its answers along.
            self.store.purge(
                lambda scope, _, answer: (
                    answer.pool in pools
                    or answer.tenant in tenants
                    or (answer.tenant in left and scope.startswith("group:"))
                )
            )

    def rule_for(self, tenant: Tenant, pool: str) -> CacheRule | None:
        """By which rule a tenant's requests to a pool are cached; None where they are not."""
        key = (tenant.name, pool)
        if key not in self._rules:
            if len(self._rules) >= RULES_MAX:
                self._rules.clear()
            self._rules[key] = self._rule(tenant.name, pool)
        return self._rules[key]

    def _rule(self, name: str, pool: str) -> CacheRule | None:
        section, own, there = self._config.cache, self._tenants.get(name) or NO_TENANT, self._pools.get(pool)
        mode = own.mode or (there.mode if there is not None else "off")
        if section is None or mode == "off" or (there is not None and there.mode == "off"):
            return None
        return CacheRule(
            scope=f"group:{own.share}" if own.share is not None else f"tenant:{name}",
            asks=mode == "ask",
            sampled=own.sampled,
            tools=own.tools,
            charge=CacheCharge(own.charge),
            ttl_ns=int((own.ttl_s or section.ttl_s) * 1e9),
            bytes_max=own.bytes_max,
            revision=there.revision if there is not None else "",
        )

    def settled(self, event: Settled, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request has ended: its answer comes about now, or never."""
        if self.cache is not None:
            self.cache.settled(event.outcome.reservation.id, gpu_ms=event.charged.gpu_ms)

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request's end never came."""
        if self.cache is not None:
            self.cache.gone(reservation.id)

    def step(self, *, now_ns: int) -> None:
        """Let time pass."""
        if self.cache is not None:
            self.cache.step(now_ns=now_ns)

    def status(self) -> dict[str, Any]:
        """For `steersman status` and `steersman cache stats`; empty where there is no cache."""
        cache, store = self.cache, self.store
        if cache is None or store is None:
            return {}
        scopes = sorted(store.shelves.items(), key=lambda item: -item[1].size)
        requests: dict[str, dict[str, int]] = {}
        for (tenant, outcome), count in sorted(cache.looked.items()):
            requests.setdefault(tenant, {})[outcome] = count
        return {
            "answers": len(store),
            "bytes": store.size,
            "bytes_max": store.bytes_max,
            "evicted": store.evicted,
            "awaited": cache.awaited,
            "scopes": {
                scope: {"answers": len(shelf.answers), "bytes": shelf.size}
                for scope, shelf in scopes[:SCOPES_SHOWN_MAX]
            },
            "requests": requests,
            "fills": dict(cache.filled),
            "saved": {tenant: msgspec.to_builtins(saved) for tenant, saved in cache.saved.items()},
        }

    def order(self, body: bytes) -> bytes:
        """`{"purge": {"tenant", "model", "pool", "key", "older_s", "all"}}` or `{}`; answers the figures.

        A purge without any of these is a mistake: `all` empties the cache. Raises ValueError.
        """
        order = msgspec.json.decode(body, type=CacheOrder)
        if self.store is None:
            raise ValueError(NO_CACHE)
        purged = self._purge(order.purge) if order.purge is not None else 0
        return msgspec.json.encode({"purged": purged, **self.status()})

    def _purge(self, order: CachePurge) -> int:
        assert self.store is not None
        key = _key(order.key)
        if not (order.all or order.tenant or order.model or order.pool or key or order.older_s is not None):
            raise ValueError("say what is to be purged: a tenant, a model, a pool, a key, an age, or all")
        born_ns = None if order.older_s is None else self._clock() - int(order.older_s * 1e9)
        return self.store.purge(
            lambda _, its, answer: (
                (not order.tenant or answer.tenant == order.tenant)
                and (not order.model or answer.model == order.model)
                and (not order.pool or answer.pool == order.pool)
                and (not key or its == key)
                and (born_ns is None or answer.made_ns <= born_ns)
            )
        )


def _key(text: str) -> bytes:
    """A key as it is shown: 64 digits in hex. Raises ValueError."""
    if not text:
        return b""
    try:
        return base64.b16decode(text.upper())
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no key; `steersman cache explain` shows them, in hex") from None


class CachePurge(msgspec.Struct):
    """What is to go: all that fits every one that is said."""

    tenant: str = ""
    model: str = ""
    pool: str = ""
    key: str = ""
    older_s: float | None = None
    all: bool = False


class CacheOrder(msgspec.Struct):
    """An operator's order to the cache."""

    purge: CachePurge | None = None
