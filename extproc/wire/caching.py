"""The response cache on a request's way: what the wire asks of it, and what of a hit a client sees.

What is cached is the cache's; how it is filled is fills.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from extproc.core.cachekeys import AskAnswer, CachedAnswer, CacheDirective, WantedAnswer
from extproc.core.contract import CACHE_HEADER
from extproc.core.decide import serving
from extproc.core.outcome import CacheHit, LocalAnswer
from extproc.core.request import Request
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant

JSON, EVENTS = "application/json", "text/event-stream"


class AnswerCache(Protocol):
    """Whatever keeps answers; each method but `ask` returns within a millisecond or two, and waits for
    nothing."""

    @property
    def answer_bytes_max(self) -> int:
        """The largest answer that is kept."""

    def look(
        self,
        request: Request,
        body: bytes,
        tenant: Tenant,
        *,
        model: str,
        pool: str,
        directive: CacheDirective | None,
    ) -> CachedAnswer | WantedAnswer | AskAnswer | None:
        """An answer that is known, what to keep the coming one under, or None: it is not cached.

        AskAnswer where the store has to be asked.
        """

    async def ask(self, asked: AskAnswer) -> CachedAnswer | None:
        """What the store says, within its budget; None for a miss, of whatever kind."""

    def flagged(self, reservation_id: str, tenant: str, wanted: WantedAnswer) -> str:
        """It goes to an engine; what Envoy is told of its answer."""

    def flying(self, wanted: WantedAnswer) -> bool:
        """Whether there is something to wait for: an equal request on its way, or one in other words."""

    def join(
        self,
        wanted: WantedAnswer,
        tenant: str,
        *,
        until_ns: int,
        size: int,
        tell: Callable[[CachedAnswer | None], None],
    ) -> str:
        """Wait for the answer of an equal request; the wait's name, "" where there is none to wait for."""

    def leave(self, name: str) -> None:
        """One that waits has left."""

    def fill(self, reservation_id: str, body: bytes) -> bool:
        """An answer has come whole; False where nobody awaits it."""


def looked_up(
    cache: AnswerCache,
    scheduler: Scheduler,
    request: Request,
    body: bytes,
    tenant: Tenant,
    directive: CacheDirective | None,
) -> CachedAnswer | WantedAnswer | AskAnswer | None:
    """What the cache says of a request; nothing of a model that its tenant may not use."""
    model = request.model or tenant.default_model or scheduler.settings.default_model
    pool = serving(model, tenant, scheduler.fleet)
    if pool is None or model in scheduler.settings.families:
        return None
    return cache.look(request, body, tenant, model=model, pool=pool.name, directive=directive)


def answer_of(hit: CacheHit) -> LocalAnswer:
    """A hit as its client gets it: the body as it was, and how old it is."""
    answer = hit.answer
    how = "hit" if answer.likely is None else "semantic"
    sure = "" if answer.likely is None else f"; p={answer.likely:.4f}"
    return LocalAnswer(
        status=200,
        body=answer.body,
        content_type=EVENTS if answer.stream else JSON,
        headers=(*hit.headers, (CACHE_HEADER, f"{how}; age={answer.age_s}{sure}")),
        by="cached",
    )
