"""What the service's own looks at a replica's health page say of it, where no agent speaks.

Owns what each look leads to. Pure: looks come in as values, the time as `now_ns`.

- Refused: nobody listens there, which is certain. Dead at once.
- Unwell or loading (it says so itself), silent, without trust or without the right key: down after
  FAILURES_TO_DOWN looks in a row. Not while its requests are answered well: a long step on a busy engine
  holds up its health page too.
- Silent, and neither it nor any neighbour was ever reached: it may be us who may not reach it (a network
  policy lets Envoy through alone). Then it is only suspected, as all of its pool are.
- Refused to us, and yet it answers what Envoy sends: our way to it is another one, and says nothing.
"""

from __future__ import annotations

from enum import Enum

from extproc.core.health import Cause, CauseKind

#: Looks in a row that found a replica silent or unwell, until it is taken to be down.
FAILURES_TO_DOWN = 3
#: What such a look leaves of the traffic before that.
DOUBT_FACTOR = 0.5


class Look(Enum):
    """What one look found."""

    ANSWERED = "answers"
    #: Somebody answers, and has no such page or wants a key: no proof of an engine.
    ALIVE = "answers, with no health page"
    #: It answers, and says that it cannot serve.
    UNWELL = "says that it is unwell"
    LOADING = "loads its model"
    SILENT = "does not answer"
    REFUSED = "refuses connections"
    #: TLS: its certificate is not the one asked for, or it does not take ours. Requests find the same.
    UNTRUSTED = "cannot be trusted"
    KEY_REFUSED = "does not take the engine's key"


#: What shows that somebody is there.
ALIVE = frozenset({Look.ANSWERED, Look.ALIVE})


class Reach:
    """What the looks at one replica came to."""

    __slots__ = ("_bad", "_bad_since_ns", "_misled", "_well_ns", "down", "last", "looked_ns", "reached")

    def __init__(self) -> None:
        #: It answered a look once.
        self.reached = False
        #: The looks say that it cannot serve.
        self.down = False
        self.last: Look | None = None
        self.looked_ns: int | None = None
        self._bad = 0
        self._bad_since_ns = 0
        #: When a request was last answered well.
        self._well_ns: int | None = None
        #: It refuses us and serves others.
        self._misled = False

    def served(self, *, now_ns: int) -> None:
        """A request was answered well, whatever our looks found."""
        self._well_ns = now_ns
        if self.last is Look.REFUSED and now_ns > self._bad_since_ns and not self.reached:
            self._misled = True

    def look(self, found: Look, *, now_ns: int, neighbours_reached: bool, why: str = "") -> Cause | None:
        """Take a look; gives the cause that follows for its health. `why` says more than the look."""
        first, self.last, self.looked_ns = self._bad == 0, found, now_ns
        if found in ALIVE:
            self.reached, self.down, self._misled, self._bad = True, False, False, 0
            return None
        if first:
            self._bad_since_ns = now_ns
        self._bad += 1
        if self._misled and found is Look.REFUSED:
            self.down = False
            return None
        self.down = self._is_down(found, neighbours_reached=neighbours_reached)
        if self.down:
            return Cause(CauseKind.HARD, 0.0, why or found.value)
        return Cause(CauseKind.SUSPICION, DOUBT_FACTOR, why or found.value)

    def _is_down(self, found: Look, *, neighbours_reached: bool) -> bool:
        if found is Look.REFUSED:
            return True
        if found is Look.SILENT and not self.reached and not neighbours_reached:
            return False
        serves = self._well_ns is not None and self._well_ns >= self._bad_since_ns
        return (self.down or self._bad >= FAILURES_TO_DOWN) and not serves
