"""The picker's decisions: bodies in pieces, the answer to the headers, what is refused."""

from __future__ import annotations

import json
from typing import Any

import envoy_messages as envoy
import pytest
from google.protobuf.message import DecodeError
from picker_world import (
    BODY_BYTES_MAX,
    CHAT,
    KEY,
    OTHER,
    PATH,
    A,
    B,
    World,
    body_of,
    head,
    piece,
    refused,
    said,
)

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.picker import PickerConfig as Settings
from extproc.core.contract import DECISION_NAMESPACE, LB_ENDPOINTS_KEY, LB_NAMESPACE
from extproc.core.families import Family
from extproc.core.spill.values import SpillAllowance, SpillRule
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.wire import ticket
from extproc.wire.picker.codec import CHUNK_BYTES_MAX
from extproc.wire.picker.exchange import PickerExchange
from tests.stand.seals import SEAL


def test_a_list_for_a_gateway_that_tries_by_itself() -> None:
    """Named again until its tries, with five further looks each, end on it; in header and metadata alike."""
    world = World()
    world.picker.settings = Settings(enabled=True, tries=3)
    _, (first, *_) = world.decide(KEY)
    mutated = envoy.mutated(first.request_headers.response.header_mutation)
    assert mutated[LB_ENDPOINTS_KEY].split(",") == [A, B] * 6 + [A]
    assert mutated["x-envoy-max-retries"] == "1"
    assert envoy.metadata(first, LB_NAMESPACE) == {LB_ENDPOINTS_KEY: mutated[LB_ENDPOINTS_KEY]}


def test_which_streams_speak_it() -> None:
    """Those that say so; those that say nothing only where that is assumed; none where it is off."""
    silent, duplex = envoy.headers("POST", PATH), head()
    buffered = pb.ProcessingRequest.FromString(head())
    buffered.protocol_config.request_body_mode = pb.ProtocolConfiguration.BUFFERED
    world = World()
    speaks = world.picker.speaks
    assert [speaks(duplex), speaks(silent), speaks(buffered.SerializeToString())] == [True, False, False]
    world.picker.settings = Settings(enabled=True, assume=True)
    assert [speaks(duplex), speaks(silent), speaks(buffered.SerializeToString())] == [True, True, False]
    world.picker.settings = Settings(assume=True)
    assert [speaks(duplex), speaks(silent)] == [False, False]
    world.picker.settings = Settings(enabled=True)
    with pytest.raises(DecodeError):
        speaks(b"\xff\xff\xff")


def test_a_decision() -> None:
    """Headers, then the body: the same list in header and metadata, the ticket, the keys taken away."""
    world = World()
    exchange, (first, *rest) = world.decide(KEY, ("content-type", "application/json"))
    common = first.request_headers.response
    assert envoy.mutated(common.header_mutation) == {
        LB_ENDPOINTS_KEY: f"{A},{B}",
        "content-length": str(len(CHAT)),
        "x-envoy-max-retries": "1",
    }
    assert list(common.header_mutation.remove_headers) == [
        "x-gateway-destination-endpoint-subset",
        "x-gateway-destination-endpoint-served",
        "accept-encoding",
        "authorization",
        "x-api-key",
    ]
    assert not common.clear_route_cache
    assert envoy.metadata(first, LB_NAMESPACE) == {LB_ENDPOINTS_KEY: f"{A},{B}"}
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert reservation.id in world.scheduler.ledger
    assert body_of(rest) == CHAT
    assert rest[-1].request_body.response.body_mutation.streamed_response.end_of_stream
    assert (world.picker.bodies_bytes, world.processor.deciding) == (0, 0)
    exchange.close()


def test_what_goes_to_another_pool_is_not_tried_at_home() -> None:
    """No filter of ours gives it its model's own name again: the list is the other pool's alone."""
    world = World(limit=1)
    allowed = Tenant(name="acme", spill=SpillAllowance())
    world.processor.directory = Directory([(allowed, [hash_key("key")])], required=True)
    names = {"m": "other", "big": "other"}
    world.scheduler.settings.spills = {
        "p": SpillRule(pool="p", to="q", models=names, wait_ms=100.0, returns=True)
    }
    lists = []
    for _ in range(3):
        _, (first, *rest) = world.decide()
        lists.append(envoy.metadata(first, LB_NAMESPACE)[LB_ENDPOINTS_KEY])
    assert lists[-1] == OTHER
    assert json.loads(body_of(rest))["model"] == "other"
    assert OTHER not in "".join(lists[:-1])


def test_a_body_of_json_that_declares_no_type_goes_on_as_json() -> None:
    """As through our own Envoy; a request without a body declares nothing."""
    world = World()
    _, (first, *_) = world.decide(KEY, ("content-type", "application/x-www-form-urlencoded"))
    assert envoy.mutated(first.request_headers.response.header_mutation)["content-type"] == "application/json"
    (bare,) = said(PickerExchange(world.picker).receive(head(KEY, method="GET", path="/info", end=True)))
    assert "content-type" not in envoy.mutated(bare.request_headers.response.header_mutation)


def test_nothing_is_said_before_the_body_is_whole() -> None:
    """The destination is in the answer to the headers, so that it waits for the body; one byte a piece."""
    world = World()
    exchange = PickerExchange(world.picker)
    assert said(exchange.receive(head())) == []
    for i in range(len(CHAT) - 1):
        assert said(exchange.receive(piece(CHAT[i : i + 1]))) == []
    assert world.picker.bodies_bytes == len(CHAT) - 1
    answers = said(exchange.receive(piece(CHAT[-1:], end=True)))
    assert answers[0].HasField("request_headers")
    assert body_of(answers[1:]) == CHAT


def test_an_end_without_a_piece_of_its_own() -> None:
    """The last message of a body may be empty."""
    world = World()
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    assert said(exchange.receive(piece(CHAT))) == []
    assert body_of(said(exchange.receive(piece(b"", end=True)))[1:]) == CHAT


def test_trailers_end_a_body_too() -> None:
    """No piece ends the body then, no length is set, and the trailers are answered after it."""
    world = World()
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    exchange.receive(piece(CHAT))
    first, *middle, last = said(exchange.receive(envoy.phase("request_trailers")))
    assert "content-length" not in envoy.mutated(first.request_headers.response.header_mutation)
    assert body_of(middle) == CHAT
    assert not any(a.request_body.response.body_mutation.streamed_response.end_of_stream for a in middle)
    assert last.HasField("request_trailers")


def test_no_body_follows() -> None:
    """The headers alone are answered; what is missing its body is refused."""
    world = World()
    (answer,) = said(PickerExchange(world.picker).receive(head(method="GET", path="/info", end=True)))
    assert LB_ENDPOINTS_KEY in envoy.mutated(answer.request_headers.response.header_mutation)
    assert refused(PickerExchange(world.picker).receive(head(end=True)))[0] == 400
    listed = refused(PickerExchange(world.picker).receive(head(method="GET", path="/v1/models", end=True)))
    assert listed[0] == 200
    assert [each["id"] for each in listed[1]["data"]] == ["big", "m", "other"]


def test_a_large_body_goes_on_in_pieces() -> None:
    """To the byte, and none longer than the bound."""
    data = json.dumps({"model": "m", "messages": [{"content": "ü" * 60_000}]}, ensure_ascii=False).encode()
    _, answers = World().decide(data=data)
    assert len(answers) == 1 + -(-len(data) // CHUNK_BYTES_MAX)
    assert body_of(answers[1:]) == data


def test_a_body_over_the_bound_is_refused_at_once() -> None:
    """413 with the piece that is too much, or by its length alone; nothing stays in memory."""
    world = World()
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    assert said(exchange.receive(piece(b"x" * BODY_BYTES_MAX))) == []
    status, body, _ = refused(exchange.receive(piece(b"x")))
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    assert world.picker.bodies_bytes == 0
    announced = head(KEY, ("content-length", str(BODY_BYTES_MAX + 1)))
    assert refused(PickerExchange(world.picker).receive(announced))[0] == 413


def test_bodies_together_are_bounded() -> None:
    """The one that would be too much is refused with 429; one that leaves makes room."""
    world = World(bodies_bytes_max=1_024)
    first, second = PickerExchange(world.picker), PickerExchange(world.picker)
    for exchange in (first, second):
        exchange.receive(head())
    first.receive(piece(b"x" * 1_000))
    status, _, headers = refused(second.receive(piece(b"x" * 100)))
    assert (status, headers["x-llm-d-request-dropped-reason"]) == (429, "rejected-saturated")
    assert world.scheduler.counts["bound.picker_bodies_bytes_max"] == 1
    first.close()
    assert world.picker.bodies_bytes == 0


def test_a_familys_body_gets_its_models_name_and_length() -> None:
    """The body that goes on is the renamed one."""
    world = World()
    world.scheduler.settings.families = {"auto": Family(name="auto", models=("m", "big"), thresholds=(0.5,))}
    data = json.dumps({"model": "auto", "messages": [{"content": "hello"}]}).encode()
    _, (first, *rest) = world.decide(data=data)
    body = body_of(rest)
    assert json.loads(body)["model"] in ("m", "big")
    assert envoy.mutated(first.request_headers.response.header_mutation)["content-length"] == str(len(body))


def test_a_fault_of_ours_still_decides() -> None:
    """With less where that works, else 503: no stream ends without a word."""
    world = World(strategy="least_work")

    class Broken:
        name = "broken"

        def rank(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("a fault of ours")

    world.scheduler.fleet.pools["p"]._strategies["least_work"] = Broken()  # type: ignore[assignment]  # broken on purpose
    _, (first, *rest) = world.decide()
    assert "degraded" in envoy.metadata(first, DECISION_NAMESPACE)["reason"]
    assert body_of(rest) == CHAT
    world.scheduler.admit = None  # type: ignore[assignment, method-assign]  # nothing can decide
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    assert refused(exchange.receive(piece(CHAT, end=True)))[0] == 503


def test_phases_out_of_order() -> None:
    """A second body, or a response that nobody asked about, passes."""
    world = World()
    exchange, _ = world.decide()
    assert said(exchange.receive(piece(b"x")))[0].HasField("request_body")
    early = PickerExchange(world.picker)
    assert body_of(said(early.receive(piece(b"y", end=True, phase="response_body"))), "response_body") == b"y"
    with pytest.raises(DecodeError):
        early.receive(b"")
