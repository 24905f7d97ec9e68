"""What fails, comes twice or comes out of turn in a stream is answered, and gives back what it took."""

import logging
from typing import Any

import envoy_messages as envoy
import pytest
from google.protobuf.message import DecodeError

from extproc.core.contract import DECISION_NAMESPACE, LB_NAMESPACE
from extproc.core.strategies import STRATEGIES, Strategy
from extproc.observe.stats import Stats
from extproc.observe.what_if import Recent
from extproc.wire import codec
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from extproc.wire.states import BODY
from tests.wire.test_processor import CHAT, KEY, ask, processor_of, refused


class Broken(Strategy):
    """A policy that fails."""

    name = "broken"

    def rank(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")


PHASES = ["response_headers", "response_body", "request_trailers", "response_trailers", "request_body"]


@pytest.mark.parametrize("kind", PHASES)
def test_an_unexpected_phase_passes(kind: str) -> None:
    """Before the headers, between headers and body, and after the decision: answered in kind, unchanged."""
    processor = processor_of()
    exchange = Exchange(processor)
    stages = [envoy.headers("POST", "/generate", KEY), envoy.body(b'{"inputs":"a"}'), None]
    for stage in stages:
        if not (kind == "request_body" and exchange._state is BODY):
            reply = exchange.receive(envoy.phase(kind))
            assert (reply.data, reply.end) == (codec.CONTINUE[kind], False)
            assert envoy.response(reply.data).WhichOneof("response") == kind
        if stage is not None:
            exchange.receive(stage)
    assert processor.scheduler.counts["phase.unexpected"] == (2 if kind == "request_body" else 3)
    assert processor.scheduler.counts["routed"] == 1


def test_headers_twice() -> None:
    """The second pass as unexpected; the body is still decided on."""
    exchange = Exchange(processor_of())
    exchange.receive(envoy.headers("POST", "/v1/chat/completions", KEY))
    reply = exchange.receive(envoy.headers("GET", "/health"))
    assert (reply.data, reply.end) == (codec.CONTINUE["request_headers"], False)
    assert envoy.response(exchange.receive(envoy.body(CHAT)).data).HasField("request_body")


def test_garbage() -> None:
    """What is no message is an error of who sent it."""
    with pytest.raises(DecodeError):
        Exchange(processor_of()).receive(b"\xff\xff\xff")


def test_a_failing_strategy(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The decision is made by least in flight, says so, and is counted; the log is not flooded."""
    monkeypatch.setitem(STRATEGIES, "random", Broken())
    processor = processor_of(strategy="random")
    processor.scheduler.fleet.endpoints[0].requests = 1
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            answer = ask(Exchange(processor))
            about = envoy.metadata(answer, DECISION_NAMESPACE)
            assert about["reason"].endswith("degraded: internal error")
            assert envoy.metadata(answer, LB_NAMESPACE)["x-gateway-destination-endpoint"]
    assert (
        processor.scheduler.counts["routed.degraded"] == processor.scheduler.counts["exception.decision"] == 3
    )
    assert len(processor.scheduler.ledger) == 3
    assert len(caplog.records) == 1


def broken_twice(monkeypatch: pytest.MonkeyPatch) -> Processor:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("extproc.core.resolving.resolve", broken)
    return processor_of()


def test_failing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal: quota, queue and regions hang on a decision, so nobody else may make one."""
    processor = broken_twice(monkeypatch)
    answer = ask(Exchange(processor)).immediate_response
    assert (answer.status.code, answer.details) == (503, "steersman_internal")
    assert processor.scheduler.counts["exception.degraded decision"] == 1
    assert len(processor.scheduler.ledger) == 0


def test_a_failure_after_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reserved for a decision that could not be told is released."""

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("extproc.wire.codec.routed", broken)
    processor = processor_of()
    assert ask(Exchange(processor)).immediate_response.status.code == 503
    assert len(processor.scheduler.ledger) == 0


def test_an_observers_fault_touches_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is in the books by then: it goes on, the others hear of it, and the fault is counted."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Recent, "placed", broken)
    processor, stats = processor_of(), Stats()
    processor.scheduler.events.observers = (Recent(), stats)
    exchange = Exchange(processor)
    assert not ask(exchange).HasField("immediate_response")
    assert stats.tenants["acme"].decided == 1
    assert processor.scheduler.counts["exception.telling Recent"] == 1
    exchange.close()
    assert len(processor.scheduler.ledger) == 0


@pytest.mark.parametrize("where", ["identify", "scheduler.turned_away", "took"])
def test_whatever_fails_is_answered(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that left the stream would open failure_mode: 503 instead, and nothing is kept."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    processor = processor_of()
    owner = processor.scheduler if where.startswith("scheduler.") else processor
    monkeypatch.setattr(owner, where.removeprefix("scheduler."), broken)
    for data in (CHAT, b"{"):
        exchange = Exchange(processor)
        reply = exchange.receive(envoy.headers("POST", "/v1/chat/completions", KEY))
        if not reply.end:
            reply = exchange.receive(envoy.body(data))
        assert reply.end
        if where != "scheduler.turned_away" or data != CHAT:
            assert envoy.response(reply.data).immediate_response.status.code in (400, 503)
        exchange.close()
    assert processor.open_exchanges == 0
    assert sum(n for name, n in processor.scheduler.counts.items() if name.startswith("exception.")) >= 1


def test_a_store_that_cannot_be_asked_refuses() -> None:
    """Nobody said that the quota allows the request."""
    processor = processor_of()
    exchange = Exchange(processor)
    exchange.receive(envoy.headers("POST", "/v1/chat/completions", KEY))
    reply = exchange.unanswered(ConnectionError("gone"))
    assert (reply.end, envoy.response(reply.data).immediate_response.status.code) == (True, 503)


def test_a_failure_on_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is unknown then, so nobody is let in: 503."""
    processor = processor_of()
    monkeypatch.setattr(processor.directory, "identify", None)
    status, _, headers, details = refused(
        Exchange(processor).receive(envoy.headers("POST", "/generate", KEY))
    )
    assert (status, headers["retry-after"], details) == (503, "1", "steersman_internal")
    assert processor.scheduler.counts["exception.screening"] == 1


@pytest.mark.parametrize("delivered", [False, True])
def test_a_stream_that_ends_around_the_delivery(delivered: bool) -> None:
    """Before it the reservation is undone; after it the access log settles."""
    processor = processor_of()
    exchange = Exchange(processor)
    ask(exchange)
    if delivered:
        exchange.delivered()
    exchange.close()
    assert len(processor.scheduler.ledger) == (1 if delivered else 0)
    assert processor.scheduler.counts["cancelled"] == (0 if delivered else 1)
    assert processor.open_exchanges == 0


@pytest.mark.parametrize("messages", [0, 1])
def test_a_stream_that_ends_early(messages: int) -> None:
    """Before or after the headers: nothing was reserved, nothing is left."""
    processor = processor_of()
    exchange = Exchange(processor)
    for data in [envoy.headers("POST", "/generate", KEY)][:messages]:
        exchange.receive(data)
    exchange.close()
    assert (processor.open_exchanges, len(processor.scheduler.ledger)) == (0, 0)
    assert processor.scheduler.counts["cancelled"] == 0
