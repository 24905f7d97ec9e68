"""What waits for one receiver: in order, retried with growing waits, bounded, given up in the end.

Owns the waiting and its bounds. Pure: it neither sends nor knows what is in a message; time and chance are
handed in. One message is under way at a time, so that a receiver hears things in the order they happened.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from random import Random
from typing import Any, Final

#: A wait is its base times a chance between these.
JITTER: Final = (0.5, 1.5)
#: Answers other than 2xx that are worth another attempt: too many requests, and a server's own trouble.
TRY_AGAIN: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often: see config/alerts.py's Webhook."""

    retry_min_ns: int = 500_000_000
    retry_max_ns: int = 60_000_000_000
    give_up_ns: int = 3_600_000_000_000
    queue_max: int = 256


@dataclass(slots=True)
class Parcel:
    """A message on its way."""

    id: int
    message: dict[str, Any]
    since_ns: int
    attempts: int = 0


class AlertOutbox:
    """One receiver's."""

    def __init__(self, patience: Patience, *, rng: Random) -> None:
        self.patience = patience
        self.counts: Counter[str] = Counter()
        #: What the last attempt said; "" after a success.
        self.trouble = ""
        self._rng = rng
        self._waiting: deque[Parcel] = deque()
        self._under_way: Parcel | None = None
        self._due_ns = 0
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting) + (self._under_way is not None)

    def add(self, message: dict[str, Any], *, now_ns: int) -> int:
        """Let a message wait; its number. The oldest that waits is dropped where there is no room."""
        if len(self._waiting) >= self.patience.queue_max:
            self._waiting.popleft()
            self.counts["dropped"] += 1
        self._number += 1
        self._waiting.append(Parcel(self._number, message, now_ns))
        return self._number

    def due(self, *, now_ns: int) -> Parcel | None:
        """What is to be sent now; `sent` must follow before there is another."""
        if self._under_way is not None or not self._waiting or now_ns < self._due_ns:
            return None
        self._under_way = self._waiting.popleft()
        return self._under_way

    def sent(self, status: int | None, trouble: str, *, now_ns: int) -> bool:
        """How the attempt ended: an HTTP status, or None and what went wrong. True when it was delivered."""
        parcel, self._under_way = self._under_way, None
        assert parcel is not None
        parcel.attempts += 1
        self.counts["attempts"] += 1
        if status is not None and 200 <= status < 300:
            self.counts["delivered"] += 1
            self.trouble, self._due_ns = "", 0
            return True
        self.trouble = trouble or f"answered {status}"
        worth = status is None or status >= 500 or status in TRY_AGAIN
        if not worth or now_ns - parcel.since_ns >= self.patience.give_up_ns:
            self.counts["refused" if not worth else "given_up"] += 1
            self._due_ns = 0
            return False
        self._waiting.appendleft(parcel)
        wait_ns = min(self.patience.retry_max_ns, self.patience.retry_min_ns << min(parcel.attempts - 1, 30))
        self._due_ns = now_ns + int(wait_ns * self._rng.uniform(*JITTER))
        return False

    def status(self) -> dict[str, Any]:
        """For people."""
        return {"waiting": len(self), "trouble": self.trouble, **dict(sorted(self.counts.items()))}
