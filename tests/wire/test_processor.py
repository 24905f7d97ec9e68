from __future__ import annotations

import json
from typing import Any

import envoy_messages as envoy
import pytest

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.contract import DECISION_NAMESPACE, LB_NAMESPACE
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.observe.stats import Stats
from extproc.wire import ticket
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from extproc.wire.responder import Reply
from tests.stand.schedulers import make_pool, make_processor, make_scheduler
from tests.stand.seals import SEAL

CLUSTER = "pool.p/standard"

KEY = ("authorization", "Bearer key")
CHAT = json.dumps({"model": "m", "messages": [{"content": "hello"}], "max_tokens": 5}).encode()
A, B = "10.0.0.1:80", "10.0.0.2:80"


def processor_of(*, strategy: str = "least_work", concurrent: int = 8, required: bool = True) -> Processor:
    pools = [
        make_pool(A, B, strategy=strategy),
        make_pool("10.0.0.3:80", name="q", models=("other",)),
    ]
    scheduler = make_scheduler(*pools)
    tenants = [
        (Tenant(name="acme"), [hash_key("key")]),
        (Tenant(name="small", models=frozenset({"other"})), [hash_key("small-key")]),
    ]
    return make_processor(
        scheduler,
        Directory(tenants, required=required),
        decisions_concurrent_max=concurrent,
        clock=lambda: 5_000_000_000,
    )


def ask(
    exchange: Exchange,
    *extra: tuple[str, str],
    data: bytes = CHAT,
    path: str = "/v1/chat/completions",
) -> Any:
    """Headers and a body; the answer to the body."""
    first = exchange.receive(envoy.headers("POST", path, *(extra or (KEY,))))
    assert not first.end
    assert envoy.response(first.data).request_headers.HasField("response")
    last = exchange.receive(envoy.body(data))
    assert last.end
    return envoy.response(last.data)


def refused(reply: Reply) -> tuple[int, Any, dict[str, str], str]:
    """Status, body, headers, details of an immediate response."""
    assert reply.end
    out = envoy.response(reply.data).immediate_response
    return out.status.code, json.loads(out.body), envoy.mutated(out.headers), out.details


def test_who_asks_may_be_all_that_is_asked() -> None:
    """On the headers alone strangers are refused and the gateway's own answers given; else the body may come,
    and nothing is decided, counted or kept."""
    processor = processor_of()

    def alone(*extra: tuple[str, str], path: str = "/generate", method: str = "POST") -> Reply:
        message = pb.ProcessingRequest.FromString(envoy.headers(method, path, *extra))
        message.protocol_config.request_body_mode = pb.ProtocolConfiguration.NONE
        exchange = Exchange(processor)
        reply = exchange.receive(message.SerializeToString())
        exchange.delivered()
        exchange.close()
        assert reply.end
        return reply

    assert refused(alone())[0] == 401
    assert refused(alone(("x-api-key", "wrong")))[0] == 401
    assert refused(alone(KEY, path="/nowhere"))[0] == 404
    assert refused(alone(KEY, ("content-length", "10001")))[0] == 413
    models = envoy.response(alone(KEY, path="/v1/models", method="HEAD").data).immediate_response
    assert models.status.code == 200
    passed = envoy.response(alone(KEY, ("content-length", "9000")).data)
    assert passed.request_headers.HasField("response")
    assert not passed.request_headers.response.header_mutation.set_headers
    assert processor.open_exchanges == 0
    assert len(processor.scheduler.ledger) == 0


def test_large_bodies_come_in_turn() -> None:
    """One tenant's wait for a moment, then are refused with the time; another's come at once."""
    processor = processor_of()
    processor.body_bytes_max = 1_000_000
    processor.body_rate.bytes_per_second = 1_000_000

    def large(key: str = "key", length: str = "1000000") -> Reply:
        said = (("x-api-key", key), *([("content-length", length)] if length else []))
        message = pb.ProcessingRequest.FromString(envoy.headers("POST", "/generate", *said))
        message.protocol_config.request_body_mode = pb.ProtocolConfiguration.NONE
        exchange = Exchange(processor)
        reply = exchange.receive(message.SerializeToString())
        exchange.close()
        return reply

    assert [large().after_s for _ in range(3)] == [0.0, 0.0, 1.0]
    status, body, headers, _ = refused(large())
    assert (status, body["error_type"], headers["retry-after"]) == (429, "overloaded", "2")
    assert processor.scheduler.counts["bound.large_bytes_per_second"] == 1
    assert large("small-key", length="").after_s == 0.0
    assert large("small-key").after_s == 0.0
    assert large("small-key").after_s == 1.0, "one without a length counts as any"


def test_a_decision() -> None:
    """Headers pass; the body's answer carries cluster, endpoints and ticket, and takes the key away."""
    processor = processor_of()
    answer = ask(Exchange(processor), KEY, ("content-type", "application/json"))
    common = answer.request_body.response
    assert common.clear_route_cache
    # Envoy tries as often as the list is long.
    assert envoy.mutated(common.header_mutation) == {
        "x-steersman-cluster": CLUSTER,
        "x-envoy-max-retries": "1",
        # It comes whole: Envoy does not try it again for being slow.
        "x-steersman-whole": "1",
    }
    removed = ["authorization", "x-api-key", "accept-encoding", "x-steersman-site"]
    assert list(common.header_mutation.remove_headers) == removed
    assert envoy.metadata(answer, LB_NAMESPACE) == {"x-gateway-destination-endpoint": f"{A},{B}"}
    about = envoy.metadata(answer, DECISION_NAMESPACE)
    assert (about["pool"], about["reason"]) == ("p", f"least_work: {A}=6 {B}=6")
    reservation = ticket.read(about["ticket"], SEAL)
    assert reservation is not None
    assert (reservation.id, reservation.tenant, reservation.output_tokens) == ("i-1", "acme", 5)
    assert reservation.id in processor.scheduler.ledger


def test_no_body_follows() -> None:
    """A GET is decided on its headers; a POST without a body is the client's mistake."""
    processor = processor_of()
    reply = Exchange(processor).receive(envoy.headers("GET", "/info", KEY, end=True))
    answer = envoy.response(reply.data)
    assert reply.end
    assert envoy.mutated(answer.request_headers.response.header_mutation)["x-steersman-cluster"] == CLUSTER
    status, body, _, details = refused(
        Exchange(processor).receive(envoy.headers("POST", "/v1/chat/completions", KEY, end=True))
    )
    assert (status, body["error"]["message"], details) == (
        400,
        "the body is empty",
        "steersman_invalid_request",
    )


def test_health() -> None:
    """Without a key; 503 when nothing is ready; also while too much is being decided."""
    processor = processor_of(concurrent=1)
    open_one = Exchange(processor)
    for path in ("/health", "/", "/health?x=1"):
        status, body, *_ = refused(Exchange(processor).receive(envoy.headers("GET", path, end=True)))
        assert (status, body) == (200, {"status": "ok"})
    for endpoint in processor.scheduler.fleet.endpoints:
        endpoint.ready = False
    status, body, headers, _ = refused(Exchange(processor).receive(envoy.headers("GET", "/health", end=True)))
    assert (status, body["error_type"], headers["retry-after"]) == (503, "no_ready_endpoint", "5")
    open_one.close()


def test_models() -> None:
    """The models that the tenant may use, in OpenAI's form."""
    processor = processor_of()
    for key, names in (("key", ["m", "other"]), ("small-key", ["other"])):
        status, body, headers, _ = refused(
            Exchange(processor).receive(envoy.headers("GET", "/v1/models", ("x-api-key", key), end=True))
        )
        assert (status, headers["content-type"]) == (200, "application/json")
        assert [entry["id"] for entry in body["data"]] == names
    assert refused(Exchange(processor).receive(envoy.headers("GET", "/v1/models", end=True)))[0] == 401


def test_who_asks_comes_first() -> None:
    """An unknown client learns nothing of the routes; a known one gets 404 in the path's dialect."""
    processor, stats = processor_of(), Stats()
    processor.scheduler.events.observers = (stats,)
    for path in ("/v1/embeddings", "/v1/chat/completions"):
        status, body, headers, _ = refused(Exchange(processor).receive(envoy.headers("POST", path)))
        assert (status, body["error"]["type"]) == (401, "authentication_error")
        assert headers["www-authenticate"] == "Bearer"
    status, body, *_ = refused(Exchange(processor).receive(envoy.headers("POST", "/v1/images?a=b", KEY)))
    assert (status, body["error"]["message"]) == (404, "no route POST /v1/images")
    status, body, *_ = refused(Exchange(processor).receive(envoy.headers("HEAD", "/nowhere", KEY, end=True)))
    assert (status, body) == (404, {"error": "no route HEAD /nowhere", "error_type": "not_found"})
    for method, path, allowed in (
        ("GET", "/v1/chat/completions?a=b", "POST"),
        ("PUT", "/v1/responses/resp_1", "GET, DELETE"),
        ("DELETE", "/", "POST, GET"),
    ):
        status, body, headers, _ = refused(
            Exchange(processor).receive(envoy.headers(method, path, KEY, end=True))
        )
        assert (status, headers["allow"]) == (405, allowed), body
    assert processor.scheduler.counts["rejected.invalid_api_key"] == 2
    assert stats.tenants["acme"].rejected == 5
    assert "anonymous" not in stats.tenants


def test_a_wrong_base_address_is_told_the_right_one() -> None:
    """404 in OpenAI's error object, with the host that the client used; a stranger's 401 is in it too."""
    processor = processor_of()
    came = ((":authority", "llm.example:8443"), (":scheme", "https"))
    status, body, *_ = refused(
        Exchange(processor).receive(envoy.headers("POST", "/chat/completions", KEY, *came))
    )
    assert (status, body["error"]["type"], body["error"]["code"]) == (404, "not_found_error", "not_found")
    assert body["error"]["message"] == (
        "no route POST /chat/completions: use the base address https://llm.example:8443/v1"
    )
    status, body, *_ = refused(Exchange(processor).receive(envoy.headers("POST", "/chat/completions", *came)))
    assert (status, body["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize(
    "name", ["authorization", "x-api-key", "x-model", "content-length", "content-encoding"]
)
def test_a_second_copy_of_a_header_that_counts(name: str) -> None:
    """Refused before anything else: which one would count is anybody's guess."""
    copies = [(name, "1"), (name, "1")]
    status, body, *_ = refused(
        Exchange(processor_of()).receive(envoy.headers("POST", "/generate", KEY, *copies))
    )
    assert (status, body["error"]) == (400, f"the header '{name}' was sent twice; send it once")


def test_a_second_copy_of_any_other_header() -> None:
    """Not ours to judge."""
    ask(Exchange(processor_of()), KEY, ("accept", "a"), ("accept", "b"))


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "GZIP"])
def test_an_encoded_body(encoding: str) -> None:
    """415: what cannot be read cannot be decided on."""
    reply = Exchange(processor_of()).receive(
        envoy.headers("POST", "/generate", KEY, ("content-encoding", encoding))
    )
    assert refused(reply)[0] == 415


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_plain_body(encoding: str) -> None:
    """`identity` is no encoding."""
    ask(Exchange(processor_of()), KEY, ("content-encoding", encoding))


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("declared", [FORM, "text/plain;charset=UTF-8", "application/jsonp", None])
def test_a_body_of_json_declared_as_something_else_goes_on_as_json(declared: str | None) -> None:
    """What `curl -d` says where it is told nothing: TGI answers it 415, vLLM 400, and we have read it."""
    extra = [("content-type", declared)] if declared is not None else []
    sent = envoy.mutated(ask(Exchange(processor_of()), KEY, *extra).request_body.response.header_mutation)
    assert sent["content-type"] == "application/json"


@pytest.mark.parametrize(
    "declared", ["application/json", "Application/JSON; charset=utf-8", "application/a+json"]
)
def test_a_body_declared_as_json_keeps_what_its_client_said(declared: str) -> None:
    """Nothing is written over."""
    answer = ask(Exchange(processor_of()), KEY, ("content-type", declared))
    assert "content-type" not in envoy.mutated(answer.request_body.response.header_mutation)


def test_a_browsers_page_must_declare_json_itself() -> None:
    """A page may send a form's type to anywhere without asking first; JSON's it may not."""
    page = ("origin", "https://elsewhere.example")
    answer = ask(Exchange(processor_of()), KEY, ("content-type", FORM), page)
    assert "content-type" not in envoy.mutated(answer.request_body.response.header_mutation)


def test_a_request_without_a_body_gets_no_content_type() -> None:
    """There is nothing to declare."""
    reply = Exchange(processor_of()).receive(envoy.headers("GET", "/info", KEY, end=True))
    sent = envoy.mutated(envoy.response(reply.data).request_headers.response.header_mutation)
    assert "content-type" not in sent


def test_a_form_is_no_json() -> None:
    """What does not parse is refused as ever, before any replica."""
    exchange = Exchange(processor_of())
    exchange.receive(envoy.headers("POST", "/generate", KEY, ("content-type", FORM)))
    assert refused(exchange.receive(envoy.body(b"inputs=hello")))[0] == 400


@pytest.mark.parametrize("length", ["10001", "0010001", "9" * 5_000])
def test_a_body_announced_too_large(length: str) -> None:
    """413 before a byte of it is buffered."""
    reply = Exchange(processor_of()).receive(
        envoy.headers("POST", "/generate", KEY, ("content-length", length))
    )
    status, body, *_ = refused(reply)
    assert (status, body["error"]) == (413, "the body is too large; at most 10000 bytes")


@pytest.mark.parametrize("length", ["10000", "0", "", "²", "-1", "1e9", "x"])
def test_a_length_within_the_bound_or_none(length: str) -> None:
    """What is no length is Envoy's business."""
    ask(Exchange(processor_of()), KEY, ("content-length", length))


def test_a_body_of_unannounced_size() -> None:
    """Chunked bodies meet the bound when they are here."""
    exchange = Exchange(processor_of())
    exchange.receive(envoy.headers("POST", "/v1/completions", KEY))
    assert refused(exchange.receive(envoy.body(b'{"prompt":"' + b"a" * 10_000 + b'"}')))[0] == 413


def test_the_bound_on_concurrent_decisions() -> None:
    """Above it 429 with a wait; below it again, decisions again."""
    processor = processor_of(concurrent=2)
    first, second, third = Exchange(processor), Exchange(processor), Exchange(processor)
    status, body, headers, _ = refused(third.receive(envoy.headers("POST", "/generate", KEY)))
    assert (status, body["error_type"], headers["retry-after"]) == (429, "overloaded", "1")
    assert processor.scheduler.counts["bound.decisions_concurrent_max"] == 1
    third.close()
    ask(second)
    for exchange in (first, second):
        exchange.close()
    assert processor.open_exchanges == 0


@pytest.mark.parametrize(
    ("named", "header", "pool"),
    [("other", "m", "q"), (None, "other", "q"), ("", "other", "q"), (None, "", "p")],
)
def test_the_model_header(named: str | None, header: str, pool: str) -> None:
    """It counts where the body names no model."""
    data = json.dumps({"inputs": "hi", "model": named}).encode()
    answer = ask(Exchange(processor_of()), KEY, ("x-model", header), data=data, path="/generate")
    assert envoy.metadata(answer, DECISION_NAMESPACE)["pool"] == pool


@pytest.mark.parametrize(
    ("data", "key", "status", "code"),
    [
        (b"{", "key", 400, "invalid_request"),
        (CHAT.replace(b'"m"', b'"x"'), "key", 404, "model_not_found"),
        (CHAT, "small-key", 404, "model_not_found"),
        (CHAT.replace(b'"max_tokens": 5', b'"n": 9'), "key", 422, "invalid_request"),
    ],
)
def test_refusals_on_the_body(data: bytes, key: str, status: int, code: str) -> None:
    """An immediate answer in the route's dialect, counted, with nothing reserved."""
    processor = processor_of()
    out = ask(Exchange(processor), ("x-api-key", key), data=data).immediate_response
    assert (out.status.code, json.loads(out.body)["error"]["code"]) == (status, code)
    assert out.details == f"steersman_{code}"
    assert processor.scheduler.counts[f"rejected.{code}"] == 1
    assert len(processor.scheduler.ledger) == 0
