"""What the edge knows of the centre: its last digest, what went there since, what failed. Pure.

Owns how old a digest may be, and how an old queue becomes one of now. A digest is late by the way and by up
to its interval; without what was sent meanwhile every request of a second would find the same free replica.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

from extproc.core.tiers.offers import SiteDigest
from extproc.core.tiers.values import SiteOffer

#: A digest older than this is no fresh word: three that should have come have not.
FRESH_NS: Final = 3_500_000_000
#: Requests remembered that went there since the last digest; at the bound the oldest is forgotten.
SENT_MAX: Final = 4_096
#: How long nothing is sent after a failure of the link, unless a digest comes; doubled with each, up to the
#: last.
PAUSE_FIRST_NS: Final = 500_000_000
PAUSE_MAX_NS: Final = 30_000_000_000


class CentreView:
    """One pool of the other site. `way_ns` is the round trip as last measured, 0 while it was not."""

    __slots__ = (
        "_closed_until_ns",
        "_digest",
        "_failed_ns",
        "_failures",
        "_fresh_ns",
        "_made_ns",
        "_sent",
        "way_ns",
    )

    def __init__(self, *, fresh_ns: int = FRESH_NS) -> None:
        self._fresh_ns = fresh_ns
        self._digest: SiteDigest | None = None
        self._made_ns = 0
        #: When a request went, and how long a replica there is busy with its prompt.
        self._sent: deque[tuple[int, int]] = deque(maxlen=SENT_MAX)
        self._failures = self._failed_ns = self._closed_until_ns = 0
        self.way_ns = 0

    def heard(self, digest: SiteDigest, *, made_ns: int, way_ns: int) -> bool:
        """A digest that was made at a time of our clock; false for one that is older than the last.

        One that was made after a failure says that the link is open again.
        """
        if self._digest is not None and made_ns <= self._made_ns:
            return False
        self._digest, self._made_ns, self.way_ns = digest, made_ns, way_ns
        # What had arrived when it was made is in it.
        while self._sent and self._sent[0][0] + way_ns // 2 <= made_ns:
            self._sent.popleft()
        if made_ns > self._failed_ns:
            self.succeeded()
        return True

    def age_ns(self, *, now_ns: int) -> int | None:
        """How old its last word is; None where there was none."""
        return None if self._digest is None else max(0, now_ns - self._made_ns)

    def fresh(self, *, now_ns: int) -> bool:
        """Whether its last word may be gone by."""
        age_ns = self.age_ns(now_ns=now_ns)
        return age_ns is not None and age_ns <= self._fresh_ns

    def sent(self, prompt_tokens: int, *, now_ns: int) -> None:
        """A request goes there."""
        if self._digest is not None:
            self._sent.append((now_ns, self._digest.own_of(prompt_tokens)))

    def failed(self, *, now_ns: int) -> None:
        """A request could not be brought there, or nobody answered: nothing goes for a while."""
        self._failed_ns = now_ns
        if now_ns >= self._closed_until_ns:
            # Failures while it is closed are the same trouble seen by many requests.
            pause_ns = min(PAUSE_FIRST_NS << min(self._failures, 16), PAUSE_MAX_NS)
            self._failures += 1
            self._closed_until_ns = now_ns + pause_ns

    def succeeded(self) -> None:
        """Something came back from there."""
        self._failures = self._closed_until_ns = 0

    def offer(
        self, prompt_tokens: int, taught: SiteOffer | None, *, cost: float = 0.0, now_ns: int
    ) -> SiteOffer | None:
        """What the centre offers a prompt; None where nothing was ever heard of it.

        `taught` is what ended requests have taught of it (`offers.offer_of` of the pool that it is here): the
        times where no digest is fresh.
        """
        digest, is_open = self._digest, now_ns >= self._closed_until_ns
        if taught is not None and not self.fresh(now_ns=now_ns):
            return replace(taught, ready=taught.ready and is_open, cost=cost, confident=False)
        if digest is None:
            return None
        return replace(self._told(digest, prompt_tokens, now_ns), ready=digest.ready and is_open, cost=cost)

    def _told(self, digest: SiteDigest, prompt_tokens: int, now_ns: int) -> SiteOffer:
        """By the digest: its queue, with what came since and less what was served since."""
        prompts_ns = sum(busy_ns for _, busy_ns in self._sent) // max(1, digest.replicas)
        # Those above what had room take the places of others that end.
        turns_ns = max(0, len(self._sent) - digest.room) * digest.turn_ns
        passed_ns = max(0, now_ns - self._made_ns)
        queue_ns = max(0, digest.begins_ns + max(prompts_ns, turns_ns) - passed_ns)
        return SiteOffer(
            ready=digest.ready,
            begins_ns=self.way_ns // 2 + queue_ns,
            first_ns=self.way_ns + queue_ns + digest.own_of(prompt_tokens),
            token_ns=digest.token_ns,
            confident=self.fresh(now_ns=now_ns),
            hot=digest.hot,
        )
