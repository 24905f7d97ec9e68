"""The reservation table under the ledger, the quota books and Redis's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from extproc.core.reservations import Reservations


@dataclass
class Paper:
    heard_ns: int


def table(*, remembered_max: int = 8) -> Reservations[Paper]:
    found: Reservations[Paper] = Reservations(ttl_ns=10, remembered_max=remembered_max)
    for at_ns, name in enumerate("abc"):
        found.put(name, Paper(at_ns))
    return found


def test_an_id_ends_once() -> None:
    """Whoever put it there: one that ran, one that nobody here knows."""
    books = table()
    ending, paper = books.end("a")
    assert (ending, paper) == ("running", Paper(0))
    assert books.end("a") == ("again", None)
    assert books.end("z") == ("unknown", None)
    assert books.end("z") == ("again", None)
    assert [name for name, _ in books.items()] == ["b", "c"]


def test_they_lapse_in_the_order_of_the_last_word() -> None:
    """A renewed one goes to the end of the row, and each lapses once."""
    books = table()
    assert books.renew("a", now_ns=5)
    assert not books.renew("z", now_ns=5)
    assert [name for name, _ in books.lapse(now_ns=12)] == ["b", "c"]
    assert list(books.lapse(now_ns=14)) == []
    assert [name for name, _ in books.lapse(now_ns=15)] == ["a"]


def test_what_lapsed_may_end_late_once() -> None:
    """Where its holder remembers it; else its end finds nothing."""
    books = table()
    for name, paper in books.lapse(now_ns=11):
        if name == "a":
            books.remember(name, paper)
    assert books.known("a")
    assert not books.known("b")
    assert books.end("a") == ("late", Paper(0))
    assert books.end("a") == ("again", None)
    assert books.end("b") == ("unknown", None)


def test_what_is_dropped_may_come_again() -> None:
    """It never was: neither running nor ended."""
    books = table()
    assert books.drop("a") == Paper(0)
    assert books.drop("a") is None
    assert not books.known("a")


@pytest.mark.parametrize("bound", [1, 2])
def test_the_latest_that_ended_are_remembered(bound: int) -> None:
    """Up to the bound, which may fall at any time."""
    books = table()
    for name in "abc":
        books.end(name)
    books.remembered_max = bound
    books.remember("d")
    assert [name for name in "abcd" if books.ended(name)] == list("abcd")[-bound:]
