"""The running service's response cache: its rules by the configuration, its orders, its figures.

Owns what a configuration makes of tenants, pools and groups. Off without the section `cache`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.config.cache import PoolCache, TenantCache
from extproc.config.model import Config
from extproc.core.cachekeys import CACHED_KINDS, CacheCharge, CacheRule
from extproc.core.decide import RoutingRequest, serving
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Reject, Reservation
from extproc.core.reading import parse
from extproc.core.routes import find_route
from extproc.core.tenant import Tenant
from extproc.observe.metrics.snapshot import CacheSeen
from extproc.service.parts import Part
from extproc.wire.processor import Processor

#: Scopes shown in the status, those with most bytes.
SCOPES_SHOWN_MAX: Final = 100
#: Rules kept ready; above it the table is begun anew.
RULES_MAX: Final = 100_000
NO_TENANT, NO_POOL = TenantCache(), PoolCache()
#: Why a request is not looked up, in words.
WHY: Final = {
    "sampled": "it is not deterministic: no temperature 0, no seed, or sampling is asked for",
    "tools": "it has tools, and its tenant has not cache.tools",
    "several": "it asks for several answers",
    "outside": "it speaks of an image or another part that is elsewhere",
    "state": "it hangs on an engine's own memory",
    "large": "it is larger than cache.request_bytes_max",
    "uncanonical": "its JSON can be read in two ways, or in none",
}
NO_CACHE = "there is no cache: the configuration has no section `cache`"


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
        if pools or tenants or left:
            # Who leaves a group takes its answers along.
            self.cache.purge(
                lambda scope, _, whose: (
                    whose.pool in pools
                    or whose.tenant in tenants
                    or (whose.tenant in left and scope.startswith("group:"))
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
            joins=own.join,
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
            "joined": len(cache.flights),
            "scopes": {
                scope: {"answers": len(shelf.answers), "bytes": shelf.size}
                for scope, shelf in scopes[:SCOPES_SHOWN_MAX]
            },
            "requests": requests,
            "fills": dict(cache.filled),
            "saved": {tenant: msgspec.to_builtins(saved) for tenant, saved in cache.saved.items()},
        }

    def seen(self) -> CacheSeen:
        """For the metrics."""
        cache, store = self.cache, self.store
        if cache is None or store is None:
            return CacheSeen()
        return CacheSeen(
            requests=dict(cache.looked),
            fills=dict(cache.filled),
            saved={
                name: (each.input_tokens, each.output_tokens, each.gpu_ms / 1e3)
                for name, each in cache.saved.items()
            },
            answers=len(store),
            bytes=store.size,
            evicted=store.evicted,
            on=True,
        )

    def order(self, body: bytes) -> bytes:
        """`{}` answers the figures; `{"tenant", "path", "body", "model"}` whether such a request is cached.

        And why not, its key, and what is kept. Changes nothing. Raises ValueError.
        """
        order = msgspec.json.decode(body, type=CacheQuestion)
        if not order.body:
            return msgspec.json.encode({"on": self.cache is not None, **self.status()})
        if self.cache is None:
            raise ValueError(NO_CACHE)
        return msgspec.json.encode(self._explained(order))

    def _explained(self, order: CacheQuestion) -> dict[str, Any]:
        tenants, scheduler = self._tenants_of(), self._processor.scheduler
        name = order.tenant or (next(iter(tenants)) if len(tenants) == 1 else "")
        tenant = tenants.get(name)
        if tenant is None:
            wrong = f"no tenant {name[:63]!r} here" if name else "whose request? Name its tenant"
            raise ValueError(wrong)
        data = order.body.encode()
        route = find_route("POST", order.path)
        if route is None:
            raise ValueError(f"no route POST {order.path[:80]!r}")
        request = parse(route, data)
        if isinstance(request, Reject):
            raise ValueError(f"the request would get {request.status}: {request.message}")
        model = request.model or order.model or tenant.default_model or scheduler.settings.default_model
        pool = serving(model, tenant, scheduler.fleet)
        if pool is None:
            raise ValueError(f"tenant {name!r} has no model {model[:80]!r}")
        rule = self.rule_for(tenant, pool.name)
        about: dict[str, Any] = {"tenant": name, "model": model, "pool": pool.name, "cached": False}
        if rule is None or self.cache is None or self.store is None:
            return {**about, "why": "neither its tenant nor its pool has a cache"}
        if request.kind not in CACHED_KINDS or model in scheduler.settings.families:
            return {**about, "why": "answers of this route or family are not cached"}
        wanted = self.cache.wanted(request, data, rule, model=model, pool=pool.name)
        if isinstance(wanted, str):
            return {**about, "why": WHY.get(wanted, wanted)}
        kept = self.store.peek(wanted.scope, wanted.key, now_ns=self._clock())
        return {
            **about,
            "cached": True,
            "why": "only with the header x-steersman-cache: use" if rule.asks else "",
            "scope": wanted.scope,
            "key": wanted.key.hex(),
            "kept": None
            if kept is None
            else {
                "age_s": (self._clock() - kept.made_ns) / 1e9,
                "left_s": (kept.expires_ns - self._clock()) / 1e9,
                "bytes": kept.length,
                "packed_bytes": len(kept.packed),
                "hits": kept.hits,
                "made_for": kept.tenant,
            },
        }

    def purge(self, body: bytes) -> bytes:
        """`{"tenant", "model", "pool", "key", "older_s", "all"}`: answers `{"purged": 3}`.

        Without any of these it is a mistake: `all` empties the cache. Raises ValueError.
        """
        order = msgspec.json.decode(body, type=CachePurge)
        # Nothing can be purged where there is nothing.
        return msgspec.json.encode({"purged": self._purge(order) if self.cache is not None else 0})

    def _purge(self, order: CachePurge) -> int:
        assert self.cache is not None
        key = _key(order.key)
        if not (order.all or order.tenant or order.model or order.pool or key or order.older_s is not None):
            raise ValueError("say what is to be purged: a tenant, a model, a pool, a key, an age, or all")
        born_ns = None if order.older_s is None else self._clock() - int(order.older_s * 1e9)
        return self.cache.purge(
            lambda _, its, whose: (
                (not order.tenant or whose.tenant == order.tenant)
                and (not order.model or whose.model == order.model)
                and (not order.pool or whose.pool == order.pool)
                and (not key or its == key)
                and (born_ns is None or whose.made_ns <= born_ns)
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


class CacheQuestion(msgspec.Struct):
    """Which request is asked about; none where `body` is empty."""

    tenant: str | None = None
    path: str = "/v1/chat/completions"
    body: str = ""
    model: str | None = None
