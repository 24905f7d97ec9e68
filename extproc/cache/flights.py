"""Single flight: equal requests wait for the answer of the first instead of asking an engine each.

Owns who waits for whom, and for how long. A first that fails lets the next one go, alone; whoever has waited
as long as it may goes on by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

#: Requests that wait, and bytes of their bodies; above either a request goes on by itself.
JOINED_MAX: Final = 2_000
JOINED_BYTES_MAX: Final = 64 * 1024 * 1024
#: After so long without a first that is on its way the next one goes: the one before was turned away, or its
#: answer did not come beside its record.
LEADERLESS_NS: Final = 1_000_000_000

#: A scope and a key.
Question = tuple[str, bytes]


class Joined(msgspec.Struct):
    """One that waits."""

    question: Question
    heard: Callable[[bool], None]
    until_ns: int
    size: int


class Flight(msgspec.Struct):
    """A question that is being answered. `leader` is the reservation of the first, "" while there is none."""

    leader: str
    #: From when on the next one goes, where there is no leader.
    next_ns: int = 0
    joined: OrderedDict[str, Joined] = msgspec.field(default_factory=OrderedDict)


class Flights:
    """All of them. Whoever hears of its end may ask again at once: nothing is changed while they are told."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._flights: dict[Question, Flight] = {}
        self._joined: dict[str, Joined] = {}
        self._number = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._joined)

    def __contains__(self, question: Question) -> bool:
        """Whether it is being answered."""
        return question in self._flights

    def waited_for(self, question: Question) -> bool:
        """Whether somebody waits for its answer."""
        flight = self._flights.get(question)
        return flight is not None and bool(flight.joined)

    def begins(self, question: Question, leader: str) -> None:
        """A request goes to an engine; it is the first, unless another one is."""
        flight = self._flights.setdefault(question, Flight(leader))
        flight.leader = flight.leader or leader

    def join(self, question: Question, heard: Callable[[bool], None], *, until_ns: int, size: int) -> str:
        """Wait for a question that is being answered; the wait's name, "" where it is not, or too many do."""
        flight = self._flights.get(question)
        if flight is None or until_ns <= self._clock():
            return ""
        if len(self._joined) >= JOINED_MAX or self._bytes + size > JOINED_BYTES_MAX:
            return ""
        self._number += 1
        name = f"join-{self._number}"
        self._joined[name] = flight.joined[name] = Joined(question, heard, until_ns, size)
        self._bytes += size
        return name

    def leave(self, name: str) -> None:
        """One that waits has left."""
        joined = self._joined.pop(name, None)
        if joined is not None:
            self._bytes -= joined.size
            self._flights[joined.question].joined.pop(name, None)
            self._tidy(joined.question)

    def late(self, question: Question, leader: str) -> None:
        """The first has ended and its answer has not come: it comes about now, or the next one goes."""
        flight = self._flights.get(question)
        if flight is not None and flight.leader == leader:
            flight.leader, flight.next_ns = "", self._clock() + LEADERLESS_NS
            self._tidy(question)

    def ends(self, question: Question, leader: str, *, answered: bool) -> None:
        """A request's answer is there, for all who wait; or it failed, and the next one goes."""
        flight = self._flights.get(question)
        if flight is None:
            return
        if answered:
            del self._flights[question]
            for name, joined in list(flight.joined.items()):
                if self._joined.pop(name, None) is not None:
                    self._bytes -= joined.size
                    joined.heard(True)
        elif flight.leader == leader:
            flight.leader = ""
            self._next(question, flight)

    def step(self, *, now_ns: int) -> None:
        """Let time pass."""
        for question, flight in list(self._flights.items()):
            for name, joined in list(flight.joined.items()):
                if now_ns >= joined.until_ns:
                    self._release(name, joined)
            if not flight.leader and now_ns >= flight.next_ns and self._flights.get(question) is flight:
                self._next(question, flight)

    def _next(self, question: Question, flight: Flight) -> None:
        """The one that has waited longest goes; it becomes the first when it is on its way."""
        flight.next_ns = self._clock() + LEADERLESS_NS
        for name, joined in list(flight.joined.items())[:1]:
            self._release(name, joined)
        self._tidy(question)

    def _release(self, name: str, joined: Joined) -> None:
        if self._joined.pop(name, None) is None:
            return
        self._bytes -= joined.size
        flight = self._flights.get(joined.question)
        if flight is not None:
            flight.joined.pop(name, None)
        joined.heard(False)

    def _tidy(self, question: Question) -> None:
        flight = self._flights.get(question)
        if flight is not None and not flight.leader and not flight.joined:
            del self._flights[question]
