"""What is known of each other site by the pool that it is here: its last word, the way there, and what fails.

Owns when a word is fresh and when a site is away. A word is as old as the question that it answers, by this
side's own clock. A site is away where its last AWAY_AFTER questions reached nobody: what is refused has
reached somebody, and requests may still go there.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from extproc.core.remote.digest import Digest

#: A word counts for so long; it is asked for once a second.
FRESH_NS: Final = 3_500_000_000
#: Questions in a row that reached nobody.
AWAY_AFTER: Final = 2
#: Requests remembered that went there after the last question; at the bound the oldest is forgotten.
SENT_MAX: Final = 4_096
#: The way is the shortest of so many: what a busy site adds to an answer is not the way.
WAYS_KEPT: Final = 8
#: An answer that is later than the way by no more than this is not overdue: the other site had work to do.
OVERDUE_SLACK_NS: Final = 100_000_000


class SiteLink:
    """One other site, as one pool here."""

    __slots__ = (
        "_asked_ns",
        "_sent",
        "_sent_ms",
        "_sent_sequences",
        "_unanswered_ns",
        "_ways",
        "answers",
        "digest",
        "lost",
        "offset_s",
        "refusals",
        "site",
        "trouble",
    )

    def __init__(self, site: str) -> None:
        self.site = site
        self.digest: Digest | None = None
        #: How far the other clock is ahead, in seconds, as of the last word; half of the way is uncertain.
        self.offset_s = 0.0
        #: What became of the last question; "" where it was answered.
        self.trouble = "not asked yet"
        #: Questions in a row that reached nobody.
        self.lost = 0
        self.answers = self.refusals = 0
        self._asked_ns = 0
        #: When the first of the questions was asked that nobody has answered; None where none is open.
        self._unanswered_ns: int | None = None
        self._ways: deque[int] = deque(maxlen=WAYS_KEPT)
        #: When a request went there, its sequences, and how long its prompt keeps a replica.
        self._sent: deque[tuple[int, int, float]] = deque()
        self._sent_sequences, self._sent_ms = 0, 0.0

    def asks(self, *, now_ns: int) -> None:
        """A question goes there."""
        if self._unanswered_ns is None:
            self._unanswered_ns = now_ns

    def heard(self, digest: Digest, *, asked_ns: int, way_ns: int, offset_s: float) -> None:
        """A word came; `way_ns` from the question on an open connection to its answer."""
        self.digest, self._asked_ns, self.offset_s = digest, asked_ns, offset_s
        self._ways.append(max(0, way_ns))
        self.trouble, self.lost, self._unanswered_ns = "", 0, None
        self.answers += 1
        # What went before the question was there before it.
        while self._sent and self._sent[0][0] <= asked_ns:
            self._forget()

    def refused(self, why: str) -> None:
        """Somebody answered, and not with a word that can be believed."""
        self.trouble, self.lost, self._unanswered_ns = why, 0, None
        self.refusals += 1

    def missed(self, why: str) -> None:
        """Nobody was reached."""
        self.trouble = why
        self.lost += 1

    def sent(self, sequences: int, prefill_ms: float, *, now_ns: int) -> None:
        """A request goes there, which its next word will know of."""
        self._sent.append((now_ns, sequences, prefill_ms))
        self._sent_sequences += sequences
        self._sent_ms += prefill_ms
        if len(self._sent) > SENT_MAX:
            self._forget()

    def since(self, *, now_ns: int) -> tuple[int, float, float]:
        """What its word does not know: sequences and milliseconds of prefill that went there after it was
        asked, and the milliseconds that have passed. Both go the same way, so none of it need be known."""
        return self._sent_sequences, self._sent_ms, max(0, now_ns - self._asked_ns) / 1e6

    def _forget(self) -> None:
        _, sequences, prefill_ms = self._sent.popleft()
        self._sent_sequences -= sequences
        # What rounding has left is nothing.
        self._sent_ms = self._sent_ms - prefill_ms if self._sent else 0.0

    @property
    def away(self) -> bool:
        """Whether it cannot be reached."""
        return self.lost >= AWAY_AFTER

    @property
    def way_ns(self) -> int:
        """There and back; 0 while nothing was measured."""
        return min(self._ways, default=0)

    def overdue_ns(self, *, now_ns: int) -> int:
        """By how much an answer is later than the way: what is sent now is no sooner there than it.

        0 where none is late.
        """
        if self._unanswered_ns is None:
            return 0
        return max(0, now_ns - self._unanswered_ns - self.way_ns - OVERDUE_SLACK_NS)

    def age_ns(self, *, now_ns: int) -> int | None:
        """How old its word is; None where there is none."""
        return None if self.digest is None else now_ns - self._asked_ns

    def fresh(self, *, now_ns: int) -> Digest | None:
        """Its word while it counts."""
        age_ns = self.age_ns(now_ns=now_ns)
        return self.digest if age_ns is not None and age_ns <= FRESH_NS else None

    def plain(self, *, now_ns: int) -> dict[str, object]:
        """For people."""
        age_ns = self.age_ns(now_ns=now_ns)
        return {
            "site": self.site,
            "away": self.away,
            "fresh": self.fresh(now_ns=now_ns) is not None,
            "age_s": None if age_ns is None else round(age_ns / 1e9, 1),
            "round_trip_ms": round(self.way_ns / 1e6, 2),
            "overdue_ms": round(self.overdue_ns(now_ns=now_ns) / 1e6, 2),
            "clock_ahead_s": round(self.offset_s, 3),
            "answers": self.answers,
            "refusals": self.refusals,
            "trouble": self.trouble,
        }


class SiteLinks:
    """The links by pool; `put` goes by another configuration."""

    def __init__(self) -> None:
        self.by_pool: dict[str, SiteLink] = {}

    def put(self, sites: dict[str, str]) -> None:
        """`sites` by pool; a link that stays keeps what it knows."""
        before = self.by_pool
        self.by_pool = {
            pool: known if (known := before.get(pool)) is not None and known.site == site else SiteLink(site)
            for pool, site in sites.items()
        }
