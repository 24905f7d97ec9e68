"""A processor with the picker beside it, and what a gateway says to them."""

from __future__ import annotations

import json
from typing import Any

import envoy_messages as envoy

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.picker import PickerConfig as Settings
from extproc.core.contract import LB_NAMESPACE
from extproc.core.fairqueue import QueueBounds
from extproc.core.meter import Meters
from extproc.core.outcome import Outcome
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.wire.picker import Picker
from extproc.wire.picker.codec import CHUNK_BYTES_MAX, FULL_DUPLEX
from extproc.wire.picker.exchange import PickerExchange
from extproc.wire.responder import Reply
from tests.stand.schedulers import make_pool, make_processor, make_scheduler

KEY = ("authorization", "Bearer key")
PATH = "/v1/chat/completions"
CHAT = json.dumps({"model": "m", "messages": [{"content": "grüß dich"}], "max_tokens": 5}).encode()
A, B, OTHER = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
BODY_BYTES_MAX = 300_000
SECOND = 1_000_000_000


class World:
    """A processor, the picker beside it, and what came out of them; `now_ns` is the clock."""

    def __init__(
        self, *, required: bool = True, limit: int = 4, strategy: str = "least_work", **settings: Any
    ) -> None:
        self.now_ns = 5 * SECOND
        pools = [
            make_pool(A, B, permits=limit, models=("m", "big"), strategy=strategy),
            make_pool(OTHER, name="q", models=("other",)),
        ]
        self.scheduler = make_scheduler(
            *pools,
            policy=Policy(
                classes=(ClassSpec(name="premium"), ClassSpec(name="standard")),
                bounds=QueueBounds(class_held_max=(100, 100)),
            ),
        )
        self.processor = make_processor(
            self.scheduler,
            Directory([(Tenant(name="acme"), [hash_key("key")])], required=required),
            body_bytes_max=BODY_BYTES_MAX,
            clock=lambda: self.now_ns,
        )
        self.outcomes: list[Outcome] = []
        self.first_tokens: list[tuple[str, bool, str]] = []
        self.joined: list[tuple[str, tuple[str, ...]]] = []
        self.picker = Picker(
            self.processor,
            Settings(enabled=True, **settings),
            settle=self._settle,
            first_token=lambda *event: self.first_tokens.append(event),
            join=lambda *event: self.joined.append(event),
        )

    @property
    def meters(self) -> Meters:
        """What the pool has learned of its answers."""
        return self.scheduler.fleet.pools["p"].calibration.meters

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)

    def decide(
        self, *extra: tuple[str, str], data: bytes = CHAT, **about: Any
    ) -> tuple[PickerExchange, list[Any]]:
        """A request in one piece, decided: its exchange and the answers."""
        exchange = PickerExchange(self.picker)
        answers = said(exchange.receive(head(*extra, **about)))
        answers += said(exchange.receive(piece(data, end=True)))
        exchange.delivered()
        return exchange, answers


def head(
    *extra: tuple[str, str],
    end: bool = False,
    method: str = "POST",
    path: str = PATH,
    subset: Any = None,
    response: int = FULL_DUPLEX,
) -> bytes:
    """A request's headers as a gateway sends them."""
    message = pb.ProcessingRequest.FromString(envoy.headers(method, path, *(extra or (KEY,)), end=end))
    message.protocol_config.request_body_mode = FULL_DUPLEX  # type: ignore[assignment]  # the enum's number
    message.protocol_config.response_body_mode = response  # type: ignore[assignment]  # the same
    if subset is not None:
        hint = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        hint.update({"x-gateway-destination-endpoint-subset": subset})
    data: bytes = message.SerializeToString()
    return data


def piece(data: bytes, *, end: bool = False, phase: str = "request_body") -> bytes:
    """A piece of a body."""
    message = pb.ProcessingRequest()
    getattr(message, phase).body = data
    getattr(message, phase).end_of_stream = end
    return message.SerializeToString()


def response_head(
    *headers: tuple[str, str], end: bool = False, served: str = "", upstream: str = ""
) -> bytes:
    """A response's headers."""
    message = pb.ProcessingRequest()
    message.response_headers.end_of_stream = end
    for key, value in headers or ((":status", "200"),):
        header = message.response_headers.headers.headers.add()
        header.key, header.raw_value = key, value.encode()
    if served:
        message.metadata_context.filter_metadata[LB_NAMESPACE].update(
            {"x-gateway-destination-endpoint-served": served}
        )
    if upstream:
        message.attributes["envoy.filters.http.ext_proc"].update({"upstream.address": upstream})
    return message.SerializeToString()


STREAM = ((":status", "200"), ("content-type", "text/event-stream"))


def said(reply: Reply) -> list[Any]:
    """What goes out with a reply."""
    return [envoy.response(data) for data in (reply.data, *reply.more) if data]


def body_of(answers: list[Any], phase: str = "request_body") -> bytes:
    """The body that goes on; asserts that its last piece alone ends it."""
    pieces = [
        getattr(a, phase).response.body_mutation.streamed_response for a in answers if a.HasField(phase)
    ]
    assert [each.end_of_stream for each in pieces[:-1]] == [False] * (len(pieces) - 1)
    assert all(len(each.body) <= CHUNK_BYTES_MAX for each in pieces)
    return b"".join(each.body for each in pieces)


def refused(reply: Reply) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of a refusal."""
    assert reply.end
    (answer,) = said(reply)
    out = answer.immediate_response
    return out.status.code, json.loads(out.body), envoy.mutated(out.headers)
