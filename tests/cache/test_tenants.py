"""No answer ever crosses from one tenant to another, but in a group that both name."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.cache.purging import PurgeOrder
from extproc.core.cachekeys import CachedAnswer, CacheRule, WantedAnswer, digest
from extproc.core.request import RouteKind
from tests.stand.cached import CHAT, Asking, answer_of, body_of

#: Names that begin, end or look like one another, like groups, keys of Redis, patterns and paths.
NAMES = ("a", "a:b", "a*", "group:a", "tenant:a", "a\n", "a\x00b", "A", "../a", "а", "")
TEXTS = ("hello", "hello ", "[[a]]")
BODIES = tuple(body_of(text) for text in TEXTS)


class Tenants(RuleBasedStateMachine):
    """Tenants with hostile names ask the same few questions; every answer names who made it."""

    @initialize(sharing=st.lists(st.sampled_from([None, "g", "a"]), min_size=len(NAMES), max_size=len(NAMES)))
    def begin(self, sharing: list[str | None]) -> None:
        self.groups = dict(zip(NAMES, sharing, strict=True))
        self.asking = Asking({name: self.rule_of(name) for name in NAMES}, bytes_max=20_000)
        self.awaited: dict[str, tuple[str, bytes]] = {}
        self.number = 0

    def rule_of(self, name: str) -> CacheRule:
        group = self.groups[name]
        return CacheRule(scope=f"group:{group}" if group else f"tenant:{name}", ttl_ns=50_000)

    def may(self, reader: str, maker: str) -> bool:
        """Whether one tenant may be given what was made for another."""
        group = self.groups[reader]
        return reader == maker or (group is not None and group == self.groups[maker])

    @rule(name=st.sampled_from(NAMES), body=st.sampled_from(BODIES))
    def asks(self, name: str, body: bytes) -> None:
        """A hit is an answer to this very question, of somebody whose answers this tenant may have."""
        found = self.asking.look(name, body)
        if isinstance(found, CachedAnswer):
            said = json.loads(json.loads(found.body)["choices"][0]["message"]["content"])
            assert said["question"] == body.decode()
            assert self.may(name, said["tenant"]), (name, said)
        else:
            assert isinstance(found, WantedAnswer)
            self.number += 1
            reservation = f"r{self.number}"
            self.asking.cache.flagged(reservation, name, found)
            self.awaited[reservation] = (name, body)

    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        """An engine's answer comes, in any order, and perhaps twice."""
        if self.awaited:
            reservation = data.draw(st.sampled_from(sorted(self.awaited)))
            name, body = self.awaited[reservation]
            said = json.dumps({"tenant": name, "question": body.decode()})
            self.asking.cache.fill(reservation, answer_of(said))

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        """Its record comes."""
        if self.awaited:
            reservation = data.draw(st.sampled_from(sorted(self.awaited)))
            del self.awaited[reservation]
            self.asking.cache.settled(reservation, gpu_ms=1.0)

    @rule(by_ns=st.integers(0, 40_000))
    def passes(self, by_ns: int) -> None:
        """Time passes."""
        self.asking.now_ns += by_ns
        self.asking.cache.step(now_ns=self.asking.now_ns)

    @rule(name=st.sampled_from(NAMES))
    def goes(self, name: str) -> None:
        """A tenant is removed: its answers go, of a group too (an order of no name is one of everything)."""
        self.asking.store.purge([PurgeOrder(tenant=name)])

    @invariant()
    def sizes_add_up(self) -> None:
        """The bound holds, and the books of bytes are right."""
        store = self.asking.store
        assert store.size <= store.bytes_max
        assert store.size == sum(
            each.size for shelf in store.shelves.values() for each in shelf.answers.values()
        )
        assert len(store) == sum(len(shelf.answers) for shelf in store.shelves.values())


Tenants.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTenants = Tenants.TestCase


def test_keys_of_hostile_names_are_all_different() -> None:
    """Parts cannot be shifted from one to the next: every list of parts has a key of its own."""
    given: dict[str, Any] = {"kind": RouteKind.CHAT, "stream": False, "body": b"{}"}
    keys = [
        digest(scope=scope, model=model, pool=pool, revision=revision, **given)
        for scope in ("tenant:a", 'tenant:a","m', "group:a")
        for model in ("m", 'm","p', "")
        for pool in ("p", "", 'p","')
        for revision in ("", "p", '"')
    ]
    assert all(one != other for one, other in combinations(keys, 2))
    assert digest(scope="s", model="m", pool="p", revision="", **{**given, "stream": True}) not in keys


def test_the_same_body_of_two_tenants_is_two_questions() -> None:
    """Both ask an engine, and each gets its own answer again."""
    made = Asking({name: CacheRule(scope=f"tenant:{name}") for name in ("a", "b")})
    for name in ("a", "b"):
        assert made.serve(name, body_of(), answer_of(name), path=CHAT) == answer_of(name)
    for name in ("a", "b"):
        assert made.serve(name, body_of(), answer_of("other")) == answer_of(name)
