"""What is heard on the request's path, and whose it is."""

from __future__ import annotations

import pytest
from msgspec import structs

from extproc.core.families import FamilyChoice
from extproc.core.outcome import End, Outcome, Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Policy
from extproc.core.slo import ClassSpec
from extproc.core.tenant import Tenant
from extproc.observe.analytics import AnalyticsRow, Listener, OpenSpans, RowKey
from extproc.observe.analytics.books import encoded
from extproc.observe.analytics.listener import ORPHAN_WAIT_NS
from extproc.observe.analytics.row import UNKNOWN, decoded
from extproc.observe.analytics.spans import DAY
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
WALL = 1_795_792_230 * S
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
ACME = Tenant(name="acme")
KEY = RowKey("acme", "chat", "m", "least_work")


class Scene:
    """A scheduler that tells a listener, and a clock that stands."""

    def __init__(self, *, alone: bool = True, connected: bool = False, waiting_max: int = 100) -> None:
        pool = make_pool("10.0.0.1:80", permits=128, name="chat")
        self.scheduler = make_scheduler(pool, instance="here", policy=Policy(classes=(ClassSpec(hold_ns=0),)))
        self.now_ns = 10**15
        self.listener = Listener(
            self.scheduler.fleet,
            self.scheduler.peers,
            alone=alone,
            connected=lambda: connected,
            clock=lambda: self.now_ns,
            wall_ns=lambda: WALL,
            waiting_max=waiting_max,
        )
        self.scheduler.events.observers = (self.listener,)

    def admitted(self) -> Routed:
        """A request on its way."""
        decision = self.scheduler.admit(CHAT, ACME, now_ns=self.now_ns)
        assert isinstance(decision, Routed)
        return decision

    def ended(self, *, instance: str = "", **facts: object) -> Outcome:
        """Its record comes."""
        routed = self.admitted()
        reservation = routed.reservation
        if instance:
            reservation = structs.replace(reservation, id=f"{instance}-1")
        outcome = Outcome(reservation=reservation, final=True, **facts)  # type: ignore[arg-type]  # as its test says
        assert self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)
        return outcome

    def rows(self) -> dict[bytes, AnalyticsRow]:
        """The day's rows by key."""
        books = OpenSpans("w")
        books.fold(self.listener.take())
        return {each.key: decoded(each.data) for each in books.changes() if each.length_s == DAY}


GOOD = {
    "status": 200,
    "duration_ns": 1_100_000_000,
    "ttft_ns": 100_000_000,
    "prompt_tokens": 90,
    "output_tokens": 11,
}


def test_an_answer() -> None:
    """Its times, its tokens as charged, its target met; TPOT is of the tokens after the first."""
    scene = Scene()
    scene.ended(**GOOD)
    (found,) = scene.rows().values()
    assert (found.ok, found.input_tokens, found.output_tokens, found.slo_met) == (1, 90, 11, 1)
    assert found.gpu_us == 1_100_000
    assert found.ttft_ms.mean == 100.0
    assert found.total_ms.mean == 1_100.0
    assert found.tpot_ms.mean == 100.0
    assert (found.prompt_tokens.mean, found.answer_tokens.mean, found.held_ms.zeros) == (90.0, 11.0, 1)


def test_where_it_is_counted() -> None:
    """Under its tenant, pool, model and strategy, at the wall clock's time."""
    scene = Scene()
    scene.ended(**GOOD)
    assert list(scene.rows()) == [encoded(KEY)]
    scene.ended(**GOOD)
    ((at_s, key, _, _),) = scene.listener.take()
    assert (at_s, key) == (WALL // S, KEY)


@pytest.mark.parametrize(
    ("end", "status", "name", "missed"),
    [
        (End.REFUSED, 400, "refused", 0),
        (End.REFUSED, 429, "refused", 1),
        (End.ERROR, 503, "error", 1),
        (End.CLIENT_GONE, 0, "client_gone", 0),
    ],
)
def test_other_ends(end: End, status: int, name: str, missed: int) -> None:
    """Each under its name; none has a total time; what failed, or found no room, has missed its target."""
    scene = Scene()
    scene.ended(end=end, status=status, duration_ns=50_000_000)
    (found,) = scene.rows().values()
    assert (getattr(found, name), found.requests, found.slo_missed) == (1, 1, missed)
    assert (found.total_ms.count, found.answer_tokens.count) == (0, 0)


def test_a_refusal_of_ours() -> None:
    """By its code; for want of room it has missed its target."""
    scene = Scene()
    scene.scheduler.fleet.drain("10.0.0.1:80", draining=True)
    assert isinstance(scene.scheduler.admit(CHAT, ACME, now_ns=scene.now_ns), Reject)
    ((key, found),) = scene.rows().items()
    assert key == encoded(KEY)
    assert (found.rejected, found.slo_missed) == (1, 1)
    assert sum(found.codes.values()) == 1


def test_who_was_never_a_case() -> None:
    """Strangers have no name, a known tenant has; neither says anything of targets."""
    scene = Scene()
    refusal = Reject(status=401, code="unauthorized", message="")
    scene.scheduler.turned_away("", refusal, now_ns=scene.now_ns)
    scene.scheduler.turned_away(
        "acme", replace(refusal, status=404, code="model_not_found"), now_ns=scene.now_ns
    )
    rows = scene.rows()
    assert set(rows) == {encoded(RowKey(UNKNOWN)), encoded(RowKey("acme"))}
    assert [(each.rejected, each.slo_missed) for each in rows.values()] == [(1, 0), (1, 0)]


def test_who_is_kept_out_for_what_it_sent_has_missed_no_target() -> None:
    """Too many attempts or refusals are their sender's doing, whatever their status is."""
    scene = Scene()
    for code in ("too_many_refused", "too_many_attempts", "overloaded"):
        refusal = Reject(status=429, code=code, message="")
        scene.scheduler.turned_away("acme", refusal, now_ns=scene.now_ns)
    (found,) = scene.rows().values()
    assert (found.rejected, found.slo_missed) == (3, 1)


def test_who_left() -> None:
    """Before the decision reached Envoy: counted, though nobody knows whose any more."""
    scene = Scene()
    scene.scheduler.cancel(scene.admitted().reservation.id, now_ns=scene.now_ns)
    ((key, found),) = scene.rows().items()
    assert (key, found.left, found.requests) == (encoded(RowKey(UNKNOWN)), 1, 1)


def test_who_asked_for_a_family() -> None:
    """The family is counted beside the model that served."""
    scene = Scene()
    routed = scene.admitted()
    choice = FamilyChoice(family="auto", model="m", wished="m", score=0.1, features=())
    case = scene.scheduler.resolve(CHAT, ACME, "x", now_ns=scene.now_ns)
    assert not isinstance(case, Reject)
    scene.listener.placed(replace(case, choice=choice), routed, now_ns=scene.now_ns)
    ((key, found),) = scene.rows().items()
    assert (key, found.families, found.requests) == (encoded(KEY), {"auto": 1}, 0)


def test_no_end_ever_came() -> None:
    """Expired, here alone."""
    scene = Scene(alone=False)
    scene.listener.expired(scene.admitted().reservation, now_ns=scene.now_ns)
    scene.listener.expired(structs.replace(scene.admitted().reservation, id="gone-1"), now_ns=scene.now_ns)
    (found,) = scene.rows().values()
    assert found.expired == 1


def test_of_several_services_each_counts_its_own() -> None:
    """A peer's end is not counted; one of nobody waits until peers are known, and is to be claimed."""
    scene = Scene(alone=False, connected=True)
    scene.scheduler.peers.hear({"peer"}, {})
    scene.ended(**GOOD)
    scene.ended(**GOOD, instance="peer")
    scene.ended(**GOOD, instance="gone")
    scene.ended(**GOOD, instance="late")
    (found,) = scene.rows().values()
    assert found.ok == 1
    assert scene.listener.take_orphans(now_ns=scene.now_ns + ORPHAN_WAIT_NS - 1) == {}
    scene.scheduler.peers.hear({"peer", "late"}, {})
    assert list(scene.listener.take_orphans(now_ns=scene.now_ns + ORPHAN_WAIT_NS)) == ["gone-1"]
    assert scene.listener.take_orphans(now_ns=scene.now_ns + 2 * ORPHAN_WAIT_NS) == {}


def test_without_redis_nobody_elses_end_is_claimed() -> None:
    """Then every peer looks gone."""
    scene = Scene(alone=False, connected=False)
    scene.ended(**GOOD, instance="peer")
    assert scene.listener.take_orphans(now_ns=scene.now_ns + ORPHAN_WAIT_NS) == {}


def test_the_only_service_counts_what_its_predecessor_decided() -> None:
    """After a restart streams go on, and end here."""
    scene = Scene(alone=True)
    scene.ended(**GOOD, instance="before")
    (found,) = scene.rows().values()
    assert found.ok == 1


def test_what_waits_is_bounded() -> None:
    """The newest are dropped and counted."""
    scene = Scene(waiting_max=3)
    for _ in range(5):
        scene.ended(**GOOD)
    assert len(scene.listener) == 3
    assert scene.listener.counts["dropped"] == 2
