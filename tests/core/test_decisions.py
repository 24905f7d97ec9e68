"""The one memory of decisions: by name, and in order."""

from __future__ import annotations

from extproc.core.decisions import DECISIONS_KEPT_MAX, NAMES_KEPT_MAX, NOTED_MAX, VALUES_KEPT_MAX, Decisions
from extproc.core.outcome import Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import ANONYMOUS
from extproc.observe.decisions import SHOWN_MAX, last_placed, plain
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="m", prompt_bytes=400, max_new_tokens=50)
REJECT = Reject(status=429, code="quota_exceeded", message="no more")


def scheduler_of(*, permits: int = 10_000) -> Scheduler:
    return make_scheduler(make_pool("10.0.0.1:80", "10.0.0.2:80", permits=permits))


def test_memory_is_bounded() -> None:
    """By decisions, by the values that they hold, and by names; the oldest go first."""
    scheduler = scheduler_of()
    for number in range(DECISIONS_KEPT_MAX + 5):
        scheduler.admit(CHAT, ANONYMOUS, now_ns=number)
    assert len(scheduler.dispatcher.decisions) == DECISIONS_KEPT_MAX
    assert scheduler.explained("i-5", now_ns=0) is None
    assert scheduler.explained("i-6", now_ns=0) is not None

    kept = scheduler.dispatcher.decisions.get("i-6")
    assert kept is not None
    big = replace(kept.routing, work=replace(kept.routing.work, prefix=tuple(range(VALUES_KEPT_MAX // 4))))
    decisions = Decisions()
    for number in range(6):
        decisions.note(replace(big, id=f"x-{number}"), kept.routed, now_ns=0)
    assert len(decisions) == 3
    assert decisions.get("x-5") is not None
    for number in range(NAMES_KEPT_MAX + 1):
        decisions.named(f"name-{number}", "x-5")
    assert decisions.reservation_of("name-0") == "name-0"
    assert decisions.reservation_of("name-1") == "x-5"
    decisions.named("n" * 129, "x-5")
    assert decisions.reservation_of("n" * 129) == "n" * 129


def test_in_order_after_a_number() -> None:
    """Oldest first; what is more than was asked for, or forgotten, is counted."""
    decisions = Decisions()
    for i in range(10):
        decisions.turned_away(f"t{i}", REJECT, now_ns=i)
    found, left_out = decisions.after(4, limit=4)
    assert [(each.number, each.tenant, each.at_ns) for each in found] == [
        (7, "t6", 6), (8, "t7", 7), (9, "t8", 8), (10, "t9", 9)
    ]  # fmt: skip
    assert left_out == 2
    assert decisions.after(10, limit=4) == ([], 0)
    for _ in range(NOTED_MAX):
        decisions.turned_away("", REJECT, now_ns=0)
    found, left_out = decisions.after(0, limit=10_000)
    assert (len(found), left_out) == (NOTED_MAX, 10)


def test_what_people_see() -> None:
    """A placement with its reason, a refusal with its code, who left; a flood costs no placement."""
    scheduler = scheduler_of()
    scheduler.events.observers = (scheduler.dispatcher.decisions,)
    routed = scheduler.admit(CHAT, replace(ANONYMOUS, place="eu"), now_ns=0)
    assert isinstance(routed, Routed)
    case = scheduler.dispatcher.decisions.get(routed.reservation.id)
    assert case is not None
    scheduler.events.refused(case.routing, REJECT, now_ns=1)
    scheduler.events.left("i-2", case.routing, gave_up=False, now_ns=2)
    scheduler.events.left("i-3", None, gave_up=False, now_ns=3)
    shown = [plain(each, unix_s=7.0) for each in scheduler.dispatcher.decisions.after(0, limit=9)[0]]
    assert [(each["number"], each["kind"], each["id"]) for each in shown] == [
        (1, "placed", "i-1"), (2, "refused", "i-1"), (3, "left", "i-1"), (4, "left", "i-3")
    ]  # fmt: skip
    assert [each["place"] for each in shown] == ["eu", "eu", "eu", ""]
    assert shown[0]["endpoint"] == routed.reservation.address
    assert shown[0]["reason"] == routed.reason.text()
    assert (shown[1]["status"], shown[1]["code"], shown[1]["reason"]) == (429, "quota_exceeded", "no more")
    for _ in range(NOTED_MAX):
        scheduler.turned_away("", REJECT, now_ns=4)
    (placed,) = last_placed(scheduler.dispatcher.decisions)
    assert (placed["id"], placed["endpoint"]) == ("i-1", routed.reservation.address)


def test_a_placement_too_large_to_keep_is_told_without_its_reason() -> None:
    """The order outlives what is kept of it."""
    scheduler = scheduler_of()
    routed = scheduler.admit(CHAT, ANONYMOUS, now_ns=0)
    assert isinstance(routed, Routed)
    kept = scheduler.dispatcher.decisions.get(routed.reservation.id)
    assert kept is not None
    big = replace(kept.routing, work=replace(kept.routing.work, prefix=tuple(range(VALUES_KEPT_MAX))))
    for number in range(2):
        scheduler.dispatcher.decisions.note(replace(big, id=f"x-{number}"), kept.routed, now_ns=0)
    shown = [plain(each, unix_s=0.0) for each in scheduler.dispatcher.decisions.after(0, limit=9)[0]]
    assert ["endpoint" in each for each in shown] == [False, False, True]


def test_a_status_shows_the_last_placements() -> None:
    """The newest first."""
    scheduler = scheduler_of()
    for number in range(SHOWN_MAX + 3):
        scheduler.admit(CHAT, ANONYMOUS, now_ns=number)
    ids = [each["id"] for each in last_placed(scheduler.dispatcher.decisions)]
    assert (len(ids), ids[0], ids[-1]) == (SHOWN_MAX, f"i-{SHOWN_MAX + 3}", "i-4")
