"""From zero: who waits for a pool's first replica, for how long, and what the others are told."""

from __future__ import annotations

import pytest

from extproc.core import placing
from extproc.core.coldstart import OVERDUE_S, ColdStart
from extproc.core.fleet import Member
from extproc.core.outcome import Reject, Routed
from extproc.core.request import RouteKind
from extproc.core.scheduler import ClassSpec
from tests.stand.changed import replace
from tests.stand.holding import ACME, CHAT, GLOBEX, A, B, S, Scene, policy
from tests.stand.schedulers import make_pool, make_scheduler

#: Waits two minutes for a first replica, and five seconds for a place.
PATIENT = ClassSpec(hold_ns=5 * S, cold_hold_ns=120 * S)


class Cold(Scene):
    """A pool without replicas that can get one in a minute and a bit."""

    def __init__(self, spec: ClassSpec = PATIENT, *, starts: bool = True, **bounds: int) -> None:
        super().__init__(policy(spec, **bounds))
        pool = make_pool(permits=1, starts=starts, load_ns=60 * S, reaction_ns=15 * S)
        self.scheduler = make_scheduler(pool, policy=policy(spec, **bounds), quotas=self.quotas)
        self.scheduler.dispatcher.on_release = lambda id, decision: self.released.append((id, decision))  # noqa: A006
        self.asked: list[tuple[str, int]] = []
        self.scheduler.dispatcher.on_cold.append(lambda pool, now_ns: self.asked.append((pool, now_ns)))

    def ready(self, *addresses: str) -> None:
        self.scheduler.fleet.set_members({"p": [Member(each, max_concurrent=1) for each in addresses]})

    def refused(self) -> list[Reject]:
        found = [decision for _, decision in self.released if isinstance(decision, Reject)]
        self.released.clear()
        return found


def test_held_beyond_the_usual_hold_and_served_by_the_first_replica() -> None:
    """It waits by its class's cold hold, and goes when somebody is ready, under the id it was held by."""
    scene = Cold()
    hold = scene.held(now_ns=S)
    assert hold.until_ns == 121 * S
    scene.scheduler.step(now_ns=60 * S)
    assert scene.released == []
    scene.ready(A)
    scene.scheduler.step(now_ns=61 * S)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert (id_, decision.reservation.held_ms) == (hold.id, 60_000)


def test_no_stampede_when_the_first_is_ready() -> None:
    """As many go as the replica takes; the others wait in the ordinary queue, in the ordinary order."""
    scene = Cold()
    holds = [scene.held(now_ns=i) for i in range(5)]
    scene.ready(A)
    scene.scheduler.step(now_ns=S)
    order = [scene.next(now_ns=S + i).id for i in range(4)]
    (last,) = scene.released
    assert [*order, last[0]] == [hold.id for hold in holds]


def test_the_scaler_is_told_once_and_again_when_it_has_gone_again() -> None:
    """The first request that finds nobody tells; further ones do not, until there was a replica."""
    scene = Cold()
    for now_ns in (S, 2 * S, 3 * S):
        scene.held(now_ns=now_ns)
    assert scene.asked == [("p", S)]
    scene.ready(A)
    scene.scheduler.step(now_ns=10 * S)
    scene.ready()
    scene.held(GLOBEX, now_ns=20 * S)
    assert scene.asked == [("p", S), ("p", 20 * S)]


def test_refused_after_the_cold_hold_with_what_is_left() -> None:
    """503, and a Retry-After that is the rest of the predicted time."""
    scene = Cold(replace(PATIENT, cold_hold_ns=30 * S))
    scene.held(now_ns=0)
    scene.scheduler.step(now_ns=30 * S)
    (refusal,) = scene.refused()
    assert (refusal.status, refusal.code, refusal.retry_after_s) == (503, "no_ready_endpoint", 45)
    assert scene.concurrent == 0, "its quota is given back"


def test_not_held_at_all_where_the_class_does_not_wait_and_the_time_counts_down() -> None:
    """Each is told what is left at its time; the scaler is told all the same."""
    scene = Cold(replace(PATIENT, cold_hold_ns=0))
    told = [scene.rejected(now_ns=at * S).retry_after_s for at in (0, 10, 74)]
    assert told == [75, 65, 1]
    assert scene.asked == [("p", 0)]
    assert scene.rejected(now_ns=90 * S).retry_after_s == OVERDUE_S


def test_what_begins_to_load_is_the_better_clock() -> None:
    """From a start that is known the load time counts, not the reaction; a new start counts anew."""
    scene = Cold(replace(PATIENT, cold_hold_ns=0))
    scene.rejected(now_ns=0)
    cold = scene.scheduler.fleet.pools["p"].cold
    cold.began(now_ns=5 * S)
    assert scene.rejected(now_ns=6 * S).retry_after_s == 59
    cold.takes(20 * S)
    assert scene.rejected(now_ns=6 * S).retry_after_s == 59, "what was told stays true"
    cold.began(now_ns=10 * S)
    assert scene.rejected(now_ns=10 * S).retry_after_s == 20


def test_the_bounds_on_held_requests_stand() -> None:
    """Above the class's bound the newest is turned away, with the time that is left."""
    scene = Cold(class_held_max=(2,))
    scene.held(ACME, now_ns=0)
    scene.held(GLOBEX, now_ns=1)
    refusal = scene.rejected(ACME, now_ns=5 * S)
    assert (refusal.status, refusal.retry_after_s) == (503, 70)
    assert len(scene.scheduler.dispatcher.queue) == 2


def test_a_pool_that_nobody_starts_refuses_as_ever() -> None:
    """Without scaling there is nothing to wait for."""
    scene = Cold(starts=False)
    refusal = scene.rejected()
    assert (refusal.status, refusal.retry_after_s, scene.asked) == (503, 5, [])


def test_what_costs_no_place_is_not_held_and_starts_nothing() -> None:
    """A token count is told when to come again."""
    scene = Cold()
    refusal = scene.rejected(request=replace(CHAT, kind=RouteKind.TOKENIZE))
    assert (refusal.status, refusal.retry_after_s, scene.asked) == (503, 75, [])


def test_who_waits_for_a_place_is_told_of_a_start_when_the_last_replica_dies() -> None:
    """Held for a permit when all replicas vanish: it waits no longer than it was to, and hears why."""
    scene = Cold()
    scene.ready(A)
    scene.routed(now_ns=0)
    scene.held(now_ns=S)
    scene.ready()
    scene.scheduler.step(now_ns=6 * S)
    (refusal,) = scene.refused()
    assert refusal.code == "no_ready_endpoint"


def test_waiting_costs_nothing_while_nobody_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step does not ask for each held request where it could go."""
    scene = Cold()
    for i in range(50):
        scene.held(replace(ACME, name=f"t{i}"), now_ns=i)
    asked: list[object] = []
    monkeypatch.setattr(placing, "place", lambda routing, *_, **__: asked.append(routing))
    scene.scheduler.step(now_ns=S)
    assert asked == []


def test_a_reload_keeps_what_is_under_way() -> None:
    """The time that was told goes on; without scaling nothing is under way any more."""
    cold = ColdStart(possible=True, load_ns=60 * S)
    assert cold.asked(now_ns=0)
    after = ColdStart(possible=True, load_ns=10 * S)
    after.learnt(cold)
    assert (after.wanted, after.left_s(now_ns=50 * S)) == (True, 10)
    without = ColdStart()
    without.learnt(after)
    assert not without.wanted


def test_two_replicas_at_once_serve_two() -> None:
    """Whatever became ready takes part."""
    scene = Cold()
    both = {scene.held(now_ns=i).id for i in range(2)}
    scene.ready(A, B)
    scene.scheduler.step(now_ns=S)
    assert {id_ for id_, decision in scene.released if isinstance(decision, Routed)} == both
