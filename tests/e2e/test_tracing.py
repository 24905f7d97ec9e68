"""Traces through the real Envoy: one trace id from the client to the upstream, and what each span says."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from gateway import KEYS, Gateway, wait_for
from otlp import Receiver, Span, tree
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

#: By conftest.py: the metrics are of the traffic before them.
IN_ORDER = True
pytestmark = pytest.mark.envoy

CLIENT = 3
#: Envoy's own tracer sends every few seconds.
ENVOY_FLUSH_S = 60.0


class Upstream:
    """An engine of one answer, which keeps the headers that reach it."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                owner.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its base's name)
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Upstream:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Traced:
    """A gateway whose Envoy and whose service send their spans to one receiver."""

    def __init__(self, gateway: Gateway, receiver: Receiver, upstream: Upstream, replicas: Replicas) -> None:
        self.gateway, self.receiver, self.upstream, self.replicas = gateway, receiver, upstream, replicas

    def ask(
        self, path: str, body: Any, *, sampled: bool = True, key: str | None = KEYS["acme"]
    ) -> tuple[int, str, str, dict[str, str]]:
        """A request with a traceparent: status, the trace's id, the client's span's id, answer's headers."""
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        parent = f"00-{trace_id}-{span_id}-0{int(sampled)}"
        status, headers, _ = self.gateway.call(path, body, key=key, headers={"traceparent": parent})
        return status, trace_id, span_id, headers

    def spans(self, trace_id: str, *names: str, envoy: bool = False) -> dict[str, Span]:
        """A trace's spans by name, once those named are there (and Envoy's, when asked for)."""

        def there() -> dict[str, Span] | None:
            spans = self.receiver.of(trace_id)
            ours = {span.name: span for span in spans if span.service == "steersman"}
            if not set(names) <= set(ours) or (envoy and len(spans) < len(ours) + 3):
                return None
            return ours

        try:
            found: dict[str, Span] = wait_for("the spans", there, timeout_s=ENVOY_FLUSH_S)
        except TimeoutError:
            print(tree(self.receiver.of(trace_id)))
            raise
        return found


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    """Three pools: simulated replicas, one slow replica of one place, and a plain upstream."""
    slow = specs(1, model_id="slow", time_scale=1.0)
    with Receiver() as receiver, Upstream() as upstream, Replicas(specs(2) + slow) as replicas:
        with Gateway(
            {
                "chat": {"models": ["tiny-chat"], "addresses": replicas.addresses[:2]},
                "slow": {
                    "models": ["slow"],
                    "engine": "vllm",
                    "addresses": [{"address": replicas.addresses[2], "max_concurrent": 1}],
                },
                "plain": {"models": ["plain"], "engine": "llamacpp", "addresses": [upstream.address]},
            },
            gateway={"tracing": {"otlp_grpc": f"127.0.0.1:{receiver.grpc_port}"}},
            otel={
                "endpoint": receiver.grpc_url,
                "export_interval_ms": 50,
                "metrics_interval_s": 0.2,
                "headers": {"x-test": "yes"},
            },
            tenants=[
                {"name": "acme", "keys": [{"sha256": hash_key(KEYS["acme"])}]},
                {
                    "name": "globex",
                    "keys": [{"sha256": hash_key(KEYS["globex"])}],
                    "models": ["tiny-chat"],
                    "trace_prompts": True,
                },
                {
                    "name": "spent",
                    "keys": [{"sha256": hash_key("sk-spent")}],
                    "quota": {"requests_per_minute": 1},
                },
            ],
        ) as gateway:
            yield Traced(gateway, receiver, upstream, replicas)


def chat(model: str, tokens: int = 5, **fields: Any) -> dict[str, Any]:
    content = f"[[sim:out={tokens}]] hello"
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        **fields,
    }


def test_one_trace_from_the_client_to_the_upstream(traced: Traced) -> None:
    """The client's span → Envoy's ingress → its call of the service → the request → the decision."""
    status, trace_id, client_span, _ = traced.ask("/v1/chat/completions", chat("plain"))
    assert status == 200
    ours = traced.spans(trace_id, "chat plain", "steersman.decide", envoy=True)
    spans = {span.span_id: span for span in traced.receiver.of(trace_id)}
    request, decide = ours["chat plain"], ours["steersman.decide"]
    assert decide.parent_id == request.span_id
    call = spans[request.parent_id]
    assert "ExternalProcessor.Process" in call.name
    assert call.service == "steersman-gateway"
    ingress = spans[call.parent_id]
    assert ingress.parent_id == client_span
    # The request is as long as Envoy says, and the decision begins within it.
    assert abs(request.start_ns - ingress.start_ns) < 2_000_000
    assert request.start_ns <= decide.start_ns <= request.end_ns
    assert abs(request.end_ns - ingress.end_ns) < 5_000_000
    # The upstream hears of the same trace, from Envoy's span for the attempt.
    forwarded = traced.upstream.headers[-1]["traceparent"].split("-")
    assert forwarded[1] == trace_id
    assert spans[forwarded[2]].service == "steersman-gateway"
    assert traced.upstream.headers[-1].get("tracestate", "") == ""


def test_a_whole_answer(traced: Traced) -> None:
    """Not streamed: the counts, the model, the engine, who served; no time to a first token."""
    status, trace_id, *_ = traced.ask("/v1/chat/completions", chat("tiny-chat", 6, user="alice"))
    assert status == 200
    request = traced.spans(trace_id, "chat tiny-chat")["chat tiny-chat"]
    about = request.attributes
    assert (request.kind, request.error) == (CLIENT, False)
    assert about["gen_ai.operation.name"] == "chat"
    assert about["gen_ai.provider.name"] == "tgi"
    assert about["gen_ai.request.model"] == about["gen_ai.response.model"] == "tiny-chat"
    assert about["gen_ai.request.max_tokens"] == about["gen_ai.usage.output_tokens"] == 6
    assert about["gen_ai.usage.input_tokens"] > 0
    assert f"{about['server.address']}:{about['server.port']}" in traced.replicas.addresses
    assert about["http.response.status_code"] == 200
    assert about["steersman.tenant"] == "acme"
    assert about["steersman.attempts"] == 1
    # The name rides hashed; the prompt of a tenant that did not opt in is nowhere.
    assert about["gen_ai.conversation.id"] != "alice"
    for absent in ("gen_ai.request.stream", "gen_ai.server.time_to_first_token", "error.type"):
        assert absent not in about
    assert "hello" not in str(traced.receiver.of(trace_id))


def test_a_stream(traced: Traced) -> None:
    """Streamed: the time to the first token in nanoseconds (Latitude) and in seconds, as an event too."""
    body = {"inputs": "[[sim:out=8]]", "parameters": {"max_new_tokens": 8}}
    status, trace_id, *_ = traced.ask("/generate_stream", body)
    assert status == 200
    ours = traced.spans(trace_id, "text_completion tiny-chat", "steersman.decide")
    about = ours["text_completion tiny-chat"].attributes
    assert about["gen_ai.request.stream"] is True
    ttft_ns = about["gen_ai.server.time_to_first_token"]
    assert isinstance(ttft_ns, int)
    assert 0 < ttft_ns < 5_000_000_000
    assert about["gen_ai.response.time_to_first_chunk"] == pytest.approx(ttft_ns / 1e9)
    assert about["gen_ai.usage.output_tokens"] == 8
    ((name, at_ns, _),) = ours["text_completion tiny-chat"].events
    assert (name, at_ns - ours["text_completion tiny-chat"].start_ns) == ("steersman.first_token", ttft_ns)
    decided = ours["steersman.decide"].attributes
    assert decided["steersman.strategy"] == "steer"
    assert decided["steersman.pool"] == "chat"
    assert decided["steersman.best"][0] == decided["steersman.endpoint"]
    assert len(decided["steersman.scores"]) == len(decided["steersman.best"]) == 2
    assert decided["steersman.reason"].startswith("steer: ")
    assert decided["steersman.read_ms"] >= 0
    assert [event[0] for event in ours["steersman.decide"].events] == ["steersman.cache_lookup"]


@pytest.mark.parametrize(
    ("key", "model", "status", "error"),
    [
        (KEYS["globex"], "plain", 404, "model_not_found"),
        (KEYS["acme"], "nobody", 404, "model_not_found"),
        ("sk-spent", "tiny-chat", 429, "quota_exceeded"),
    ],
)
def test_a_refusal_of_ours(traced: Traced, key: str, model: str, status: int, error: str) -> None:
    """The request's span fails with the refusal's code and status, and the decision says so."""
    if error == "quota_exceeded":
        traced.ask("/v1/chat/completions", chat(model), key=key)
    got, trace_id, *_ = traced.ask("/v1/chat/completions", chat(model), key=key)
    assert got == status
    ours = traced.spans(trace_id, f"chat {model}", "steersman.decide")
    request = ours[f"chat {model}"]
    assert request.error
    assert request.attributes["error.type"] == error
    assert request.attributes["http.response.status_code"] == status
    assert "gen_ai.response.model" not in request.attributes
    assert ours["steersman.decide"].attributes["steersman.refusal"] == error


def test_an_unknown_key_is_no_inference(traced: Traced) -> None:
    """401: nobody's request, but a span that says so."""
    status, trace_id, *_ = traced.ask("/v1/chat/completions", chat("plain"), key="sk-wrong")
    assert status == 401
    request = traced.spans(trace_id, "chat", "steersman.decide")["chat"]
    assert request.attributes["http.response.status_code"] == 401
    assert request.attributes["gen_ai.provider.name"] == "steersman"


def test_an_engine_s_error(traced: Traced) -> None:
    """A 422 of the engine's is the engine's answer, and the span's error.type."""
    body = {"inputs": "x", "parameters": {"max_new_tokens": 100_000}}
    status, trace_id, *_ = traced.ask("/generate", body)
    assert status == 422
    request = traced.spans(trace_id, "text_completion tiny-chat")["text_completion tiny-chat"]
    assert request.error
    assert request.attributes["error.type"] == "422"


def test_a_hold_and_a_client_that_leaves(traced: Traced) -> None:
    """Who waits has a span for it; who leaves a stream, or the queue, ends as client_gone."""
    holder, waiter, leaver = (secrets.token_hex(16) for _ in range(3))

    def begin(trace_id: str, tokens: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", traced.gateway.port, timeout=30)
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {KEYS['acme']}",
            "traceparent": f"00-{trace_id}-{'1' * 16}-01",
        }
        body = json.dumps(chat("slow", tokens, stream=True))
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection

    first = begin(holder, 2_000)
    streamed = first.getresponse()
    streamed.readline()
    second = begin(waiter, 3)
    wait_for("the second to wait", lambda: traced.gateway.status()["held"] == 1)
    third = begin(leaver, 3)
    wait_for("the third to wait", lambda: traced.gateway.status()["held"] == 2)
    third.close()
    wait_for("the third to be let go", lambda: traced.gateway.status()["held"] == 1)
    streamed.close()
    first.close()
    second.getresponse().read()
    second.close()
    left = traced.spans(holder, "chat slow")["chat slow"]
    assert left.error
    assert left.attributes["error.type"] == "client_gone"
    assert left.attributes["gen_ai.response.finish_reasons"] == ["error"]
    assert left.attributes["gen_ai.provider.name"] == "vllm"
    held = traced.spans(waiter, "chat slow", "steersman.decide", "steersman.hold")
    assert held["steersman.hold"].parent_id == held["steersman.decide"].span_id
    assert held["steersman.hold"].attributes["steersman.outcome"] == "placed"
    assert held["steersman.hold"].end_ns > held["steersman.hold"].start_ns
    assert held["chat slow"].attributes["steersman.held_ms"] > 0
    assert not held["chat slow"].error
    gone = traced.spans(leaver, "chat slow", "steersman.hold")
    assert gone["chat slow"].attributes["error.type"] == "client_gone"
    assert gone["steersman.hold"].attributes["steersman.outcome"] == "left"


def test_prompts_of_a_tenant_that_opted_in(traced: Traced) -> None:
    """Its messages, in the conventions' JSON."""
    _, trace_id, *_ = traced.ask("/v1/chat/completions", chat("tiny-chat"), key=KEYS["globex"])
    about = traced.spans(trace_id, "chat tiny-chat")["chat tiny-chat"].attributes
    assert json.loads(about["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "[[sim:out=5]] hello"}]}
    ]


def test_what_is_not_sampled_has_no_span(traced: Traced) -> None:
    """The parent's flag holds; the metrics count it all the same."""
    before = sum(point.count for point in traced.receiver.points("gen_ai.server.request.duration"))
    _, hidden, *_ = traced.ask("/v1/chat/completions", chat("tiny-chat"), sampled=False)
    _, shown, *_ = traced.ask("/v1/chat/completions", chat("tiny-chat"))
    traced.spans(shown, "chat tiny-chat")
    assert traced.receiver.of(hidden) == []
    wait_for(
        "both to be counted",
        lambda: sum(p.count for p in traced.receiver.points("gen_ai.server.request.duration")) >= before + 2,
    )


def test_the_metrics(traced: Traced) -> None:
    """Each metric of the conventions comes, with their attributes, over the same collector."""
    for name in ("gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token"):
        points = wait_for(name, lambda name=name: traced.receiver.points(name))
        assert all(point.count >= 1 for point in points)
    for name in (
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.client.inference.duration",
        "gen_ai.client.inference.usage.output_tokens",
    ):
        assert traced.receiver.points(name), name
    assert any(headers.get("x-test") == "yes" for _, headers in traced.receiver.calls)


def test_the_service_killed_in_a_stream(traced: Traced) -> None:
    """kill -9 while a stream runs: the new process ends the old one's span, with the ids that rode along."""
    trace_id = secrets.token_hex(16)
    connection = http.client.HTTPConnection("127.0.0.1", traced.gateway.port, timeout=30)
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {KEYS['acme']}",
        "traceparent": f"00-{trace_id}-{'1' * 16}-01",
    }
    body = json.dumps(chat("slow", 100, stream=True))
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    answer.readline()
    decide = traced.spans(trace_id, "steersman.decide")["steersman.decide"]
    # The stream waits for the new process, however long that takes to start.
    traced.replicas.fault(2, hang=True)
    traced.gateway.service.kill()
    traced.gateway.service.start()
    wait_for("the service", traced.gateway.status, timeout_s=90.0)

    def heard() -> bool:
        """Envoy's log reaches the new process: what it has while there is none is lost."""
        status, its_trace, _, _ = traced.ask("/v1/chat/completions", chat("tiny-chat", 1))
        until_s = time.monotonic() + 3
        while status == 200 and time.monotonic() < until_s:
            if any(span.name == "chat tiny-chat" for span in traced.receiver.of(its_trace)):
                return True
            time.sleep(0.05)
        return False

    wait_for("a record at the new process", heard, timeout_s=90.0)
    traced.replicas.fault(2, clear=True)
    assert b"[DONE]" in answer.read()
    connection.close()
    request = traced.spans(trace_id, "chat slow")["chat slow"]
    assert request.span_id == decide.parent_id
    assert request.attributes["steersman.settled_by_another"] is True
    assert request.attributes["gen_ai.response.model"] == "slow"
    assert not request.error
    assert request.resource["service.instance.id"] != decide.resource["service.instance.id"]
