"""No answer ever crosses from one tenant to another in other words either, but in a group that both name."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.cache.purging import PurgeOrder
from extproc.core.cachekeys import CachedAnswer, WantedAnswer
from tests.stand.cached import answer_of, body_of
from tests.stand.semantic import Wording, worded

pytest.importorskip("numpy")

#: Names that begin, end or look like one another, like groups, patterns and paths.
NAMES = ("a", "a:b", "a*", "group:a", "tenant:a", "a\x00b", "A", "а")
TEXTS = ("How do I reset it?", "How can I reset it?", "how to reset it", "How do I not reset it?")
#: Nothing is asked of certainty here: as much as possible is given.
LAX = {"wrong_max": 0.1, "confidence": 0.5, "check_share": 0.01, "similarity_min": 0.3}


class WordedTenants(RuleBasedStateMachine):
    """Tenants with hostile names ask one question in several words; every answer names whose it is."""

    @initialize(sharing=st.lists(st.sampled_from([None, "g", "a"]), min_size=len(NAMES), max_size=len(NAMES)))
    def begin(self, sharing: list[str | None]) -> None:
        self.groups = dict(zip(NAMES, sharing, strict=True))
        self.wording = Wording({name: worded(self.scope_of(name), **LAX) for name in NAMES})
        self.number = 0
        # As well as can be: no matter how sure, nothing crosses.
        for name in NAMES[:4]:
            for _ in range(12):
                for text in TEXTS[:3]:
                    self.asks(name, text)

    def scope_of(self, name: str) -> str:
        group = self.groups[name]
        return f"group:{group}" if group else f"tenant:{name}"

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(TEXTS))
    def asks(self, name: str, text: str) -> None:
        """Whatever is given was made within this tenant's scope, and is about the same question."""
        wording = self.wording
        wording.forget_exact()
        found = wording.look(name, body_of(text))
        assert isinstance(found, WantedAnswer)
        told: list[CachedAnswer | None] = []
        wording.cache.join(found, name, until_ns=wording.now_ns, size=1, tell=told.append)
        wording.port.deliver()
        if told and told[0] is not None:
            scope = json.loads(told[0].body)["choices"][0]["message"]["content"]
            assert scope == f"of {self.scope_of(name)}, {'no' if ' not ' in text else 'yes'}"
            return
        self.number += 1
        said = f"of {self.scope_of(name)}, {'no' if ' not ' in text else 'yes'}"
        wording.cache.flagged(f"r{self.number}", name, found)
        wording.cache.fill(f"r{self.number}", answer_of(said))
        wording.port.deliver()

    @rule(name=st.sampled_from(NAMES))
    def goes(self, name: str) -> None:
        """A tenant is purged: nothing that was made for it is left, in no scope."""
        self.wording.cache.purge([PurgeOrder(tenant=name)])
        for scope in self.wording.semantic.scopes.values():
            assert all(entry.answer.tenant != name for entry in scope.entries.values())

    @rule(by_ns=st.integers(0, 3_600_000_000_000))
    def passes(self, by_ns: int) -> None:
        """Time passes."""
        self.wording.now_ns += by_ns
        self.wording.cache.step(now_ns=self.wording.now_ns)

    @invariant()
    def both_sides_know_the_same(self) -> None:
        """The service and the index hold the same questions, each in its scope; the books are right."""
        semantic, index = self.wording.semantic, self.wording.port.index
        kept = {name: set(scope.entries) for name, scope in semantic.scopes.items()}
        assert kept == {name: set(scope.where) for name, scope in index.scopes.items()}
        assert semantic.size == sum(scope.size for scope in semantic.scopes.values())
        for name, scope in semantic.scopes.items():
            assert all(entry.scope == name for entry in scope.entries.values())


WordedTenants.TestCase.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestWordedTenants = WordedTenants.TestCase


def test_the_most_is_given_within_a_scope() -> None:
    """The machine above proves nothing unless answers are given: taught as it is taught, they are."""
    wording = Wording({"a": worded("tenant:a", **LAX), "b": worded("tenant:b", **LAX)})
    for _ in range(12):
        for text in TEXTS[:3]:
            wording.forget_exact()
            wording.ask("a", body_of(text), answer_of("yes"))
    wording.forget_exact()
    assert wording.ask("a", body_of(TEXTS[1]), b"")[1] == "semantic"
    assert wording.ask("b", body_of(TEXTS[1]), answer_of("b's"))[1] == "engine"
