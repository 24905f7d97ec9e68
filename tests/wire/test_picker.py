from __future__ import annotations

import json
from typing import Any

import envoy_messages as envoy
import pytest
from google.protobuf.message import DecodeError

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.picker import PickerConfig as Settings
from extproc.core.contract import DECISION_NAMESPACE, LB_ENDPOINTS_KEY, LB_NAMESPACE
from extproc.core.fairqueue import QueueBounds
from extproc.core.families import Family
from extproc.core.outcome import Counted, End, Outcome
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.wire import ticket
from extproc.wire.picker import Picker
from extproc.wire.picker.codec import CHUNK_BYTES_MAX, FULL_DUPLEX, NO_BODY, address_of
from extproc.wire.picker.exchange import SLO_MS_MAX, PickerExchange
from extproc.wire.responder import Reply
from tests.stand.schedulers import make_pool, make_processor, make_scheduler
from tests.stand.seals import SEAL

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
        self.first_tokens: list[tuple[str, bool]] = []
        self.joined: list[tuple[str, tuple[str, ...]]] = []
        self.picker = Picker(
            self.processor,
            Settings(enabled=True, **settings),
            settle=self._settle,
            first_token=lambda *event: self.first_tokens.append(event),
            join=lambda *event: self.joined.append(event),
        )

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.scheduler.settle(outcome, now_ns=self.now_ns)

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
    world.scheduler.families = {"auto": Family(name="auto", models=("m", "big"), thresholds=(0.5,))}
    data = json.dumps({"model": "auto", "messages": [{"content": "hello"}]}).encode()
    _, (first, *rest) = world.decide(data=data)
    body = body_of(rest)
    assert json.loads(body)["model"] in ("m", "big")
    assert envoy.mutated(first.request_headers.response.header_mutation)["content-length"] == str(len(body))


@pytest.mark.parametrize(
    "subset",
    [[B, "9.9.9.9:1"], f"{B},9.9.9.9:1", f" {B} , nonsense", ["10.0.0.2"], "10.0.0.2", [OTHER, B, B]],
)
def test_the_choice_is_of_the_subset(subset: Any) -> None:
    """A list or a text, with ports or without; endpoints of other pools do not count."""
    _, (first, *_) = World().decide(subset=subset)
    assert envoy.metadata(first, LB_NAMESPACE) == {LB_ENDPOINTS_KEY: B}


@pytest.mark.parametrize("subset", [[], "", ["9.9.9.9:1"], ["nonsense"], [OTHER], "9.9.9.9"])
def test_a_subset_without_anybody_is_503(subset: Any) -> None:
    """Present and empty is not absent."""
    exchange = PickerExchange(World().picker)
    exchange.receive(head(subset=subset))
    status, body, headers = refused(exchange.receive(piece(CHAT, end=True)))
    assert (status, body["error"]["code"]) == (503, "no_ready_endpoint")
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoint"
    assert "retry-after" in headers


def test_a_clients_own_hint_is_none() -> None:
    """Only the metadata counts; the header is removed."""
    _, (first, *_) = World().decide(KEY, ("x-gateway-destination-endpoint-subset", "9.9.9.9:1"))
    assert A in envoy.metadata(first, LB_NAMESPACE)[LB_ENDPOINTS_KEY]


def test_strangers_of_the_subset_join_only_where_they_may() -> None:
    """They are told with the request's model and tenant, and only what names a port."""
    world = World(discover=True)
    world.decide(subset=[B, "9.9.9.9:1", "10.0.0.2"])
    assert world.joined == [("m", "acme", (B, "9.9.9.9:1"))]
    closed = World()
    closed.decide(subset=[B, "9.9.9.9:1"])
    assert closed.joined == []


def test_addresses_have_one_spelling() -> None:
    """As the configuration's; what is none is empty."""
    assert address_of("[0:0::1]:080") == "[::1]:80"
    assert address_of("fe80::1") == "[fe80::1]"
    assert [address_of(name) for name in ("", "host:80", "10.0.0.1:0", "1.2.3", "::1:")] == [""] * 5


def test_headers_of_a_trusted_gateway() -> None:
    """Tenant, class and targets; bounded, and nonsense is none."""
    world = World(required=False, trust_headers=True, objectives={"chat": "premium"})
    about = [
        ("x-llm-d-inference-fairness-id", "acme"),
        ("x-llm-d-inference-objective", "chat"),
        ("x-llm-d-slo-ttft-ms", "250"),
        ("x-llm-d-slo-tpot-ms", "99999999999999999999"),
    ]
    exchange, (first, *_) = world.decide(*about)
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert (reservation.tenant, reservation.service_class) == ("acme", "premium")
    entry = world.scheduler.ledger.get(reservation.id)
    assert entry is not None
    assert entry.job.plan.tpot_target_ms == 100
    exchange.close()
    _, (first, *_) = world.decide(
        ("x-llm-d-inference-fairness-id", "nobody"),
        ("x-llm-d-inference-objective", "unknown"),
        ("x-llm-d-slo-ttft-ms", "-1"),
        ("x-llm-d-slo-tpot-ms", str(SLO_MS_MAX + 1)),
    )
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert (reservation.tenant, reservation.service_class) == ("anonymous", "standard")
    entry = world.scheduler.ledger.get(reservation.id)
    assert entry is not None
    assert entry.job.plan.tpot_target_ms == SLO_MS_MAX
    twice = [("x-llm-d-inference-fairness-id", "acme")] * 2
    assert refused(PickerExchange(world.picker).receive(head(*twice)))[0] == 400


def test_headers_of_anybody_else_are_not_read() -> None:
    """Law 7: without the configuration's word a client's class and tenant are nothing."""
    for world in (World(required=False), World(trust_headers=True)):
        extra = (KEY,) if world.processor.directory.required else ()
        name = "acme" if extra else "anonymous"
        _, (first, *_) = world.decide(*extra, ("x-llm-d-inference-fairness-id", "globex"))
        reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
        assert reservation is not None
        assert (reservation.tenant, reservation.service_class) == (name, "standard")


def test_its_keys_are_the_engines_where_they_are_not_ours() -> None:
    """With `auth: none` the Authorization header goes on."""
    _, (first, *_) = World(required=False).decide(KEY)
    assert "authorization" not in first.request_headers.response.header_mutation.remove_headers


def test_the_route_is_chosen_again_where_wanted() -> None:
    """By the configuration's word alone."""
    _, (first, *_) = World(clear_route_cache=True).decide()
    assert first.request_headers.response.clear_route_cache


def test_a_held_request_is_answered_whole_when_it_is_released() -> None:
    """Nothing goes out while it waits; then headers and body."""
    world = World(limit=1)
    running = [world.decide()[0], world.decide()[0]]
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    reply = exchange.receive(piece(CHAT, end=True))
    assert reply.wait
    assert said(reply) == []
    assert world.picker.bodies_bytes == len(CHAT)
    released: list[Reply] = []
    exchange.when_ready(released.append)
    running[1].close()
    (late,) = released
    first, *rest = said(late)
    assert envoy.metadata(first, LB_NAMESPACE) == {LB_ENDPOINTS_KEY: B}
    assert body_of(rest) == CHAT
    assert world.picker.bodies_bytes == 0


def test_the_deadline_ends_a_wait() -> None:
    """A late body is the sender's (408), a hold ours (429); neither leaves anything behind."""
    world = World(limit=1, deadline_ms=1_500)
    late = PickerExchange(world.picker)
    assert late.deadline_s == 1.5
    late.receive(head())
    late.receive(piece(CHAT[:5]))
    assert refused(late.overdue())[0] == 408
    late.close()
    world.decide()
    world.decide()
    held = PickerExchange(world.picker)
    held.receive(head())
    assert held.receive(piece(CHAT, end=True)).wait
    status, _, headers = refused(held.overdue())
    assert (status, headers["x-llm-d-request-dropped-reason"]) == (429, "rejected-ttl-expired")
    held.close()
    assert (len(world.scheduler.queue), world.picker.bodies_bytes, world.processor.deciding) == (0, 0, 0)


def test_a_shed_request_is_told_why() -> None:
    """When its class's hold is over before the deadline."""
    world = World(limit=1)
    world.decide()
    world.decide()
    held = PickerExchange(world.picker)
    held.receive(head())
    held.receive(piece(CHAT, end=True))
    released: list[Reply] = []
    held.when_ready(released.append)
    world.now_ns += 6 * SECOND
    world.scheduler.shed(now_ns=world.now_ns)
    status, _, headers = refused(released[0])
    assert (status, headers["x-llm-d-request-dropped-reason"]) == (429, "rejected-ttl-expired")


def test_a_client_that_leaves_before_the_decision() -> None:
    """Its body is forgotten, its place in the line given up."""
    world = World(limit=1)
    world.decide()
    world.decide()
    held = PickerExchange(world.picker)
    held.receive(head())
    held.receive(piece(CHAT, end=True))
    held.close()
    assert (len(world.scheduler.queue), world.picker.bodies_bytes) == (0, 0)
    assert world.outcomes == []


def test_a_decision_that_was_not_delivered_is_undone() -> None:
    """The stream broke while it was written."""
    world = World()
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    exchange.receive(piece(CHAT, end=True))
    assert len(world.scheduler.ledger) == 1
    exchange.close()
    assert len(world.scheduler.ledger) == 0
    assert (world.outcomes, world.scheduler.counts["cancelled"]) == ([], 1)


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
    last = b'"completion_tokens":3}}'
    (answer,) = said(exchange.receive(piece(data, phase="response_body")))
    assert body_of([answer], "response_body") == data
    reply = exchange.receive(piece(last, end=True, phase="response_body"))
    assert reply.end
    assert body_of(said(reply), "response_body") == last
    exchange.close()
    (outcome,) = world.outcomes
    assert (outcome.end, outcome.status, outcome.served_by, outcome.attempts) == (End.OK, 200, A, 1)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.duration_ns) == (7, 3, SECOND)
    assert (len(world.scheduler.ledger), world.processor.open_exchanges, world.processor.following) == (
        0,
        0,
        0,
    )


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
    assert world.first_tokens == [("i-1", False)]
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
    assert world.first_tokens == [("i-1", True)]
    (outcome,) = world.outcomes
    assert (outcome.end, outcome.refused, outcome.ttft_ns) == (End.REFUSED, True, None)


@pytest.mark.parametrize(
    ("status", "end"), [("200", End.OK), ("404", End.REFUSED), ("503", End.ERROR), ("x", End.ERROR)]
)
def test_how_a_response_without_a_body_ends(status: str, end: End) -> None:
    """By its status alone."""
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
    *_, running, last = (world.scheduler.metered(outcome) for outcome in world.outcomes)
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
    outcome = world.scheduler.metered(world.outcomes[-1])
    assert (outcome.end, outcome.refused, outcome.output_tokens) == (End.ERROR, False, charged)
    assert world.first_tokens == ([("i-1", False)] if tokens else [])
    engine = world.scheduler.fleet.endpoint("p", A)
    assert engine is not None
    assert engine.suspect_until_ns > world.now_ns


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
    assert world.scheduler.settle(
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
    assert world.scheduler.expire(now_ns=world.now_ns) == []
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


def test_phases_out_of_order() -> None:
    """A second body, or a response that nobody asked about, passes."""
    world = World()
    exchange, _ = world.decide()
    assert said(exchange.receive(piece(b"x")))[0].HasField("request_body")
    early = PickerExchange(world.picker)
    assert body_of(said(early.receive(piece(b"y", end=True, phase="response_body"))), "response_body") == b"y"
    with pytest.raises(DecodeError):
        early.receive(b"")
