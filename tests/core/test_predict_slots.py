"""How many streams an engine decodes at once, learnt from first tokens that waited for an end."""

from __future__ import annotations

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import Hold, Routed
from extproc.core.predict.slots import (
    BLOCKED_MIN,
    PEAK_NS,
    TRIAL_FIRST_NS,
    TRIAL_MAX_NS,
    Slots,
    SlotsModel,
    after_end,
)
from tests.core.test_late_binding import MS, S, Scene


def blocked(slots: Slots, running: int, *, times: int = BLOCKED_MIN, now_ns: int = 0) -> None:
    """So many first tokens that waited for an end, and then as many decoded."""
    for _ in range(times):
        slots.saw(running, waited=True, now_ns=now_ns)


def learnt(running: int = 4, model: SlotsModel | None = None) -> Slots:
    """Slots of an engine that has shown that it decodes so many at once."""
    slots = Slots(model or SlotsModel())
    slots.saw(running, waited=False, now_ns=0)
    blocked(slots, running)
    return slots


def test_three_in_a_row_that_waited_at_the_most_tell_the_limit() -> None:
    """Fewer say nothing."""
    slots = Slots(SlotsModel())
    slots.saw(4, waited=False, now_ns=0)
    blocked(slots, 4, times=BLOCKED_MIN - 1)
    assert slots.limit == 0
    blocked(slots, 4, times=1)
    assert slots.limit == 4
    assert not slots.full(3)
    assert slots.full(4)


def test_waiting_below_the_most_tells_nothing() -> None:
    """A slow engine's first tokens come after ends as well, with any number of streams."""
    slots = Slots(SlotsModel())
    slots.saw(9, waited=False, now_ns=0)
    assert not slots.saw(7, waited=True, now_ns=0)
    blocked(slots, 8, times=20)
    assert slots.limit == 0


def test_what_is_known_about_so_far_counts_about_so_far() -> None:
    """One in six more or less is an error of the count, and no other limit; the middle of three counts."""
    slots = Slots(SlotsModel())
    slots.saw(9, waited=False, now_ns=0)
    for taken in (8, 9, 8):
        assert slots.saw(taken, waited=True, now_ns=0, about=True)
    assert slots.limit == 8
    slots.saw(9, waited=False, now_ns=0, about=True)
    assert slots.limit == 8
    slots.saw(10, waited=False, now_ns=0, about=True)
    assert slots.limit == 0


def test_one_in_time_at_the_most_begins_the_count_anew() -> None:
    """An engine that gives a first token beside as many as ever may well give one more."""
    slots = Slots(SlotsModel())
    slots.saw(4, waited=False, now_ns=0)
    for _ in range(10):
        blocked(slots, 4, times=BLOCKED_MIN - 1)
        slots.saw(4, waited=False, now_ns=0)
    assert slots.limit == 0


def test_one_more_refutes_the_limit() -> None:
    """It was wrong, or the engine was started anew with more."""
    slots = learnt(4)
    assert not slots.saw(5, waited=True, now_ns=0)
    assert slots.limit == 0
    blocked(slots, 5)
    assert slots.limit == 5


def test_an_engine_that_shrank_is_known_when_the_most_is_forgotten() -> None:
    """The most that ever decoded counts for two minutes."""
    slots = learnt(8)
    for t in range(4):
        blocked(slots, 2, now_ns=PEAK_NS * (t + 1))
    assert slots.limit == 2


def test_others_go_by_the_pools_until_they_show_more() -> None:
    """The largest limit of the pool is each one's prior, where nothing speaks against it."""
    model = SlotsModel()
    one, other, wide = Slots(model), Slots(model), Slots(model)
    wide.saw(9, waited=False, now_ns=0)
    one.saw(4, waited=False, now_ns=0)
    blocked(one, 4)
    assert (one.limit, other.limit, wide.limit) == (4, 4, 0)
    assert Slots(model).limit == 4
    other.saw(5, waited=False, now_ns=0)
    assert other.limit == 0
    one.saw(5, waited=False, now_ns=0)
    assert Slots(model).limit == 0


def test_the_wait_is_an_even_share_of_a_life_for_each_ahead() -> None:
    """Four slots, each taken for 400 ms: one is free every 100 ms."""
    slots = learnt(4)
    assert slots.wait_ms(4) == 0.0, "nobody has ended: nothing is known of how long that takes"
    slots.ended(400.0)
    assert [slots.wait_ms(taken) for taken in (3, 4, 5)] == [0.0, 100.0, 200.0]
    slots.ended(1_400.0)
    assert slots.life_ms == pytest.approx(500.0)


def test_trials_get_rarer() -> None:
    """One more than the limit is tried at once, then after two seconds, four, and so on."""
    slots, now_ns, waits = learnt(4), 0, []
    for _ in range(8):
        assert slots.trials.due(now_ns)
        slots.trials.tried(now_ns)
        due = now_ns
        while not slots.trials.due(due):
            due += S
        waits.append(due - now_ns)
        now_ns = due
    assert waits[0] == TRIAL_FIRST_NS
    assert waits == sorted(waits)
    assert waits[-1] == TRIAL_MAX_NS


@pytest.mark.parametrize(
    ("observed_ms", "since_end_ms", "waited"),
    [(300.0, 60.0, True), (120.0, 60.0, False), (300.0, 250.0, False), (300.0, -5.0, False)],
)
def test_what_counts_as_waiting_for_an_end(observed_ms: float, since_end_ms: float, waited: bool) -> None:
    """Late, and within about a prefill of an end that came after it was placed."""
    assert after_end(observed_ms, 100.0, since_end_ms, 80.0) == waited


def batch_of_one(scene: Scene) -> Endpoint:
    """A replica that gave three first tokens only when another request had ended."""
    (endpoint,) = scene.scheduler.fleet.endpoints
    endpoint.slots.saw(1, waited=False, now_ns=0)
    blocked(endpoint.slots, 1)
    endpoint.slots.ended(5_000.0)
    return endpoint


def test_nothing_is_sent_into_an_engines_own_queue() -> None:
    """With its one slot taken the next waits here, with the reason said, and goes when that one has ended."""
    scene = Scene()
    endpoint = batch_of_one(scene)
    endpoint.slots.trials.tried(0)
    first = scene.routed(300)
    scene.now_ns = 100 * MS
    scene.scheduler.settlement.first_token(first.id, now_ns=scene.now_ns)
    held = scene.ask(200)
    assert isinstance(held, Hold)
    scene.now_ns = S
    scene.ends(first)
    assert [(name, type(decision)) for name, decision in scene.released] == [(held.id, Routed)]


def test_the_limit_is_learnt_of_what_a_replica_does() -> None:
    """First tokens that come right after ends, never two at once: learnt by the books themselves, also
    where the first token was taken for come before it was heard of."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    endpoint.speed.model.admission.heard = True
    running = scene.routed(200)
    scene.now_ns += 50 * MS
    scene.scheduler.settlement.first_token(running.id, now_ns=scene.now_ns)
    for _ in range(BLOCKED_MIN):
        waiting = scene.routed(200)
        scene.now_ns += 5 * S
        scene.scheduler.dispatcher.try_again(now_ns=scene.now_ns)
        scene.ends(running)
        scene.now_ns += 20 * MS
        scene.scheduler.settlement.first_token(waiting.id, now_ns=scene.now_ns)
        running = waiting
    assert endpoint.slots.limit == 1
    assert scene.scheduler.counts["first_token.overdue"] == BLOCKED_MIN


def test_an_ordinary_engine_shows_no_limit() -> None:
    """Late first tokens beside any number of streams, and ends all the time."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    streams = []
    for i in range(60):
        reservation = scene.routed(100)
        scene.now_ns += 40 * MS
        if len(streams) > 3 + i % 5:
            scene.ends(streams.pop(0))
        scene.now_ns += 5 * MS
        scene.scheduler.settlement.first_token(reservation.id, now_ns=scene.now_ns)
        streams.append(reservation)
    assert endpoint.slots.limit == 0
