"""The scopes whose use is known: made when first asked for, forgotten when there are too many.

Owns the bound. Knows nothing of what is taken from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

from extproc.core.quota.share import Scope
from extproc.core.quota.values import Account

#: Scopes looked at to find an idle one.
FORGET_LOOKS = 16

S = TypeVar("S", bound=Scope)


class Scopes(Generic[S]):
    """States by tenant and scope name.

    Not in the order of use: keeping that would cost each decision more than a full table ever does.
    """

    def __init__(self, make: Callable[[], S], *, most: int, counts: Counter[str]) -> None:
        self._make, self._most, self._counts = make, most, counts
        self._states: dict[tuple[str, str], S] = {}

    def __len__(self) -> int:
        return len(self._states)

    def known(self, account: Account) -> list[S | None]:
        """The account's scopes as far as they are known."""
        return [self._states.get(name) for name in account.names]

    def of(self, account: Account, *, now_ns: int) -> tuple[S, ...]:
        """The account's scopes, made where they are new."""
        found = []
        states = self._states
        for name in account.names:
            state = states.get(name)
            found.append(state if state is not None else self.make(name, now_ns=now_ns))
        return tuple(found)

    def named(self, name: tuple[str, str]) -> S | None:
        """A scope by its tenant and name, as far as it is known."""
        return self._states.get(name)

    def make(self, name: tuple[str, str], *, now_ns: int) -> S:
        """A scope that was not known; another may be forgotten for it."""
        if len(self._states) >= self._most:
            self._forget(now_ns)
        state = self._states[name] = self._make()
        return state

    def _forget(self, now_ns: int) -> None:
        """Make room: the first idle scope of those looked at; where none is, one that owes, and say so.

        Who was looked at goes to the end of the row. One with requests in flight stays whatever the
        bound says (they are bounded by themselves).
        """
        owing = None
        for _ in range(min(FORGET_LOOKS, len(self._states))):
            name = next(iter(self._states))
            state = self._states.pop(name)
            if state.idle(now_ns):
                return
            self._states[name] = state
            if owing is None and not state.in_flight:
                owing = name
        if owing is not None:
            self._counts["forgotten"] += 1
            del self._states[owing]
