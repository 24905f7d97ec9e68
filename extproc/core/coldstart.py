"""A start from nothing: whether a pool without a ready replica may get one, and when that is expected.

Owns the time left, which is what a client is told (Retry-After) and counts down. Pure; one for each pool. Who
starts replicas tells it how long loads take (`takes`) and when one begins (`began`).
"""

from __future__ import annotations

#: What a client is told when the time that was expected is over, and nobody knows better.
OVERDUE_S = 5


class ColdStart:
    """When a pool that has nobody ready will. Times are monotonic nanoseconds."""

    __slots__ = ("_due_ns", "load_ns", "possible", "reaction_ns")

    def __init__(self, *, possible: bool = False, load_ns: int = 0, reaction_ns: int = 0) -> None:
        #: Whether somebody would start one.
        self.possible = possible
        #: From a replica's start until it is ready, and from the wish for one until its start.
        self.load_ns, self.reaction_ns = load_ns, reaction_ns
        self._due_ns: int | None = None

    @property
    def wanted(self) -> bool:
        """Somebody has asked since the last replica left, and none was ready since."""
        return self._due_ns is not None

    def learnt(self, before: ColdStart) -> None:
        """A new configuration: what is under way goes on."""
        self._due_ns = before._due_ns if self.possible else None

    def takes(self, load_ns: int) -> None:
        """Loads take so long, as was measured; what is under way stays as it was told."""
        self.load_ns = load_ns

    def asked(self, *, now_ns: int) -> bool:
        """A request found nobody ready; true for the first, of which a scaler is to be told."""
        if self._due_ns is not None:
            return False
        self._due_ns = now_ns + self.reaction_ns + self.load_ns
        return True

    def began(self, *, now_ns: int) -> None:
        """A replica has begun to load."""
        self._due_ns = now_ns + self.load_ns

    def over(self) -> None:
        """One is ready."""
        self._due_ns = None

    def left_s(self, *, now_ns: int) -> int:
        """Whole seconds until one is expected to be ready, 1 at the least; OVERDUE_S when that is over."""
        left_ns = self.reaction_ns + self.load_ns if self._due_ns is None else self._due_ns - now_ns
        return max(1, -(-left_ns // 1_000_000_000)) if left_ns > 0 else OVERDUE_S
