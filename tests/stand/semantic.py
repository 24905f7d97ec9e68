"""A semantic cache in a test: the real index behind a port without a process."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import Any

import numpy as np

from extproc.cache.purging import PurgeOrder
from extproc.cache.semantic.index import SemanticIndex
from extproc.cache.semantic.jobs import (
    AddJob,
    CompareJob,
    DropJob,
    FindJob,
    LearnJob,
    SemanticReply,
    ToldJob,
)
from extproc.cache.semantic.questions import SemanticCache
from extproc.core.cachekeys import CachedAnswer, CacheRule, SemanticRule, WantedAnswer
from tests.stand.cached import Asking


def bag(text: str) -> Any:
    """A text as its words in no order: alike where most of them are the same. Stands for a model."""
    vector = np.zeros(256, dtype=np.float32)
    for word in re.findall(r"\w+", text.lower()):
        vector[int.from_bytes(sha256(word.encode()).digest()[:2], "big") % 256] += 1.0
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


class NearPort:
    """The index in this process. What is asked is answered by `deliver`, or not at all."""

    def __init__(self, embed: Callable[[str], Any] = bag) -> None:
        self.index = SemanticIndex(embed)
        self.up = True
        self.waiting: list[Callable[[], None]] = []
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    def find(self, job: FindJob, heard: Callable[[SemanticReply | None], None], *, budget_s: float) -> bool:
        assert budget_s > 0.0
        self.waiting.append(lambda: heard(self.index.find(job)))
        return self.up

    def check(self, job: CompareJob, heard: Callable[[SemanticReply | None], None]) -> bool:
        if self.up:
            self.waiting.append(lambda: heard(self.index.check(job)))
        return self.up

    def tell(self, job: ToldJob) -> bool:
        if not self.up:
            return False
        if isinstance(job, AddJob):
            self.index.add(job)
        elif isinstance(job, DropJob):
            self.index.drop(job)
        elif isinstance(job, LearnJob):
            self.index.learn(job)
        else:
            self.index.window(job)
        return True

    def deliver(self) -> None:
        """Answer all that was asked."""
        while self.waiting:
            self.waiting.pop(0)()


class Wording(Asking):
    """A cache whose tenants are answered in other words too."""

    def __init__(
        self, rules: dict[str, CacheRule], *, embed: Callable[[str], Any] = bag, **bounds: int
    ) -> None:
        super().__init__(dict(rules))
        self.port = NearPort(embed)
        self.semantic = self.cache.semantic = SemanticCache(
            self.port,
            budget_s=0.05,
            entries_max=bounds.get("entries_max", 1_000),
            bytes_max=bounds.get("bytes_max", 64 * 1024 * 1024),
            keep_ns=bounds.get("keep_ns", 10 * 3_600_000_000_000),
            chance=Random(7),
            clock=lambda: self.now_ns,
        )

    def forget_exact(self) -> None:
        """Empty the store of exact answers; what is known in other words stays."""
        self.store.purge([PurgeOrder()])

    def ask(self, tenant: str, body: bytes, answer: bytes, **where: Any) -> tuple[bytes, str]:
        """As the gateway does; the answer and how it came: hit, semantic, or engine."""
        found = self.look(tenant, body, **where)
        if isinstance(found, CachedAnswer):
            return found.body, "hit"
        assert isinstance(found, WantedAnswer)
        told: list[CachedAnswer | None] = []
        self.cache.join(found, tenant, until_ns=self.now_ns, size=len(body), tell=told.append)
        self.port.deliver()
        if told and told[0] is not None:
            assert told[0].likely is not None
            return told[0].body, "semantic"
        self.filled(tenant, found, answer)
        return answer, "engine"

    def filled(self, tenant: str, wanted: WantedAnswer, answer: bytes) -> None:
        """An engine has answered."""
        self.number += 1
        self.cache.flagged(f"r{self.number}", tenant, wanted)
        self.cache.fill(f"r{self.number}", answer)
        self.cache.settled(f"r{self.number}", gpu_ms=10.0)
        self.port.deliver()


def worded(scope: str, **more: Any) -> CacheRule:
    """The rule of a tenant with the semantic cache."""
    return CacheRule(scope=scope, semantic=SemanticRule(**more))
