"""Held requests whose placing fails, and those of an exchange that is told, left or cannot be told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.outcome import Reject, Reservation, Routed
from extproc.core.scheduler import Policy
from extproc.core.strategies import STRATEGIES, Strategy
from extproc.core.tenant import Directory
from extproc.wire.exchange import Exchange
from extproc.wire.responder import Reply
from tests.stand.holding import ACME, CHAT, GLOBEX, S, Scene
from tests.stand.schedulers import make_processor


class Broken(Strategy):
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
    assert (scene.concurrent, len(scene.scheduler.dispatcher.queue), len(scene.scheduler.ledger)) == (0, 0, 0)


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
    monkeypatch.setattr("extproc.core.placement.FALLBACK", STRATEGIES[broken])
    scene = Scene()
    first = scene.routed()
    holds = [scene.held(), scene.held(GLOBEX)]
    scene.scheduler.fleet.pools["p"].strategy = broken
    scene.ends(first)
    assert [id_ for id_, _ in scene.released] == [hold.id for hold in holds]
    assert all(isinstance(each, Reject) and each.status == 503 for _, each in scene.released)
    assert (scene.concurrent, len(scene.scheduler.dispatcher.queue), len(scene.scheduler.ledger)) == (0, 0, 0)
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
    assert (len(talk.scene.scheduler.dispatcher.queue), talk.scene.concurrent) == (0, 1)
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
    assert (len(talk.scene.scheduler.dispatcher.queue), talk.processor.deciding, talk.scene.concurrent) == (
        0,
        1,
        1,
    )
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
