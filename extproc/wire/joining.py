"""One exchange's dealings with the response cache: the look before the decision, the wait for an equal
request's answer, and the flag that has Envoy gather its own.

Owns what it wants of the cache meanwhile. What is answered and when is the exchange's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from extproc.core.cachekeys import AskAnswer, CachedAnswer, CacheDirective, SemanticAsk, WantedAnswer
from extproc.core.outcome import Reservation
from extproc.core.request import Request
from extproc.wire.caching import looked_up
from extproc.wire.processor import Processor
from extproc.wire.screen import Asked

#: The longest wait for an equal request's answer. It and a class's hold together stay below Envoy's bound.
JOIN_NS_MAX: Final = 30_000_000_000
#: What is told of an answer that was waited for; None: it did not come.
Tell = Callable[[CachedAnswer | None], None]


class CacheWants:
    """What one request wants of the cache; nothing before it was looked up, or where it is not cached."""

    __slots__ = ("_asked", "_processor", "wanted")

    def __init__(self, processor: Processor, asked: Asked) -> None:
        self._processor, self._asked = processor, asked
        #: What its answer will be kept under, where no answer was known.
        self.wanted: WantedAnswer | None = None

    def look(self, request: Request, body: bytes) -> CachedAnswer | AskAnswer | None:
        """The answer that is known, or whom to ask; else what it wants is noted. A fault is a miss."""
        processor, asked = self._processor, self._asked
        cache = processor.cache
        if cache is None:
            return None
        try:
            found = looked_up(cache, processor.scheduler, request, body, asked.tenant, asked.cache)
        except Exception as error:  # noqa: BLE001 (what is not cached is served)
            processor.failed(error, "looking into the cache")
            return None
        if isinstance(found, AskAnswer):
            self.wanted = found.wanted
            return found
        if isinstance(found, CachedAnswer):
            return found
        self.wanted = found
        return None

    @property
    def words(self) -> SemanticAsk | None:
        """Its question in other words; None where it is not compared."""
        return None if self.wanted is None else self.wanted.asked

    def join(self, size: int, tell: Tell) -> tuple[str, int]:
        """Wait for the answer of an equal request that is on its way; "" where there is none.

        The wait's name, and how many milliseconds may pass until a decision: it may be held after the wait.
        """
        processor, asked, wanted = self._processor, self._asked, self.wanted
        cache = processor.cache
        if cache is None or wanted is None or asked.cache is CacheDirective.REFRESH:
            return "", 0
        if not cache.flying(wanted):
            return "", 0
        policy, tenant = processor.scheduler.policy, asked.tenant
        spec = policy.classes[policy.rank(tenant.service_class)]
        wait_ns = min(spec.hold_ns, JOIN_NS_MAX)
        until_ns = processor.clock() + wait_ns
        name = cache.join(wanted, tenant.name, until_ns=until_ns, size=size, tell=tell)
        if name:
            processor.joined += 1
        return name, (wait_ns + max(spec.hold_ns, spec.long_hold_ns)) // 1_000_000

    def flag(self, reservation: Reservation) -> str:
        """It goes to an engine: how much of its answer Envoy is to gather; "" for nothing."""
        processor, wanted = self._processor, self.wanted
        # Without a cluster of its own Envoy cannot say it to this service.
        if wanted is None or processor.cache is None or not processor.event_cluster:
            return ""
        return processor.cache.flagged(reservation.id, reservation.tenant, wanted)
