"""When what is taken for full is tried once more: at once, then ever later while that is in vain."""

from __future__ import annotations

#: Doublings after which only the longest wait counts.
_DOUBLED_MAX = 8


class Trials:
    """The times of one endpoint's trials of one kind, in nanoseconds: `first_ns` apart, at most `max_ns`."""

    __slots__ = ("_due_ns", "_first_ns", "_max_ns", "_vain")

    def __init__(self, first_ns: int, max_ns: int) -> None:
        self._first_ns, self._max_ns = first_ns, max_ns
        self._due_ns = self._vain = 0

    def due(self, now_ns: int) -> bool:
        """Whether it may be tried now."""
        return now_ns >= self._due_ns

    def tried(self, now_ns: int) -> None:
        """One request was sent, to see; in vain until `succeeded`."""
        self._due_ns = now_ns + min(self._first_ns << min(self._vain, _DOUBLED_MAX), self._max_ns)
        self._vain += 1

    def succeeded(self) -> None:
        """It is not full: the next waits are short again."""
        self._vain = 0
