"""What operators ask of the response cache and order of it: figures, an explanation, a purge.

Owns the words of their orders.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from extproc.cache.purging import PurgeOrder
from extproc.cache.store import Absent
from extproc.core.cachekeys import CACHED_KINDS, CacheRule, WantedAnswer
from extproc.core.decide import serving
from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.routes import find_route
from extproc.core.tenant import Tenant
from extproc.service.cache import CachePart
from extproc.wire.processor import Processor

#: An operator waits so long for a store that is away, or that holds very much.
PURGE_WAIT_S: Final = 10.0
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
NO_QUESTION: Final = (
    "not compared: it is no single question (tools, several parts, too long, more turns than history)"
)
#: The longest age that is asked for: no answer is kept longer than `ttl_s` may be.
OLDER_S_MAX: Final = 31_536_000.0
NO_CACHE = "there is no cache: the configuration has no section `cache`"


class CacheOrders:
    """The commands about the cache; each changes no decision but by a purge."""

    def __init__(
        self,
        part: CachePart,
        processor: Processor,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
    ) -> None:
        self._part, self._processor, self._tenants_of, self._clock = part, processor, tenants, clock

    async def order(self, body: bytes) -> bytes:
        """`{}` answers the figures; `{"tenant", "path", "body", "model"}` whether such a request is cached.

        And why not, its key, and what is kept. Changes nothing. Raises ValueError.
        """
        order = msgspec.json.decode(body, type=CacheQuestion)
        if not order.body:
            return msgspec.json.encode({"on": self._part.cache is not None, **self._part.status()})
        if self._part.cache is None:
            raise ValueError(NO_CACHE)
        return msgspec.json.encode(await self._explained(order))

    async def _explained(self, order: CacheQuestion) -> dict[str, Any]:
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
        cache, store = self._part.cache, self._part.store
        rule = self._part.rule_for(tenant.name, pool.name)
        about: dict[str, Any] = {"tenant": name, "model": model, "pool": pool.name, "cached": False}
        several = self._part.revisions.split.get(pool.name)
        if rule is None and several is not None:
            return {
                **about,
                "why": f"the replicas of its pool run different things: {', '.join(several)[:300]}",
            }
        if rule is None or cache is None or store is None:
            return {**about, "why": "neither its tenant nor its pool has a cache"}
        if request.kind not in CACHED_KINDS or model in scheduler.settings.families:
            return {**about, "why": "answers of this route or family are not cached"}
        wanted = cache.wanted(request, data, rule, model=model, pool=pool.name)
        if isinstance(wanted, str):
            return {**about, "why": WHY.get(wanted, wanted)}
        kept = await store.peek(wanted.scope, wanted.key)
        return {
            **about,
            "cached": True,
            "why": "only with the header x-steersman-cache: use" if rule.asks else "",
            "scope": wanted.scope,
            "key": wanted.key.hex(),
            "words": self._words(rule, wanted),
            "kept": None
            if isinstance(kept, Absent)
            else {
                "age_s": (self._clock() - kept.made_ns) / 1e9,
                "left_s": (kept.expires_ns - self._clock()) / 1e9,
                "bytes": kept.length,
                "packed_bytes": len(kept.packed),
                "hits": kept.hits,
                "made_for": kept.tenant,
            },
        }

    def _words(self, rule: CacheRule, wanted: WantedAnswer) -> dict[str, Any]:
        """Whether it is compared with questions in other words; empty where its tenant has not that."""
        cache = self._part.cache
        if rule.semantic is None or cache is None or cache.semantic is None:
            return {}
        if wanted.asked is None:
            return {"why": NO_QUESTION, "questions": 0}
        return {"why": "", "questions": cache.semantic.framed(wanted.scope, wanted.asked.frame)}

    async def purge(self, body: bytes) -> bytes:
        """`{"tenant", "model", "pool", "key", "older_s", "all"}`: answers `{"purged": 3, "later": false}`.

        Without any of these it is a mistake: `all` empties the cache. `later`: the store is away, and all of
        it is purged when it is back. Raises ValueError.
        """
        order = msgspec.json.decode(body, type=CachePurge)
        order.check()
        # Nothing can be purged where there is nothing.
        if self._part.cache is None:
            return msgspec.json.encode({"purged": 0, "later": False})
        key = _key(order.key or "")
        purged = self._part.cache.purge(
            [
                PurgeOrder(
                    tenant=order.tenant or "",
                    model=order.model or "",
                    pool=order.pool or "",
                    key=key,
                    older_ns=int((order.older_s or 0.0) * 1e9),
                )
            ]
        )
        if not isinstance(purged, int):
            try:
                async with asyncio.timeout(PURGE_WAIT_S):
                    purged = await asyncio.shield(asyncio.ensure_future(purged))
            except TimeoutError:
                return msgspec.json.encode({"purged": 0, "later": True})
        return msgspec.json.encode({"purged": purged, "later": False})


def _key(text: str) -> bytes:
    """A key as it is shown: 64 digits in hex. Raises ValueError."""
    if not text:
        return b""
    try:
        return base64.b16decode(text.upper())
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no key; `steersman cache explain` shows them, in hex") from None


class CachePurge(msgspec.Struct, forbid_unknown_fields=True):
    """What is to go: all that fits every one that is said."""

    tenant: str | None = None
    model: str | None = None
    pool: str | None = None
    key: str | None = None
    older_s: float | None = None
    all: bool = False

    def check(self) -> None:
        """Raises ValueError where it says nothing, or something that would be taken for nothing: what is not
        said is no bound, and more would go than was meant."""
        named = {"tenant": self.tenant, "model": self.model, "pool": self.pool, "key": self.key}
        for name, value in named.items():
            if value == "":
                raise ValueError(f"the {name} is empty; leave it out to purge those of every {name}")
        if self.older_s is not None and not 0.0 <= self.older_s <= OLDER_S_MAX:
            raise ValueError(f"an age is 0 to {OLDER_S_MAX:.0f} seconds")
        if not self.all and self.older_s is None and all(value is None for value in named.values()):
            raise ValueError("say what is to be purged: a tenant, a model, a pool, a key, an age, or all")


class CacheQuestion(msgspec.Struct):
    """Which request is asked about; none where `body` is empty."""

    tenant: str | None = None
    path: str = "/v1/chat/completions"
    body: str = ""
    model: str | None = None
