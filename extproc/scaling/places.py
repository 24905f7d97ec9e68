"""Where replicas of this machine may be: ports, and cards, each given out once.

Owns what is taken, over all pools of a service. Ports that other services have are seen to be taken; the
cards of their replicas are told by `elsewhere`. Two that take a card in the same moment can both have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from random import SystemRandom

from extproc.supervise.ports import FREE_PORTS, tcp_problem

#: Every replica is a process of this machine, and Envoy beside it.
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A port, and the cards beside it; none where no cards are named."""

    port: int
    cards: tuple[int, ...] = ()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{HOST}:{self.port}"

    def filled(self, text: str, pool: str) -> str:
        """A part of a command, or of the environment, with what it names; other braces stay as they are."""
        for name, value in (
            ("{port}", str(self.port)),
            ("{address}", self.address),
            ("{gpu}", ",".join(map(str, self.cards))),
            ("{pool}", pool),
        ):
            text = text.replace(name, value)
        return text


@dataclass(slots=True)
class LocalPlaces:
    """What is taken. A port is only given out when nobody listens on it."""

    #: Cards that other services' replicas run on.
    elsewhere: Callable[[], Collection[int]] = tuple
    _ports: set[int] = field(default_factory=set)
    _cards: set[int] = field(default_factory=set)
    #: The port that was given out last: one that just failed is tried again after all others.
    _last: int = 0

    def take(
        self, ports: tuple[int, int], cards: Sequence[int], *, cards_each: int, avoid: Sequence[int] = ()
    ) -> LocalPlace | str:
        """A place; or in words why there is none. `ports` (0, 0) for any; `cards` empty for none.

        `avoid`: cards on which a replica has just failed come last.
        """
        others = self.elsewhere() if cards else ()
        free = [card for card in cards if card not in self._cards and card not in others]
        free.sort(key=lambda card: card in avoid)
        if cards and len(free) < cards_each:
            theirs = ", ".join(str(card) for card in cards if card in others)
            why = f"; another service's replicas have {theirs}" if theirs else ""
            return f"no card is free: {len(free)} of {len(cards)}, and a replica takes {cards_each}{why}"
        taken = tuple(sorted(free[:cards_each])) if cards else ()
        first, last = ports
        asked = range(first, last + 1) if first else FREE_PORTS
        wrong = "has a replica"
        if not first and not self._last:
            # Not where every launcher of this machine begins: two would give out one port at one moment.
            self._last = SystemRandom().choice(asked)
        after = max(asked[0], min(self._last + 1, asked[-1] + 1))
        for port in chain(range(after, asked[-1] + 1), range(asked[0], after)):
            if port in self._ports:
                continue
            if (wrong := tcp_problem(f"{HOST}:{port}")) == "":
                self._last = port
                return self.hold(LocalPlace(port, taken))
        return f"no port from {asked[0]} to {asked[-1]} is free: the last one that was tried {wrong}"

    def hold(self, place: LocalPlace) -> LocalPlace:
        """Take a place that is known already."""
        self._ports.add(place.port)
        self._cards.update(place.cards)
        return place

    def give_back(self, place: LocalPlace) -> None:
        """Nothing is there any more."""
        self._ports.discard(place.port)
        self._cards.difference_update(place.cards)
