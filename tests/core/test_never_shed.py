"""Nobody is turned away on a prior: who has waited the whole hold goes where no evidence keeps it back."""

from __future__ import annotations

import pytest

from extproc.core.outcome import Hold, Reject, Routed
from extproc.core.turns import TurnRow
from tests.core.test_late_binding import MS, S, Scene
from tests.stand.fleets import one_at_a_time


def test_an_engine_that_has_shown_nothing_gets_who_would_be_shed() -> None:
    """With the engine known to be at work it is shed; with nothing known it is placed when its hold ends."""
    for known in (False, True):
        scene = Scene()
        (endpoint,) = scene.scheduler.fleet.endpoints
        scene.routed(3000)
        if not known:
            # As before any first token: open at first, but closed by so much that waits.
            fresh = Scene()
            (endpoint,) = fresh.scheduler.fleet.endpoints
            endpoint.admission = type(endpoint.admission)(type(endpoint.speed.model.admission)())
            endpoint.admission.shares[:] = [1.0] * len(endpoint.admission.shares)
            for _ in range(6):
                endpoint.admission.trials.tried(0)
            scene = fresh
            scene.routed(3000)
        held = scene.ask(2000)
        assert isinstance(held, Hold)
        # Nothing is heard of the first one: it may still be at work when the hold is over.
        scene.now_ns = held.until_ns
        scene.scheduler.dispatcher.shed(now_ns=scene.now_ns)
        ((name, decision),) = scene.released
        assert name == held.id
        assert isinstance(decision, Reject if known else Routed)
        counts = scene.scheduler.counts
        assert counts["released.last"] == (0 if known else 1)
        assert counts["shed"] == (1 if known else 0)
        assert counts["shed.idle"] == 0


def test_a_replica_that_failed_a_moment_ago_is_better_than_waiting() -> None:
    """Suspects come last, but they come: the one that is trusted is busy."""
    scene = Scene(2)
    trusted, suspect = scene.scheduler.fleet.endpoints
    suspect.suspect_until_ns = 60 * S
    assert scene.routed(3000).address == trusted.address
    assert scene.routed(3000).address == suspect.address


def test_a_trial_may_be_tried_elsewhere() -> None:
    """What is sent into a closed queue to see has its alternates, as any other request."""
    scene = Scene(3)
    for _ in range(3):
        scene.routed(1500)
    scene.now_ns = 64 * S
    tried = scene.ask(1500)
    assert isinstance(tried, Routed)
    assert len(tried.addresses) == 3
    assert isinstance(scene.ask(3000), Hold | Routed)


def test_who_are_due_together_do_not_share_one_place() -> None:
    """Each is in the books before the next is tried: a last chance overfills no replica."""
    scene = Scene(max_concurrent=2)
    (endpoint,) = scene.scheduler.fleet.endpoints
    endpoint.admission = type(endpoint.admission)(type(endpoint.speed.model.admission)())
    endpoint.admission.shares[:] = [1.0] * len(endpoint.admission.shares)
    for _ in range(6):
        endpoint.admission.trials.tried(0)
    scene.routed(3000)
    held = [scene.ask(2000) for _ in range(4)]
    assert all(isinstance(each, Hold) for each in held)
    scene.now_ns = 5 * S
    scene.scheduler.dispatcher.shed(now_ns=scene.now_ns)
    assert sorted(type(decision).__name__ for _, decision in scene.released) == ["Reject"] * 3 + ["Routed"]
    assert endpoint.permits == 2
    assert not scene.scheduler.dispatcher.queue.by_pool_count("p")


@pytest.mark.parametrize(
    ("elsewhere", "busy", "placed"), [(0, True, True), (9_000, True, False), (9_000, False, True)]
)
def test_a_last_chance_is_no_way_past_others_turn(elsewhere: int, busy: bool, placed: bool) -> None:
    """What waits longer at another service is next; it is turned away then, but beside no idle replica."""
    scene = Scene(max_concurrent=4)
    (endpoint,) = scene.scheduler.fleet.endpoints
    first = scene.routed(3000)
    held = scene.ask(3000)
    assert isinstance(held, Hold)
    if elsewhere:
        rows = {"p": [TurnRow("anonymous", 0, held=1, running=0, waited_ms=elsewhere)]}
        scene.scheduler.peers.hear(["other"], {"other": rows})
    if not busy:
        scene.scheduler.ledger.cancel(first.id, now_ns=0)
    endpoint.admission = type(endpoint.admission)(type(endpoint.speed.model.admission)())
    scene.now_ns = held.until_ns
    scene.scheduler.dispatcher.shed(now_ns=scene.now_ns)
    ((_, decision),) = scene.released
    assert isinstance(decision, Routed) is placed
    assert scene.scheduler.counts["shed.idle"] == 0


def test_a_trial_is_one() -> None:
    """Prompts that are within the bound alone, and not with what is queued: one is sent to see, no more."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    scene.now_ns = 64 * S
    assert endpoint.admission.trials.due(scene.now_ns)
    assert [isinstance(scene.ask(400), Routed) for _ in range(5)] == [True, True, True, False, False]
    assert not endpoint.admission.trials.due(scene.now_ns)


def test_a_shed_beside_an_idle_replica_is_counted() -> None:
    """One that became idle after the last look, by a fault of ours: the count says so."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    first = scene.routed(3000)
    held = scene.ask(3000)
    assert isinstance(held, Hold)
    scene.scheduler.dispatcher._last = lambda held, now_ns: None  # type: ignore[method-assign]
    scene.scheduler.ledger.cancel(first.id, now_ns=0)
    assert endpoint.load_permits == 0
    scene.now_ns = held.until_ns
    scene.scheduler.dispatcher.shed(now_ns=scene.now_ns)
    assert scene.scheduler.counts["shed.idle"] == 1


def test_side_by_side_is_served_side_by_side() -> None:
    """An engine whose first tokens come as if nobody else were there gets its prompts at once."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    one_at_a_time(endpoint)
    assert isinstance(scene.routed(3000), object)
    assert isinstance(scene.ask(3000), Hold)
    for _ in range(8):
        endpoint.admission.saw(1, 200.0, 100.0, 0.0)
    scene.scheduler.dispatcher.pump("p", now_ns=MS)
    assert [type(decision) for _, decision in scene.released] == [Routed]
    assert [type(scene.ask(3000)) for _ in range(4)] == [Routed] * 4


def test_how_long_a_stream_is_waited_for_follows_what_is_heard_in_its_pool() -> None:
    """Half more than predicted while nothing is known, once where streams end unheard, three times where
    others are heard of, also if that was since it was placed."""
    for ends, heard, times in ((0, False, 1.5), (3, False, 1.0), (0, True, 3.0)):
        scene = Scene()
        (endpoint,) = scene.scheduler.fleet.endpoints
        for _ in range(ends):
            scene.ends(scene.routed(100))
        scene.now_ns = S
        expected_ns = int(scene.routed(3000).ttft_ms * MS)
        endpoint.speed.model.admission.heard = heard
        for due_ns, late in ((times * expected_ns - MS, 0), (times * expected_ns + MS, 1)):
            scene.scheduler.dispatcher.try_again(now_ns=S + int(due_ns))
            assert scene.scheduler.counts["first_token.overdue"] == late, (ends, heard, due_ns)


def test_a_late_first_token_teaches_before_it_comes() -> None:
    """Where first tokens are heard of, one that is overdue makes its replica slow; else nothing is late."""
    for heard in (True, False):
        scene = Scene()
        (endpoint,) = scene.scheduler.fleet.endpoints
        endpoint.speed.model.admission.heard = heard
        scene.routed(3000)
        before = endpoint.speed.factor
        scene.scheduler.dispatcher.try_again(now_ns=30 * S)
        assert scene.scheduler.counts["first_token.overdue"] == 1
        assert (endpoint.speed.observations > 0) == heard
        assert (endpoint.speed.factor > before) == heard
