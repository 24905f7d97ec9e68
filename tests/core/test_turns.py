"""Whose turn it is among services: what one queue would do, said alike by all of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from extproc.config.load import loads
from extproc.core.outcome import Hold, Outcome, Routed
from extproc.core.tenant import Tenant
from extproc.core.turns import KEPT_NS, TurnRow, Turns
from extproc.service.app import App
from extproc.state.messages import NEEDS_MAX, needs_by_pool
from extproc.state.share import URGENT_NS, OwnLoad, PeerLoads
from tests.service.test_journal import CHAT, TEXT

S = 1_000_000_000
SAME: Mapping[str, float] = {}


def turns(own: str, **services: list[TurnRow]) -> Turns:
    """What a service knows of all: its own part is what it has told."""
    made = Turns(own)
    made.hear({name: {"p": rows} for name, rows in services.items() if name != own})
    made.tell({"p": services.get(own, [])})
    return made


@pytest.mark.parametrize(
    ("services", "weights", "who"),
    [
        # The tenant that runs less over all services, wherever it is held.
        ({"a": [TurnRow("x", 0, 9, 6)], "b": [TurnRow("y", 0, 1, 0), TurnRow("x", 0, 9, 1)]}, {}, "b"),
        # By weight: 6 of weight 3 are less than 3 of weight 1.
        ({"a": [TurnRow("x", 0, 1, 6)], "b": [TurnRow("y", 0, 1, 3)]}, {"x": 3.0}, "a"),
        # The better level first, however much its tenants run.
        ({"a": [TurnRow("x", 1, 1, 0)], "b": [TurnRow("y", 0, 1, 50)]}, {}, "b"),
        # Of one tenant the oldest request.
        ({"a": [TurnRow("x", 0, 5, 2, 900)], "b": [TurnRow("x", 0, 1, 2, 1_000)]}, {}, "b"),
        # What is running alone wants nothing.
        ({"a": [TurnRow("x", 0, 0, 1)], "b": [TurnRow("y", 0, 1, 5)]}, {}, "b"),
    ],
)
def test_a_freed_place_is_for_one_service_and_all_say_the_same(
    services: dict[str, list[TurnRow]], weights: dict[str, float], who: str
) -> None:
    """Whoever had the place, and whoever reckons."""
    for own in ("a", "b", "c"):
        for owner in ("a", "b"):
            known = turns(own, **services)
            assert known.ended(owner, "p", "z", weights=weights) == who


def test_where_nobody_is_known_to_wait_the_owner_keeps_its_place() -> None:
    """What it holds and has not told is its own affair."""
    known = turns("a", b=[TurnRow("x", 0, 0, 3)])
    assert not known.contended("p")
    assert known.ended("b", "p", "x", weights=SAME) == "b"
    assert known.ended("a", "p", "x", weights=SAME) == "a"


def test_places_that_come_one_after_the_other_go_round_until_the_next_message() -> None:
    """Who was next is taken to have begun: not all go to the first."""
    known = turns("a", a=[TurnRow("x", 0, 4, 2)], b=[TurnRow("y", 0, 4, 2)])
    got = [known.ended("c", "p", "z", weights=SAME) for _ in range(8)]
    assert sorted(got[:4]) == ["a", "a", "b", "b"]
    assert sorted(got) == ["a"] * 4 + ["b"] * 4
    assert known.ended("c", "p", "z", weights=SAME) == "c"


def test_a_turn_is_kept_for_others_for_a_while_alone() -> None:
    """What a peer holds may fit nowhere: then this service goes on, until something of the peer's begins."""
    rows = [TurnRow("x", 0, 5, 4)]
    known = turns("a", a=rows, b=[TurnRow("y", 0, 1, 0)])
    assert known.mine("p", rows, weights=SAME, now_ns=S) is None
    assert known.mine("p", rows, weights=SAME, now_ns=S + KEPT_NS - 1) is None
    assert known.mine("p", rows, weights=SAME, now_ns=S + KEPT_NS) == ""
    known.hear({"b": {"p": [TurnRow("y", 0, 1, 1)]}})
    assert known.mine("p", rows, weights=SAME, now_ns=S + KEPT_NS) is None
    known.hear({})
    assert known.mine("p", rows, weights=SAME, now_ns=S + KEPT_NS) == "x"


def test_a_place_that_was_given_is_one_place() -> None:
    """Granted by an end, once; what was not used is not kept for later."""
    rows = [TurnRow("x", 0, 5, 0, 10)]
    known = turns("a", a=rows, b=[TurnRow("x", 0, 5, 4, 5)])
    assert known.ended("b", "p", "x", weights=SAME) == "a"
    known.hear({"b": {"p": [TurnRow("x", 0, 5, 4, 50)]}})
    assert known.mine("p", rows, weights=SAME, now_ns=S) == "x"
    assert known.mine("p", rows, weights=SAME, now_ns=S) is None
    assert known.ended("b", "p", "x", weights=SAME) == "b"
    known.tell({"p": [TurnRow("x", 0, 5, 0, 100)]})
    assert known.ended("b", "p", "x", weights=SAME) == "a"
    known.spent("p")
    assert known.mine("p", rows, weights=SAME, now_ns=S) is None


def test_needs_travel_whole_with_every_message_and_go_with_their_service() -> None:
    """A change is told sooner than loads are; what is not named any more is gone, and so is a silent peer."""
    own, peers = OwnLoad("a-1"), PeerLoads("b-1")
    needs = {"p": [TurnRow("x", 0, 3, 1, 40), TurnRow("y", 1, 2, 0, 70)]}
    first = own.next({}, now_ns=S, needs=needs)
    assert first is not None
    peers.take(first.frame, now_ns=S)
    assert peers.needs == {"a": needs}
    assert own.due_ns == S + URGENT_NS
    assert own.next({}, now_ns=S + URGENT_NS, needs=needs) is None
    after = own.next({}, now_ns=S + 2 * URGENT_NS, needs={"p": [TurnRow("x", 0, 2, 2, 40)]})
    assert after is not None
    peers.take(after.frame, now_ns=S + 2 * URGENT_NS)
    assert peers.needs == {"a": {"p": [TurnRow("x", 0, 2, 2, 40)]}}
    none = own.next({}, now_ns=S + 3 * URGENT_NS, needs={})
    assert none is not None
    peers.take(none.frame, now_ns=S + 3 * URGENT_NS)
    assert peers.needs == {"a": {}}
    peers.expire(now_ns=10 * S)
    assert peers.needs == {}


def test_what_is_told_of_needs_is_bounded() -> None:
    """With more tenants than a message holds, those with most."""
    rows = [TurnRow(f"t{number}", 0, number + 1, 0) for number in range(2 * NEEDS_MAX)]
    told = needs_by_pool({"p": rows})["p"]
    assert len(told) == NEEDS_MAX
    assert min(held for figures in told.values() for _, held, _, _ in figures) == NEEDS_MAX + 1


def test_a_place_that_a_peer_was_reckoned_to_take_is_free_again_when_it_did_not() -> None:
    """What is reckoned between two messages ends with the next: no endpoint stays full of nobody."""
    app = App(loads(f"{TEXT}\nsharing: {{redis: 'redis://127.0.0.1:1'}}"))
    scheduler, other = app.scheduler, OwnLoad("0123abcd-1")
    needs = {"p": [TurnRow("u", 0, 1, 0, 500)]}
    here = scheduler.admit(CHAT, Tenant(name="t"), now_ns=S)
    assert isinstance(here, Routed)
    peers = PeerLoads(f"{scheduler.instance}-1")

    def hear(needs: dict[str, list[TurnRow]], now_ns: int) -> None:
        said = other.next({}, now_ns=now_ns, needs=needs)
        assert said is not None
        peers.take(said.frame, now_ns=now_ns)
        app.agents._on_peers(peers)

    hear(needs, S)
    waits = scheduler.admit(CHAT, Tenant(name="t"), now_ns=S)
    assert isinstance(waits, Hold), "the place is the other service's"
    end = Outcome(reservation=here.reservation, final=True, status=200, served_by="127.0.0.1:1", attempts=1)
    scheduler.settlement.settle(end, now_ns=2 * S)
    endpoint = scheduler.fleet.endpoints[0]
    assert (endpoint.permits, endpoint.peer_permits) == (0, 1)
    hear({}, 3 * S)
    assert endpoint.peer_permits == 0
    scheduler.dispatcher.pump_all(now_ns=3 * S)
    assert len(scheduler.dispatcher.queue) == 0
