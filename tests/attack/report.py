"""What an attack tried, what it was answered, what its victim got, and which promises it broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """One attack's outcome; `broken` says each promise that did not hold, in a sentence."""

    tried: int = 0
    answered: Counter[Any] = field(default_factory=Counter)
    victim: Counter[Any] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def answer(self, what: Any) -> None:
        """One thing that was tried, and what came of it."""
        self.tried += 1
        self.answered[what] += 1

    def holds(self, kept: object, otherwise: str) -> None:
        """A promise: `otherwise` says what happened where it was not kept."""
        if not kept:
            self.broken.append(otherwise)

    def served(self, victim: Counter[Any]) -> None:
        """The victim's requests are all answered with 200."""
        self.victim += victim
        self.holds(set(victim) <= {200}, f"the victim got {dict(victim)}")


@dataclass(frozen=True)
class Attack:
    """`run` takes the stand and whether it has time: a second, or half a minute."""

    name: str
    promise: str
    run: Callable[..., Report]
    #: Whether `make test` has time for it.
    quick: bool


ATTACKS: list[Attack] = []


def attack(promise: str, *, quick: bool = True) -> Callable[[Callable[..., Report]], Callable[..., Report]]:
    """Register an attack under its function's name; `promise` is what it tries to break."""

    def register(run: Callable[..., Report]) -> Callable[..., Report]:
        ATTACKS.append(Attack(run.__name__.replace("_", " "), promise, run, quick))
        return run

    return register


def table(rows: list[tuple[str, Report]]) -> str:
    """The reports as a table for people."""

    def told(counts: Counter[Any]) -> str:
        return ", ".join(f"{count} × {what}" for what, count in sorted(counts.items(), key=str)) or "-"

    lines = []
    for name, r in rows:
        lines.append(f"{name:<24}{r.tried:>6} tried, the promise is {'BROKEN' if r.broken else 'held'}")
        lines.append(f"    answered: {told(r.answered)}")
        if r.victim:
            lines.append(f"    the victim got: {told(r.victim)}")
        lines += [f"    {note}" for note in r.notes]
        lines += [f"    BROKEN: {each}" for each in r.broken]
    return "\n".join(lines)
