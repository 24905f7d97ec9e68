"""When the scheduler must be stepped next, and who hears that it is due sooner than was said.

Where nobody waits and no timer runs, that is the next round. A request that is held, or placed with a first
token to wait for, may be due before it.
"""

from __future__ import annotations

from collections.abc import Callable


def _unheard(_due_ns: int) -> None:
    """Nobody sleeps until the next step."""


class NextStep:
    """The time of the next step; until the first one it is due at once."""

    __slots__ = ("due_ns", "sooner")

    def __init__(self) -> None:
        self.due_ns = 0
        #: Hears the new time whenever a step is due sooner than the last one said.
        self.sooner: Callable[[int], None] = _unheard

    def by(self, due_ns: int) -> None:
        """A step is needed by then at the latest."""
        if due_ns < self.due_ns:
            self.due_ns = due_ns
            self.sooner(due_ns)
