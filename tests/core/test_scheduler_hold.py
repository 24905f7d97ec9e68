"""The hold path: who waits, in whose order, what ends a wait, and what the quota says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.accounts import Accounts
from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Member, PoolSpec
from extproc.core.outcome import Hold, Outcome, Reject, Reservation, Routed
from extproc.core.quota import ExactBooks, limits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.strategies import STRATEGIES
from extproc.core.tenant import Directory, Tenant
from extproc.wire.exchange import Exchange
from extproc.wire.responder import Reply
from tests.stand.schedulers import make_pool, make_processor, make_scheduler, step

S = 1_000_000_000
A, B = "10.0.0.1:80", "10.0.0.2:80"
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
ACME, GLOBEX = Tenant(name="acme"), Tenant(name="globex")
ONE_CLASS = (ClassSpec(hold_ns=5 * S),)
#: Budgets that no test spends; what is outstanding of them shows what was refunded.
QUOTA = limits(requests_per_minute=600, concurrent_requests=50)


def policy(*classes: ClassSpec, quota: bool = True, **bounds: Any) -> Policy:
    classes = classes or ONE_CLASS
    bounds.setdefault("class_held_max", (100,) * len(classes))
    bounds.setdefault("ageing_ns", 3_600 * S)
    accounts = Accounts(tenants={"acme": QUOTA, "globex": QUOTA} if quota else {})
    return Policy(classes=classes, bounds=QueueBounds(**bounds), accounts=accounts)


class Scene:
    """A scheduler, and what became of those it held."""

    def __init__(self, given: Policy | None = None, *, permits: int = 1, addresses: tuple[str, ...] = (A,)):
        spec = make_pool(*addresses, permits=permits)
        self.quotas = ExactBooks()
        self.scheduler = make_scheduler(spec, policy=given or policy(), quotas=self.quotas)
        self.released: list[tuple[str, Routed | Reject]] = []
        self.scheduler.on_release = lambda id, decision: self.released.append((id, decision))  # noqa: A006

    def routed(self, tenant: Tenant = ACME, request: Request = CHAT, *, now_ns: int = 0) -> Reservation:
        decision = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(decision, Routed), decision
        return decision.reservation

    def held(self, tenant: Tenant = ACME, request: Request = CHAT, *, now_ns: int = 0) -> Hold:
        decision = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(decision, Hold), decision
        return decision

    def rejected(self, tenant: Tenant = ACME, request: Request = CHAT, *, now_ns: int = 0) -> Reject:
        decision = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(decision, Reject), decision
        return decision

    def ends(self, reservation: Reservation, *, now_ns: int = 0) -> None:
        outcome = Outcome(reservation=reservation, final=True, served_by=reservation.address, attempts=1)
        assert self.scheduler.settle(outcome, now_ns=now_ns)

    def last(self) -> tuple[str, Routed | Reject]:
        (only,) = self.released
        self.released.clear()
        return only

    def next(self, *, now_ns: int = 0) -> Reservation:
        """The one just released ends; the one released for it."""
        _, decision = self.last()
        assert isinstance(decision, Routed), decision
        self.ends(decision.reservation, now_ns=now_ns)
        return decision.reservation

    @property
    def concurrent(self) -> int:
        """Reservations of quota that have not ended."""
        return len(self.quotas)


def test_a_held_request_goes_where_a_permit_is_freed() -> None:
    """It is routed under the id it was held by, and enters the books then."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held(now_ns=S)
    assert hold.until_ns == 6 * S
    assert (len(scene.scheduler.ledger), len(scene.scheduler.queue)) == (1, 1)
    scene.ends(first, now_ns=2 * S)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert id_ == hold.id == decision.reservation.id
    assert hold.id in scene.scheduler.ledger
    assert [scene.scheduler.counts[name] for name in ("held", "released", "routed")] == [1, 1, 2]


def test_nobody_jumps_the_queue() -> None:
    """Who comes when a place is free but others wait for it goes behind them."""
    scene = Scene(permits=2)
    both = [scene.routed(), scene.routed()]
    wide = scene.held(GLOBEX, replace(CHAT, sequences=2))
    scene.ends(both[0])
    assert scene.released == [], "two permits are asked for, one is free"
    narrow = scene.scheduler.admit(CHAT, GLOBEX, now_ns=0)
    # The first of the line does not fit; the place is not left idle for it.
    assert isinstance(narrow, Routed)
    assert wide.id in scene.scheduler.queue
    later = scene.held(GLOBEX)
    scene.ends(both[1])
    assert scene.last()[0] == later.id
    assert wide.id in scene.scheduler.queue


def test_one_tenants_requests_leave_in_the_order_they_came() -> None:
    """First in, first out, while all can still meet their deadline."""
    scene = Scene()
    first = scene.routed()
    holds = [scene.held(now_ns=i) for i in range(4)]
    scene.ends(first, now_ns=10)
    assert [scene.next(now_ns=10).id for _ in holds] == [hold.id for hold in holds]
    assert scene.released == []
    assert len(scene.scheduler.ledger) == 0


def test_tenants_take_turns() -> None:
    """Three of one and one of another: the one does not wait for the three."""
    scene = Scene()
    first = scene.routed()
    holds = {scene.held(ACME).id: "acme" for _ in range(3)}
    holds |= {scene.held(GLOBEX).id: "globex"}
    scene.ends(first)
    order = [holds[scene.next().id] for _ in range(4)]
    assert order.index("globex") <= 1, order


def test_a_better_class_goes_first() -> None:
    """Whoever came first; an unknown class is the last."""
    scene = Scene(policy(ClassSpec(name="gold", hold_ns=S), ClassSpec(name="standard", hold_ns=S)))
    first = scene.routed()
    unknown = scene.held(replace(GLOBEX, service_class="forgotten"))
    standard = scene.held(ACME, now_ns=1)
    gold = scene.held(replace(ACME, service_class="gold"), now_ns=2)
    scene.ends(first, now_ns=3)
    order = [scene.next(now_ns=3).id for _ in range(3)]
    assert order[0] == gold.id
    assert set(order[1:]) == {unknown.id, standard.id}


def test_a_hold_that_ends_is_429_with_what_was_waited() -> None:
    """The message names pool and time, Retry-After is a second at least, the quota is as before."""
    scene = Scene()
    scene.routed()
    hold = scene.held(now_ns=S)
    assert scene.concurrent == 2
    scene.scheduler.step(now_ns=6 * S - 1)
    assert scene.released == []
    scene.scheduler.step(now_ns=6 * S)
    id_, shed = scene.last()
    assert id_ == hold.id
    assert isinstance(shed, Reject)
    assert (shed.status, shed.code) == (429, "overloaded")
    assert shed.message == "no replica of pool 'p' had room within 5.0 s"
    assert shed.retry_after_s is not None
    assert shed.retry_after_s >= 1
    assert scene.concurrent == 1
    assert [scene.scheduler.counts[name] for name in ("shed", "rejected.overloaded")] == [1, 1]


def test_who_leaves_gets_the_quota_back() -> None:
    """And is gone from the queue; leaving twice, or after the release, changes nothing."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held()
    scene.scheduler.leave(hold.id, now_ns=0)
    scene.scheduler.leave(hold.id, now_ns=0)
    assert (len(scene.scheduler.queue), scene.concurrent, scene.scheduler.counts["held.left"]) == (0, 1, 1)
    scene.ends(first)
    assert scene.released == []


def test_who_waits_goes_before_who_comes_when_room_came_unnoticed() -> None:
    """A new replica that no pump has seen yet: the next arrival finds the older one's turn first."""
    scene = Scene()
    scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.set_members({"p": [Member(A, max_concurrent=1), Member(B, max_concurrent=1)]})
    later = scene.held(GLOBEX)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert id_ == hold.id
    assert later.id in scene.scheduler.queue


def test_without_a_hold_time_full_is_a_refusal() -> None:
    """hold_ms 0: 429 at once, and nothing of the quota is kept."""
    scene = Scene(policy(ClassSpec(hold_ns=0)))
    scene.routed()
    reject = scene.rejected()
    assert (reject.status, reject.code, reject.retry_after_s) == (429, "overloaded", 1)
    assert (len(scene.scheduler.queue), scene.concurrent, scene.scheduler.counts["held"]) == (0, 1, 0)


@pytest.mark.parametrize("kind", [RouteKind.TOKENIZE, RouteKind.INFO])
def test_what_costs_no_place_never_waits(kind: RouteKind) -> None:
    """On a full replica, past those who wait."""
    scene = Scene()
    scene.routed()
    scene.held()
    free = scene.routed(GLOBEX, replace(CHAT, kind=kind))
    assert (free.permits, len(scene.scheduler.queue)) == (0, 1)


def test_over_its_bound_a_tenants_newest_is_shed() -> None:
    """It is told at once, with the quota back; who waited before still waits."""
    scene = Scene(policy(tenant_held_max=1))
    scene.routed()
    hold = scene.held()
    reject = scene.rejected()
    assert (reject.status, reject.code) == (429, "overloaded")
    assert hold.id in scene.scheduler.queue
    assert (len(scene.scheduler.queue), scene.concurrent) == (1, 2)


def test_over_the_classes_bound_the_fullest_tenant_gives_way() -> None:
    """Somebody else's newest is shed for the new one, and hears of it."""
    scene = Scene(policy(class_held_max=(2,)))
    scene.routed()
    holds = [scene.held(ACME) for _ in range(2)]
    own = scene.held(GLOBEX)
    id_, shed = scene.last()
    assert isinstance(shed, Reject)
    assert id_ == holds[1].id
    assert own.id in scene.scheduler.queue
    assert scene.concurrent == 3


def test_a_spent_quota_is_refused_before_the_wait() -> None:
    """Who may not have it does not wait for it; the waiting count against concurrency."""
    scene = Scene(replace(policy(), accounts=Accounts(tenants={"acme": limits(concurrent_requests=2)})))
    scene.routed()
    scene.held()
    reject = scene.rejected()
    assert (reject.status, reject.code) == (429, "quota_exceeded")
    assert len(scene.scheduler.queue) == 1


def test_a_reload_with_other_classes_sheds_who_waits() -> None:
    """429 and the quota back: their places in the order are no more. What runs is untouched."""
    scene = Scene()
    first = scene.routed()
    holds = {scene.held().id, scene.held(GLOBEX).id}
    scene.scheduler.apply(policy(ClassSpec(name="gold"), ClassSpec(name="standard")), now_ns=S)
    assert {id_ for id_, _ in scene.released} == holds
    assert all(isinstance(each, Reject) and each.status == 429 for _, each in scene.released)
    assert (len(scene.scheduler.queue), scene.concurrent, len(scene.scheduler.ledger)) == (0, 1, 1)
    scene.released.clear()
    hold = scene.held(now_ns=S)
    scene.ends(first, now_ns=S)
    assert scene.last()[0] == hold.id


def test_a_reload_with_the_same_classes_lets_them_wait() -> None:
    """New bounds hold for the next; nobody loses a place."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held()
    scene.scheduler.apply(policy(tenant_held_max=1), now_ns=0)
    assert scene.released == []
    assert scene.rejected().status == 429
    scene.ends(first)
    assert scene.last()[0] == hold.id


def test_a_pool_that_is_no_more_ends_the_wait() -> None:
    """404 at the next pump, not at the hold's end."""
    scene = Scene()
    scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.apply([PoolSpec(name="q", models=("n",), strategy="least_work", endpoints=())])
    scene.scheduler.pump_all(now_ns=S)
    id_, reject = scene.last()
    assert isinstance(reject, Reject)
    assert (id_, reject.status) == (hold.id, 404)
    assert scene.concurrent == 1


def test_a_new_replica_takes_who_waits() -> None:
    """A pump after a change of members."""
    scene = Scene()
    scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.set_members({"p": [Member(A, max_concurrent=1), Member(B, max_concurrent=1)]})
    scene.scheduler.pump_all(now_ns=S)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert (id_, decision.reservation.address) == (hold.id, B)


def test_a_long_wait_keeps_its_quota() -> None:
    """A hold may last longer than a reservation lives unheard of: who left or was shed pays nothing."""
    scene = Scene(policy(ClassSpec(hold_ns=200 * S)))
    first = scene.routed()
    hold = scene.held()
    heartbeat = Outcome(reservation=first, final=False, served_by=A)
    for seconds in range(0, 150, 10):
        scene.scheduler.settle(heartbeat, now_ns=seconds * S)
        scene.scheduler.step(now_ns=seconds * S)
    assert scene.concurrent == 2
    scene.scheduler.leave(hold.id, now_ns=150 * S)
    assert scene.concurrent == 1
    assert scene.quotas.totals["expired"] == 0
    assert scene.quotas.counts["cancelled"] == 1


def test_room_that_an_expiry_makes_is_used_before_anybody_is_shed() -> None:
    """Both fall due at once: the held request is routed."""
    scene = Scene(policy(ClassSpec(hold_ns=60 * S)))
    scene.routed()
    hold = scene.held()
    assert len(step(scene.scheduler, now_ns=60 * S)) == 1
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert id_ == hold.id


class Broken:
    """A policy that fails."""

    name = "broken"

    def rank(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a strategy that fails."""
    monkeypatch.setitem(STRATEGIES, "broken", Broken())
    return "broken"


def test_a_fault_in_the_placing_refunds(broken: str) -> None:
    """The exception goes on to who decides with less; nothing of the quota is kept."""
    scene = Scene()
    scene.scheduler.fleet.pools["p"].strategy = broken
    with pytest.raises(ZeroDivisionError):
        scene.scheduler.admit(CHAT, ACME, now_ns=0)
    assert (scene.concurrent, len(scene.scheduler.queue), len(scene.scheduler.ledger)) == (0, 0, 0)


def test_a_fault_at_the_release_is_a_degraded_decision(broken: str) -> None:
    """Who was held goes by least in flight; the settlement that freed the place is not lost."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.pools["p"].strategy = broken
    scene.ends(first)
    id_, decision = scene.last()
    assert isinstance(decision, Routed), decision
    assert id_ == hold.id
    assert decision.reason.degraded
    scene.ends(decision.reservation)
    assert (scene.concurrent, len(scene.scheduler.ledger)) == (0, 0)


def test_a_fault_twice_at_the_release_is_503(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told, refunded, and not in the way of the next."""
    monkeypatch.setattr("extproc.core.decide.FALLBACK", STRATEGIES[broken])
    scene = Scene()
    first = scene.routed()
    holds = [scene.held(), scene.held(GLOBEX)]
    scene.scheduler.fleet.pools["p"].strategy = broken
    scene.ends(first)
    assert [id_ for id_, _ in scene.released] == [hold.id for hold in holds]
    assert all(isinstance(each, Reject) and each.status == 503 for _, each in scene.released)
    assert (scene.concurrent, len(scene.scheduler.queue), len(scene.scheduler.ledger)) == (0, 0, 0)
    assert scene.scheduler.counts["exception.release"] == 4


class Talk:
    """A processor over a scheduler, spoken to in Envoy's bytes."""

    def __init__(self, given: Policy | None = None) -> None:
        self.scene = Scene(given)
        self.processor = make_processor(self.scene.scheduler, Directory([], required=False, anonymous=ACME))

    def ask(self) -> tuple[Exchange, Reply]:
        """Headers and a body; the exchange and the answer to the body."""
        exchange = Exchange(self.processor)
        head = pb.ProcessingRequest()
        for key, value in ((":method", "POST"), (":path", "/v1/completions")):
            head.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        exchange.receive(head.SerializeToString())
        body = pb.ProcessingRequest()
        body.request_body.body = b'{"model": "m", "prompt": "x", "max_tokens": 5}'
        return exchange, exchange.receive(body.SerializeToString())

    def routed(self) -> Reservation:
        """One is decided and delivered."""
        exchange, reply = self.ask()
        assert reply.end
        exchange.delivered()
        exchange.close()
        entry = self.scene.scheduler.ledger.get(reply.reservation_id)
        assert entry is not None
        return entry.reservation

    def waits(self) -> Exchange:
        """One is held: its reply asks Envoy for patience."""
        exchange, reply = self.ask()
        assert (reply.end, reply.wait) == (False, True)
        patience = pb.ProcessingResponse.FromString(reply.data).override_message_timeout
        assert patience.seconds >= 5, "longer than the hold"
        return exchange


def answer(reply: Reply) -> Any:
    return pb.ProcessingResponse.FromString(reply.data)


def test_a_held_exchange_is_answered_when_it_is_released() -> None:
    """Once, with the decision that any other would have had."""
    talk = Talk()
    first = talk.routed()
    exchange = talk.waits()
    assert (talk.processor.open_exchanges, talk.processor.deciding) == (1, 0)
    replies: list[Reply] = []
    exchange.when_ready(replies.append)
    talk.scene.ends(first)
    (reply,) = replies
    assert reply.end
    assert answer(reply).request_body.response.HasField("header_mutation")
    exchange.delivered()
    exchange.close()
    assert len(talk.scene.scheduler.ledger) == 1


def test_a_release_before_anybody_waits_for_it_is_kept() -> None:
    """The transport asks for it after it has written: at once then."""
    talk = Talk()
    first = talk.routed()
    exchange = talk.waits()
    talk.scene.ends(first)
    replies: list[Reply] = []
    exchange.when_ready(replies.append)
    assert [reply.end for reply in replies] == [True]
    exchange.close()
    assert len(talk.scene.scheduler.ledger) == 0, "not delivered: undone"


def test_a_client_that_leaves_while_held() -> None:
    """Its place is free, its quota refunded; a place that is freed later is not given to it."""
    talk = Talk()
    first = talk.routed()
    exchange = talk.waits()
    exchange.close()
    assert (len(talk.scene.scheduler.queue), talk.scene.concurrent) == (0, 1)
    talk.scene.ends(first)
    assert (len(talk.scene.scheduler.ledger), talk.scene.concurrent) == (0, 0)


def test_a_client_that_leaves_after_its_release_makes_way() -> None:
    """The decision could not be delivered: it is undone, and the next who waits has the place."""
    talk = Talk()
    first = talk.routed()
    gone, next_ = talk.waits(), talk.waits()
    talk.scene.ends(first)
    replies: list[Reply] = []
    next_.when_ready(replies.append)
    assert replies == []
    gone.close()
    assert [reply.end for reply in replies] == [True]
    assert (len(talk.scene.scheduler.ledger), talk.scene.concurrent) == (1, 1)


def test_a_shed_exchange_is_answered_in_its_dialect() -> None:
    """429 with Retry-After, as OpenAI's clients read it."""
    talk = Talk()
    talk.routed()
    exchange = talk.waits()
    replies: list[Reply] = []
    exchange.when_ready(replies.append)
    talk.scene.scheduler.step(now_ns=5 * S)
    (reply,) = replies
    out = answer(reply).immediate_response
    assert out.status.code == 429
    assert json.loads(out.body)["error"]["code"] == "overloaded"
    assert int({o.header.key: o.header.raw_value for o in out.headers.set_headers}["retry-after"]) >= 1


def test_a_hold_that_cannot_be_told_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would hear of its release: it leaves the queue, and something else is decided."""

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("extproc.wire.codec.hold", broken)
    talk = Talk()
    talk.routed()
    exchange, reply = talk.ask()
    assert reply.end
    assert (len(talk.scene.scheduler.queue), talk.processor.deciding, talk.scene.concurrent) == (0, 1, 1)
    exchange.close()


def test_a_release_that_cannot_be_told_is_503_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its place goes to the next who waits."""
    talk = Talk()
    first = talk.routed()
    exchange = talk.waits()

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("extproc.wire.codec.routed", broken)
    talk.scene.ends(first)
    replies: list[Reply] = []
    exchange.when_ready(replies.append)
    assert answer(replies[0]).immediate_response.status.code == 503
    assert (len(talk.scene.scheduler.ledger), talk.scene.concurrent) == (0, 0)
