"""Ports and cards are given out once, and the one that was given out last comes last."""

from __future__ import annotations

from extproc.scaling.places import LocalPlace, LocalPlaces
from extproc.supervise.ports import free_ports


def three() -> tuple[int, int]:
    """A range of three ports that nobody listens on."""
    while True:
        (first,) = free_ports(1)
        places = LocalPlaces()
        if all(isinstance(places.take((first, first + 2), (), cards_each=1), LocalPlace) for _ in range(3)):
            return first, first + 2


def test_each_once_and_around() -> None:
    """What was given back is given out again, after those that nobody had of late."""
    ports, places = three(), LocalPlaces()
    taken = [places.take(ports, (), cards_each=1) for _ in range(3)]
    assert [each.port for each in taken if isinstance(each, LocalPlace)] == list(
        range(ports[0], ports[1] + 1)
    )
    assert places.take(ports, (), cards_each=1) == (
        f"no port from {ports[0]} to {ports[1]} is free: the last one that was tried has a replica"
    )
    for each in taken[:2]:
        assert isinstance(each, LocalPlace)
        places.give_back(each)
    again = places.take(ports, (), cards_each=1)
    assert again == LocalPlace(ports[0])
    places.give_back(LocalPlace(ports[0]))
    assert places.take(ports, (), cards_each=1) == LocalPlace(ports[0] + 1)


def test_a_card_that_failed_comes_last() -> None:
    """And those of other pools are taken too: one set of cards for all."""
    ports, places = three(), LocalPlaces()
    first = places.take(ports, (0, 1, 2), cards_each=1, avoid=(0, 1))
    assert isinstance(first, LocalPlace)
    assert first.cards == (2,)
    assert places.take(ports, (2, 3), cards_each=2) == "no card is free: 1 of 2, and a replica takes 2"


def test_what_is_filled_in() -> None:
    """Names in braces that are ours; others are somebody's JSON."""
    place = LocalPlace(9_000, (0, 1))
    assert place.filled('{port} {address} {gpu} {pool} {"a": {b}}', "chat") == (
        '9000 127.0.0.1:9000 0,1 chat {"a": {b}}'
    )
    assert LocalPlace(9_000).filled("[{gpu}]", "chat") == "[]"
