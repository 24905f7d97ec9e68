"""Responses that pass by the picker: first tokens, counts, ends."""

from __future__ import annotations

import json
from typing import Any

import envoy_messages as envoy
import pytest
from picker_world import CHAT, SECOND, STREAM, A, B, World, body_of, head, piece, response_head, said

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.contract import DECISION_NAMESPACE
from extproc.core.meter import metered
from extproc.core.outcome import Counted, End, Outcome
from extproc.wire import ticket
from extproc.wire.picker.codec import NO_BODY
from extproc.wire.picker.exchange import PickerExchange
from tests.stand.schedulers import step
from tests.stand.seals import SEAL


def test_the_stream_ends_with_the_decision_where_the_access_log_settles() -> None:
    """Nothing is followed, the reservation stays for the record."""
    world = World(settle="access_log")
    exchange = PickerExchange(world.picker)
    exchange.receive(head(response=NO_BODY))
    assert exchange.receive(piece(CHAT, end=True)).end
    exchange.delivered()
    exchange.close()
    assert (len(world.scheduler.ledger), world.outcomes, world.picker.following) == (1, [], set())
    assert world.picker.bodies_bytes == 0


def test_a_stream_with_response_bodies_stays_to_pass_them_on() -> None:
    """Though the access log settles: a piece that is under way when the stream ends would be lost."""
    world = World(settle="access_log")
    exchange, answers = world.decide()
    assert (len(answers), world.processor.deciding) == (2, 0)
    assert not exchange.receive(response_head()).end
    reply = exchange.receive(piece(b"{}", end=True, phase="response_body"))
    assert (body_of(said(reply), "response_body"), reply.end) == (b"{}", True)
    exchange.close()
    world.picker.step(now_ns=world.now_ns + SECOND)
    assert (len(world.scheduler.ledger), world.outcomes, world.picker.following) == (1, [], set())
    assert (world.processor.following, world.scheduler.counts["picker.passed_on"]) == (0, 1)


def test_a_response_that_comes_whole() -> None:
    """It goes back as it came, and settles: status, tokens, who served."""
    world = World()
    exchange, _ = world.decide()
    world.now_ns += SECOND
    (answer,) = said(
        exchange.receive(response_head((":status", "200"), ("content-type", "application/json")))
    )
    assert answer.response_headers.HasField("response")
    data = b'{"choices":[{"message":{"content":"\\"completion_tokens\\": 999"}}],"usage":{"prompt_tokens":7,'
    last = b'"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}}'
    (answer,) = said(exchange.receive(piece(data, phase="response_body")))
    assert body_of([answer], "response_body") == data
    reply = exchange.receive(piece(last, end=True, phase="response_body"))
    assert reply.end
    assert body_of(said(reply), "response_body") == last
    exchange.close()
    (outcome,) = world.outcomes
    assert (outcome.end, outcome.status, outcome.served_by, outcome.attempts) == (End.OK, 200, A, 1)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.duration_ns) == (7, 3, SECOND)
    assert outcome.cached_tokens == 5
    assert (len(world.scheduler.ledger), world.processor.open_exchanges, world.processor.following) == (
        0,
        0,
        0,
    )


TURN_BODIES = {
    "/v1/messages": {"max_tokens": 99, "messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"max_output_tokens": 99, "input": "x"},
}


@pytest.mark.parametrize(
    ("path", "usage", "counts"),
    [
        ("/v1/messages", {"input_tokens": 7, "output_tokens": 33}, (7, 33, None)),
        (
            "/v1/messages",
            {"input_tokens": 7, "cache_read_input_tokens": 20, "output_tokens": 33},
            (27, 33, 20),
        ),
        (
            "/v1/responses",
            {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 33},
            (7, 33, 5),
        ),
    ],
)
def test_turns_are_counted_by_their_own_names(
    path: str, usage: dict[str, Any], counts: tuple[int | None, ...]
) -> None:
    """The engine's figures count, as they do behind our own Envoy."""
    world = World()
    exchange, _ = world.decide(data=json.dumps(TURN_BODIES[path]).encode(), path=path)
    exchange.receive(response_head((":status", "200"), ("content-type", "application/json")))
    exchange.receive(piece(json.dumps({"usage": usage}).encode(), end=True, phase="response_body"))
    (outcome,) = world.outcomes
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == counts


STARTED = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7,'
    b'"cache_read_input_tokens":20,"output_tokens":1}}}\n\n'
)
WORD = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":" word"}}\n\n'
SAID = b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":33}}\n\n'


@pytest.mark.parametrize(("words", "whole", "output"), [(9, True, 33), (9, False, 9), (900, True, 33)])
def test_a_stream_of_a_message(words: int, whole: bool, output: int) -> None:
    """Its prompt is said at the beginning, however long it is; what it says there of output is no count."""
    world = World()
    body = {**TURN_BODIES["/v1/messages"], "max_tokens": 2_000, "stream": True}
    exchange, _ = world.decide(data=json.dumps(body).encode(), path="/v1/messages")
    exchange.receive(response_head(*STREAM))
    for each in (STARTED, *[WORD] * words):
        exchange.receive(piece(each, phase="response_body"))
    if whole:
        exchange.receive(piece(SAID, end=True, phase="response_body"))
    exchange.close()
    outcome = metered(world.outcomes[-1], world.meters)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (27, output, 20)
    assert outcome.counted is (Counted.ENGINE if whole else Counted.ESTIMATED)


def test_a_stream_tells_of_its_first_token() -> None:
    """Once, at the first piece that is no comment; TGI's index counts where nothing else does."""
    world = World()
    data = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 9}}).encode()
    exchange, _ = world.decide(data=data, path="/generate_stream")
    exchange.receive(response_head(*STREAM))
    exchange.receive(piece(b": keep-alive\n\n", phase="response_body"))
    assert world.first_tokens == []
    world.now_ns += 300_000_000
    exchange.receive(piece(b'data:{"index":1,"token":{"text":"a"}}\n\n', phase="response_body"))
    exchange.receive(piece(b'data:{"index":2,"token":{"text":"b"}}\n\n', phase="response_body"))
    assert world.first_tokens == [("i-1", False, "")]
    exchange.receive(piece(b"", end=True, phase="response_body"))
    (outcome,) = world.outcomes
    assert (outcome.ttft_ns, outcome.output_tokens, outcome.end) == (300_000_000, 2, End.OK)


def test_a_refusal_inside_a_stream() -> None:
    """TGI's `overloaded` in a 200: the engine's refusal, and no token."""
    world = World()
    data = json.dumps({"inputs": "x"}).encode()
    exchange, _ = world.decide(data=data, path="/generate_stream")
    exchange.receive(response_head(*STREAM))
    line = b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    exchange.receive(piece(line, end=True, phase="response_body"))
    assert world.first_tokens == [("i-1", True, "")]
    (outcome,) = world.outcomes
    assert (outcome.end, outcome.refused, outcome.ttft_ns) == (End.REFUSED, True, None)


@pytest.mark.parametrize(
    ("status", "end"), [("200", End.ERROR), ("404", End.REFUSED), ("503", End.ERROR), ("x", End.ERROR)]
)
def test_how_a_response_without_a_body_ends(status: str, end: End) -> None:
    """By its status; a 200 without a byte is no answer to who asked for one."""
    world = World()
    exchange, _ = world.decide()
    assert exchange.receive(response_head((":status", status), end=True)).end
    assert [outcome.end for outcome in world.outcomes] == [end]


def test_who_served_is_told_at_once() -> None:
    """By metadata, or Envoy's attribute: the load goes along, and the first that was named is suspect."""
    for about in ({"served": B}, {"served": f"{A},{B}"}, {"upstream": B}):
        world = World()
        exchange, _ = world.decide()
        exchange.receive(response_head(**about))
        served = world.scheduler.fleet.endpoint("p", B)
        assert served is not None
        assert world.scheduler.ledger.endpoint_of("i-1") is served
        exchange.receive(piece(b"{}", end=True, phase="response_body"))
        outcome = world.outcomes[-1]
        assert (outcome.served_by, outcome.attempts) == (B, 2)
        first = world.scheduler.fleet.endpoint("p", A)
        assert first is not None
        assert first.suspect_until_ns > world.now_ns


def test_trailers_end_a_response() -> None:
    """As the body's end does."""
    world = World()
    exchange, _ = world.decide()
    exchange.receive(response_head())
    exchange.receive(piece(b"{}", phase="response_body"))
    reply = exchange.receive(envoy.phase("response_trailers"))
    assert reply.end
    assert said(reply)[0].HasField("response_trailers")
    assert [outcome.end for outcome in world.outcomes] == [End.OK]


def test_a_response_that_is_cut_is_a_client_that_left() -> None:
    """What came until then counts; without a word the end is the same."""
    world = World()
    data = json.dumps({"inputs": "x"}).encode()
    exchange, _ = world.decide(data=data, path="/generate_stream")
    exchange.receive(response_head(*STREAM))
    exchange.receive(piece(b'data:{"index":5,"token":{}}\n\n', phase="response_body"))
    exchange.close()
    (outcome,) = world.outcomes
    assert (outcome.end, outcome.output_tokens) == (End.CLIENT_GONE, 5)
    silent, _ = world.decide()
    silent.close()
    assert world.outcomes[-1].end is End.CLIENT_GONE
    assert (len(world.scheduler.ledger), world.processor.following) == (0, 0)


TOKEN = b'data: {"choices":[{"delta":{"content":" word"},"finish_reason":null}]}\n\n'
LONG = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 99}).encode()
DEAD = b'data: {"error":{"message":"EngineCore is dead","code":500}}\n\n'


def test_an_openai_stream_that_is_left_is_charged_its_events() -> None:
    """Counted as the pieces pass; said while it runs as well."""
    world = World()
    exchange, _ = world.decide(data=LONG)
    exchange.receive(response_head(*STREAM))
    for _ in range(9):
        exchange.receive(piece(TOKEN[:30], phase="response_body"))
        exchange.receive(piece(TOKEN[30:] + TOKEN, phase="response_body"))
    world.picker.step(now_ns=world.now_ns + SECOND)
    exchange.close()
    *_, running, last = (metered(outcome, world.meters) for outcome in world.outcomes)
    assert (running.final, running.output_tokens) == (False, 18)
    assert (last.end, last.output_tokens, last.counted) == (End.CLIENT_GONE, 18, Counted.ESTIMATED)


@pytest.mark.parametrize(("tokens", "charged"), [(0, None), (7, 7)])
def test_an_error_inside_a_200_is_an_error(tokens: int, charged: int | None) -> None:
    """Of the engine; it is no first token, and what came before it was produced."""
    world = World()
    exchange, _ = world.decide(data=LONG)
    exchange.receive(response_head(*STREAM))
    for each in (*[TOKEN] * tokens, DEAD):
        exchange.receive(piece(each, phase="response_body"))
    exchange.receive(piece(b"data: [DONE]\n\n", end=True, phase="response_body"))
    outcome = metered(world.outcomes[-1], world.meters)
    assert (outcome.end, outcome.refused, outcome.output_tokens) == (End.ERROR, False, charged)
    # It may be the request's own; a second tenant's would be the replica's (core/blame.py).
    assert outcome.error_said
    assert world.first_tokens == ([("i-1", False, "")] if tokens else [])


def test_a_client_that_has_all_may_close_before_the_end_is_said() -> None:
    """By the answer's length, and by the last event of OpenAI's streams; a byte less was cut."""
    for headers, data, end in (
        ((("content-length", "4"),), b"1234", End.OK),
        ((("content-length", "4"),), b"123", End.CLIENT_GONE),
        ((STREAM[1],), b"data: {}\n\ndata: [DONE]\n\n", End.OK),
        ((STREAM[1],), b"data: {}\n\n", End.CLIENT_GONE),
    ):
        world = World()
        exchange, _ = world.decide()
        exchange.receive(response_head((":status", "200"), *headers))
        exchange.receive(piece(data, phase="response_body"))
        exchange.close()
        assert [outcome.end for outcome in world.outcomes] == [end]


def test_the_access_log_and_the_stream_settle_once() -> None:
    """Whichever comes second changes nothing."""
    world = World()
    exchange, (first, *_) = world.decide()
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert world.scheduler.settlement.settle(
        Outcome(reservation=reservation, final=True, status=200), now_ns=world.now_ns
    )
    exchange.receive(response_head(end=True))
    assert world.scheduler.counts["settled.ok"] == 1
    assert world.scheduler.counts["settled.duplicate"] == 1


def test_response_bodies_that_do_not_come() -> None:
    """An answer that is no stream ends with its headers; a stream's end stays unseen and is said so."""
    world = World()
    exchange, _ = world.decide(response=NO_BODY)
    exchange.receive(response_head((":status", "200"), ("content-type", "application/json")))
    assert [outcome.end for outcome in world.outcomes] == [End.OK]
    exchange.sent_all()
    exchange.close()
    stream, _ = world.decide(response=NO_BODY)
    stream.receive(response_head(*STREAM))
    stream.sent_all()
    stream.close()
    assert (len(world.outcomes), len(world.scheduler.ledger)) == (1, 1)
    assert world.scheduler.counts["picker.unseen"] == 1
    assert (world.processor.open_exchanges, world.processor.following) == (0, 0)


def test_response_bodies_of_another_mode_go_on_unchanged() -> None:
    """STREAMED and BUFFERED want no piece in their answers."""
    world = World()
    exchange, _ = world.decide(response=pb.ProtocolConfiguration.STREAMED)
    exchange.receive(response_head())
    (answer,) = said(exchange.receive(piece(b"{}", end=True, phase="response_body")))
    assert not answer.response_body.response.HasField("body_mutation")
    assert [outcome.end for outcome in world.outcomes] == [End.OK]


def test_what_runs_lives_on() -> None:
    """Each second its reservation is renewed, whatever its time to live."""
    world = World()
    exchange, _ = world.decide()
    for _ in range(100):
        world.now_ns += SECOND
        world.picker.step(now_ns=world.now_ns)
        world.picker.step(now_ns=world.now_ns)
    assert len(world.outcomes) == 100
    assert step(world.scheduler, now_ns=world.now_ns) == []
    exchange.close()
    world.picker.step(now_ns=world.now_ns + SECOND)
    assert len(world.outcomes) == 101


def test_followed_responses_are_no_decisions_under_way() -> None:
    """However many stream, the bound on concurrent decisions does not count them."""
    world = World(limit=64)
    for _ in range(20):
        world.decide()
    assert (world.processor.open_exchanges, world.processor.deciding) == (20, 0)
    assert len(world.decide()[1]) == 2


def test_a_response_that_cannot_be_read_goes_on() -> None:
    """A fault of ours must not cost a client its answer."""
    world = World()
    exchange, _ = world.decide()
    world.picker.settle = lambda _: 1 / 0
    exchange.receive(response_head(served=A))
    reply = exchange.receive(piece(b"data", end=True, phase="response_body"))
    assert body_of(said(reply), "response_body") == b"data"
    assert world.scheduler.counts["exception.response"] == 1
    assert world.scheduler.counts["exception.settling"] == 1
