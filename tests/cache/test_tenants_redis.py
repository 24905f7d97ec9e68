"""The same in Redis: two services, hostile names, purges and late answers; none crosses to another."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis_harness import Redis as RedisServer

from extproc.cache.exact import ResponseCache
from extproc.cache.purging import PurgeOrder
from extproc.cache.redis.answers import RedisAnswers
from extproc.core.cachekeys import AskAnswer, CachedAnswer, CacheRule, WantedAnswer
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route
from extproc.core.tenant import Tenant
from tests.cache.test_tenants import BODIES, NAMES
from tests.stand.cached import CHAT, answer_of
from tests.stand.redis_answers import prefixes, standing, told

SERVICES = (0, 1)
#: An order without a name is one of everything.
NAMED = tuple(name for name in NAMES if name)


class OneOfTwo:
    """A service's cache over the Redis of both."""

    def __init__(self, store: RedisAnswers, scope_of: Any) -> None:
        self.store = store
        self.cache = ResponseCache(
            store,
            lambda tenant, _: CacheRule(scope=scope_of(tenant)),
            answer_bytes_max=4_096,
            request_bytes_max=4_096,
            clock=time.monotonic_ns,
        )

    async def look(self, name: str, body: bytes) -> CachedAnswer | WantedAnswer:
        route = find_route("POST", CHAT)
        assert route is not None
        request = parse(route, body)
        assert isinstance(request, Request)
        found = self.cache.look(request, body, Tenant(name=name), model="m", pool="p", directive=None)
        if isinstance(found, AskAnswer):
            found = await self.cache.ask(found) or found.wanted
        assert found is not None
        return found


class Shared(RuleBasedStateMachine):
    """Tenants ask either of two services; every answer names who made it, and in which life of its tenant."""

    server: RedisServer

    @initialize(sharing=st.lists(st.sampled_from([None, "g", "a"]), min_size=len(NAMES), max_size=len(NAMES)))
    def begin(self, sharing: list[str | None]) -> None:
        self.groups = dict(zip(NAMES, sharing, strict=True))
        self.loop, self.awaited, self.number = asyncio.new_event_loop(), dict[str, Any](), 0
        self.life = dict.fromkeys(NAMES, 0)
        prefix = next(prefixes)
        self.stands = [
            standing(
                self.server.url,
                prefix=prefix,
                name=f"s{i}",
                bytes_max=20_000,
                on_purged=lambda orders, i=i: self.services[i].cache.forget(orders),
            )
            for i in SERVICES
        ]
        self.services: list[OneOfTwo] = []
        for each in self.stands:
            self.services.append(OneOfTwo(self.loop.run_until_complete(each.__aenter__()), self.scope_of))

    def teardown(self) -> None:
        for each in getattr(self, "stands", ()):
            self.loop.run_until_complete(each.__aexit__(None, None, None))
        if hasattr(self, "loop"):
            self.loop.close()

    def scope_of(self, name: str) -> str:
        group = self.groups[name]
        return f"group:{group}" if group else f"tenant:{name}"

    @rule(name=st.sampled_from(NAMES), body=st.sampled_from(BODIES), at=st.sampled_from(SERVICES))
    def asks(self, name: str, body: bytes, at: int) -> None:
        """A hit answers this very question, for this tenant or its group, and nobody who was purged."""
        found = self.loop.run_until_complete(self.services[at].look(name, body))
        if isinstance(found, CachedAnswer):
            said = json.loads(json.loads(found.body)["choices"][0]["message"]["content"])
            assert said["question"] == body.decode()
            maker = said["tenant"]
            assert self.scope_of(name) == self.scope_of(maker), (name, said)
            assert name == maker or self.groups[name], (name, said)
            assert said["life"] == self.life[maker], (name, said)
            return
        self.number += 1
        self.services[at].cache.flagged(f"r{self.number}", name, found)
        self.loop.run_until_complete(told(self.services[at].store))
        self.awaited[f"r{self.number}"] = (at, name, body, self.life[name])

    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        """An engine's answer comes, in any order, and perhaps twice, or to the wrong service."""
        if self.awaited:
            reservation = data.draw(st.sampled_from(sorted(self.awaited)))
            at, name, body, life = self.awaited[reservation]
            said = json.dumps({"tenant": name, "question": body.decode(), "life": life})
            for one in data.draw(st.sampled_from([(at,), (1 - at,), (at, at)])):
                service = self.services[one]
                if one == at:
                    service.cache.fill(reservation, answer_of(said))
                else:
                    # Numbers are this test's own for both: what the other awaits is another request.
                    assert reservation not in service.cache._awaited
                self.loop.run_until_complete(told(service.store))

    @rule(name=st.sampled_from(NAMED), at=st.sampled_from(SERVICES))
    def goes(self, name: str, at: int) -> None:
        """A tenant is purged at one service; what it asked for before is given to nobody after."""
        self.loop.run_until_complete(_purged(self.services[at].cache, name))
        self.life[name] += 1
        # A request that is asked for in the same millisecond counts as asked for before.
        time.sleep(0.002)


async def _purged(cache: ResponseCache, name: str) -> None:
    gone = cache.purge([PurgeOrder(tenant=name)])
    assert not isinstance(gone, int)
    await gone


def test_no_answer_crosses(redis_server: RedisServer) -> None:
    """Neither tenants, groups and services, nor a purge."""
    run_state_machine_as_test(
        type("SharedHere", (Shared,), {"server": redis_server}),
        settings=settings(
            max_examples=8,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
