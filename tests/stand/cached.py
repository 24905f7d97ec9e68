"""A cache in a test, and what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.core.cachekeys import AskAnswer, CachedAnswer, CacheDirective, CacheRule, WantedAnswer
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route
from extproc.core.tenant import Tenant

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024


def body_of(text: str = "hello", **more: Any) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
    ).encode()


def answer_of(text: str = "hi") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()


class Asking:
    """A cache over a clock of its own; `rules` by tenant."""

    def __init__(self, rules: Mapping[str, CacheRule | None], *, bytes_max: int = 64 * MIB) -> None:
        self.now_ns = 1_000
        self.rules = dict(rules)
        self.store = MemoryAnswers(bytes_max, clock=lambda: self.now_ns)
        self.cache = ResponseCache(
            self.store,
            lambda tenant, _: self.rules.get(tenant),
            answer_bytes_max=4_096,
            request_bytes_max=4_096,
            clock=lambda: self.now_ns,
        )
        self.number = 0

    def look(
        self,
        tenant: str,
        body: bytes,
        *,
        path: str = CHAT,
        model: str = "m",
        pool: str = "p",
        directive: CacheDirective | None = None,
    ) -> CachedAnswer | WantedAnswer | None:
        request, whose = self.asked(tenant, body, path=path)
        found = self.cache.look(request, body, whose, model=model, pool=pool, directive=directive)
        assert not isinstance(found, AskAnswer)
        return found

    def asked(self, tenant: str, body: bytes, *, path: str = CHAT) -> tuple[Request, Tenant]:
        route = find_route("POST", path)
        assert route is not None
        request = parse(route, body)
        assert isinstance(request, Request), request
        return request, Tenant(name=tenant)

    def serve(self, tenant: str, body: bytes, answer: bytes, **where: Any) -> bytes:
        """As the gateway does: from the cache, or by the engine's `answer`, which is filled in."""
        found = self.look(tenant, body, **where)
        if isinstance(found, CachedAnswer):
            return found.body
        if found is not None:
            self.number += 1
            self.cache.flagged(f"r{self.number}", tenant, found)
            self.cache.fill(f"r{self.number}", answer)
            self.cache.settled(f"r{self.number}", gpu_ms=10.0)
        return answer

    def outcome(self, tenant: str, name: str) -> int:
        return self.cache.looked[tenant, name]
