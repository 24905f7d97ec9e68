from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from trips import MS_NS, OFFSET_NS, PARENT, SAMPLED, TRACE, Trips

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.cache.store import Absent
from extproc.core.accounts import Accounts
from extproc.core.cachekeys import CacheRule
from extproc.core.client_places import ClientPlaces, Place
from extproc.core.outcome import End
from extproc.core.quota import ExactBooks, Granted, Refused
from extproc.core.quota.values import ASK, RateFigures, ScopeLimits
from extproc.observe.tracing import semconv
from extproc.observe.tracing.request_trace import RequestTrace
from extproc.wire.responder import Reply
from tests.stand.cached import answer_of
from tests.stand.semantic import Wording, worded

METADATA = ("traceparent", SAMPLED)


def test_a_request_and_its_decision() -> None:
    """The decision within the request, the request within Envoy's call; times in unix nanoseconds."""
    trips = Trips()
    began_ns = trips.now_ns
    _, reply = trips.ask(METADATA, ("tracestate", "v=1"))
    trips.end(reply, served_by="10.0.0.9:8080", prompt_tokens=11, output_tokens=5)
    spans = trips.spans()
    assert list(spans) == ["steersman.decide", "chat m"]
    decide, request = spans["steersman.decide"], spans["chat m"]
    assert {span.trace_id for span in spans.values()} == {int(TRACE, 16)}
    assert {span.state for span in spans.values()} == {"v=1"}
    assert request.parent_id == int(PARENT, 16)
    assert decide.parent_id == request.span_id
    assert decide.start_ns == began_ns + OFFSET_NS
    assert decide.end_ns - decide.start_ns == 3 * MS_NS
    assert request.end_ns - request.start_ns == 500 * MS_NS
    about = decide.attributes
    assert about["steersman.read_ms"] == 1.0
    assert about["steersman.reason"] == "least_work: 10.0.0.1:80=6 10.0.0.2:80=6"
    assert (about["steersman.best"], about["steersman.scores"]) == (
        ["10.0.0.1:80", "10.0.0.2:80"],
        [6.0, 6.0],
    )
    assert about["steersman.degraded"] == ""
    assert decide.events == [
        (
            "steersman.cache_lookup",
            decide.start_ns + 1 * MS_NS,
            {"steersman.cached_tokens": 0, "steersman.expected_input_tokens": 1},
        )
    ]
    about = request.attributes
    assert (request.client, decide.client) == (True, False)
    assert (about["server.address"], about["server.port"]) == ("10.0.0.9", 8080)
    assert (about["gen_ai.usage.input_tokens"], about["gen_ai.usage.output_tokens"]) == (11, 5)
    assert about["steersman.reservation"] == reply.reservation_id


def test_where_its_client_is() -> None:
    """One attribute on all spans that name its tenant, served or refused; none where nothing says."""
    trips = Trips()
    trips.processor.places = ClientPlaces([(Place("eu"), ["DE"], ())], header="x-country")
    trips.processor.model_headers = frozenset({"x-country"})
    headers = (("x-country", "DE"),)
    _, reply = trips.ask(METADATA, headers=headers)
    trips.end(reply)
    refused = Trips()
    refused.processor.places = trips.processor.places
    refused.processor.model_headers = frozenset({"x-country"})
    refused.ask(METADATA, headers=headers, body={"model": "nobody", "messages": []})
    for found in (trips.spans(), refused.spans()):
        assert [span.attributes["steersman.place"] for span in found.values()] == ["eu", "eu"]
    elsewhere = Trips()
    elsewhere.processor.places = trips.processor.places
    elsewhere.processor.model_headers = frozenset({"x-country"})
    _, reply = elsewhere.ask(METADATA, headers=(("x-country", "XX"),))
    elsewhere.end(reply)
    assert not [span for span in elsewhere.spans().values() if "steersman.place" in span.attributes]


OUTCOMES: list[tuple[dict[str, Any], str]] = [
    ({"end": End.OK}, ""),
    ({"end": End.REFUSED, "status": 422}, "422"),
    ({"end": End.ERROR, "status": 503}, "503"),
    ({"end": End.ERROR, "status": 200}, "stream_broken"),
    ({"end": End.ERROR, "status": 0}, "stream_broken"),
    ({"end": End.CLIENT_GONE, "status": 200}, "client_gone"),
    ({"end": End.CLIENT_GONE, "status": 0}, "client_gone"),
    ({"end": End.REFUSED, "status": 200, "refused": True}, "engine_overloaded"),
]


@pytest.mark.parametrize(("facts", "error"), OUTCOMES)
def test_how_it_ended(facts: dict[str, Any], error: str) -> None:
    """error.type is the status where the engine gave one, else a word; the span fails with it."""
    trips = Trips()
    _, reply = trips.ask(METADATA)
    trips.end(reply, **facts)
    request = trips.spans()["chat m"]
    assert request.attributes.get("error.type", "") == error
    assert bool(request.error) is bool(error)
    served = facts.get("status", 200) == 200 and not facts.get("refused")
    assert ("gen_ai.response.model" in request.attributes) is served
    # A generation that began and broke off has a finish reason by the conventions.
    broke = bool(error) and facts.get("status", 200) == 200
    assert ("gen_ai.response.finish_reasons" in request.attributes) is broke


def test_a_stream_s_first_token() -> None:
    """In integer nanoseconds and in seconds; unknown where none was seen."""
    trips = Trips()
    body = {"inputs": "x", "parameters": {"max_new_tokens": 3}}
    _, reply = trips.ask(METADATA, path="/generate_stream", body=body)
    trips.end(reply, ttft_ns=123_456_789, output_tokens=3)
    request = trips.spans()["text_completion m"]
    about = request.attributes
    assert about["gen_ai.server.time_to_first_token"] == 123_456_789
    assert type(about["gen_ai.server.time_to_first_token"]) is int
    assert about["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.123456789)
    assert about["gen_ai.request.stream"] is True
    assert about["gen_ai.request.max_tokens"] == 3
    assert request.events == [("steersman.first_token", request.start_ns + 123_456_789, {})]


def test_a_refusal_of_the_scheduler_s() -> None:
    """Both spans at once: the code is error.type, the message the span's."""
    trips = Trips()
    body = {"model": "nobody", "messages": [{"role": "user", "content": "x"}], "stream": True}
    trips.ask(METADATA, body=body)
    spans = trips.spans()
    request, decide = spans["chat nobody"], spans["steersman.decide"]
    assert request.attributes["error.type"] == decide.attributes["steersman.refusal"] == "model_not_found"
    assert request.attributes["http.response.status_code"] == 404
    assert request.attributes["gen_ai.provider.name"] == "steersman"
    assert request.attributes["gen_ai.request.stream"] is True
    assert "no model 'nobody' here" in request.error
    assert request.end_ns == decide.end_ns


def test_what_is_no_inference() -> None:
    """An unknown path and /tokenize: a request without GenAI attributes; the model list: no span."""
    trips = Trips()
    trips.ask(METADATA, path="/nowhere")
    request = trips.spans()["steersman.request"]
    assert request.attributes["error.type"] == "not_found"
    assert not any(name.startswith("gen_ai.") for name in request.attributes)
    trips = Trips()
    _, reply = trips.ask(METADATA, path="/tokenize", body={"inputs": "x"})
    trips.end(reply)
    assert "gen_ai.operation.name" not in trips.spans()["steersman.request"].attributes
    trips = Trips()
    trips.ask(METADATA, path="/health", headers=((":method", "GET"),))
    assert trips.spans() == {}


def test_a_hold() -> None:
    """A span of its own within the decision, from the word to wait to the word to go."""
    trips = Trips(hold_ms=1_000)
    replies = [trips.ask(METADATA)[1] for _ in range(2)]
    exchange, reply = trips.ask(METADATA)
    assert reply.wait
    trips.notes.clear()
    trips.now_ns += 40 * MS_NS
    trips.scheduler.cancel(replies[0].reservation_id, now_ns=trips.now_ns)
    trips.deliver(exchange)
    spans = trips.spans()
    hold, decide = spans["steersman.hold"], spans["steersman.decide"]
    assert hold.parent_id == decide.span_id
    assert hold.end_ns - hold.start_ns == 42 * MS_NS
    assert hold.attributes["steersman.outcome"] == "placed"
    assert decide.attributes["steersman.held_ms"] == 42.0


def test_a_client_that_leaves_while_it_waits() -> None:
    """The hold ends there, and the request as client_gone."""
    trips = Trips(hold_ms=1_000)
    for _ in range(2):
        trips.ask(METADATA)
    exchange, reply = trips.ask(METADATA)
    assert reply.wait
    trips.notes.clear()
    trips.now_ns += 10 * MS_NS
    exchange.close()
    spans = trips.spans()
    assert spans["chat m"].attributes["error.type"] == "client_gone"
    assert spans["steersman.hold"].attributes["steersman.outcome"] == "left"
    assert trips.request_traces.in_flight == 2


def test_a_client_that_leaves_before_the_decision_is_out() -> None:
    """What was reserved is undone, and the trace forgotten; also where the body never came."""
    trips = Trips()
    exchange, _ = trips.ask(METADATA, deliver=False)
    exchange.close()
    assert trips.spans()["chat m"].attributes["error.type"] == "client_gone"
    assert trips.request_traces.in_flight == 0
    trips.notes.clear()
    trips.open(METADATA).close()
    assert trips.spans()["steersman.request"].attributes["error.type"] == "client_gone"


class Remote(ExactBooks):
    """Books that must always be asked, as those in Redis are when their lease is spent."""

    def reserve(self, *_: Any, **__: Any) -> Any:
        return ASK


@pytest.mark.parametrize("granted", [True, False])
def test_a_reserve(granted: bool) -> None:
    """The quota's store has a span of its own, with what it answered."""
    trips = Trips()
    trips.scheduler.quotas = Remote()
    trips.scheduler.settings.policy = replace(
        trips.scheduler.policy, accounts=Accounts(tenants={"acme": ScopeLimits(concurrent=9)})
    )
    exchange, reply = trips.ask(METADATA)
    assert reply.ask is not None
    trips.now_ns += 3 * MS_NS
    figures = RateFigures()
    answer = Granted(figures, borrowed=False) if granted else Refused("tenant", "concurrent", 1.0, figures)
    assert exchange.answered(reply.ask, answer).end
    trips.deliver(exchange)
    spans = trips.spans()
    reserve = spans["steersman.reserve"]
    assert reserve.parent_id == spans["steersman.decide"].span_id
    assert reserve.end_ns - reserve.start_ns == 5 * MS_NS
    assert reserve.attributes == {"steersman.granted": granted}
    assert ("chat m" in spans) is not granted


def test_a_record_that_never_came() -> None:
    """The span ends when the reservation expires, as lost."""
    trips = Trips()
    _, reply = trips.ask(METADATA)
    trips.now_ns += 60_000 * MS_NS
    trips.request_traces.expired(trips.reservation(reply), now_ns=trips.now_ns)
    request = trips.spans()["chat m"]
    assert request.attributes["error.type"] == "lost"
    assert request.end_ns == trips.now_ns + OFFSET_NS


def test_a_record_settled_by_another() -> None:
    """From what rode along: the same ids, the model that was asked for, no prompt."""
    trips = Trips()
    exchange, reply = trips.ask(METADATA, key="open")
    assert isinstance(exchange.request_trace, RequestTrace)
    trips.notes.clear()
    trips.end(reply, here=False)
    trips.request_traces.step(now_ns=trips.now_ns)
    request = trips.spans()["chat m"]
    assert request.span_id == exchange.request_trace.span_id
    assert request.parent_id == int(PARENT, 16)
    assert request.attributes["steersman.settled_by_another"] is True
    assert "gen_ai.input.messages" not in request.attributes


def test_no_span_of_what_rode_with_a_fault() -> None:
    """A text that is none of ours makes nothing."""
    trips = Trips()
    _, reply = trips.ask(METADATA)
    trips.notes.clear()
    trips.end(reply, here=False, trace="rubbish")
    trips.request_traces.step(now_ns=trips.now_ns)
    assert trips.spans() == {}


def test_a_prompt_that_was_opted_in() -> None:
    """In the conventions' JSON, on the request's span alone, cut where the configuration says."""
    trips = Trips(prompt_characters_max=3)
    _, reply = trips.ask(METADATA, key="open")
    trips.end(reply)
    spans = trips.spans()
    text = spans["chat m"].attributes["gen_ai.input.messages"]
    assert isinstance(text, str)
    assert json.loads(text) == [{"role": "user", "parts": [{"type": "text", "content": "hel"}]}]
    assert "hel" not in str(spans["steersman.decide"].attributes)


def test_a_decision_keeps_no_fleet_alive() -> None:
    """Once its span is built a request in flight refers to no scores."""
    trips = Trips()
    exchange, _ = trips.ask(METADATA)
    assert isinstance(exchange.request_trace, RequestTrace)
    assert exchange.request_trace.routed is not None
    trips.spans()
    assert exchange.request_trace.routed is None


@pytest.mark.parametrize(
    ("release", "provider", "stream"),
    [
        ("1.36", "gen_ai.system", False),
        ("1.41", "gen_ai.provider.name", True),
        ("0.1", "gen_ai.provider.name", True),
    ],
)
def test_releases(release: str, provider: str, stream: bool) -> None:
    """One switch changes the names; what a release does not have is left out."""
    trips = Trips(names=release)
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    _, reply = trips.ask(METADATA, body=body, key="open")
    trips.end(reply, ttft_ns=5, prompt_tokens=3)
    about = trips.spans()["chat m"].attributes
    assert about[provider] == "tgi"
    assert ("gen_ai.request.stream" in about) is stream
    assert ("gen_ai.input.messages" in about) is stream
    assert len({"gen_ai.system", "gen_ai.provider.name"} & set(about)) == 1


def test_names_are_of_the_conventions() -> None:
    """Those that OpenTelemetry's package knows are spelled as it spells them."""
    attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    metrics = pytest.importorskip("opentelemetry.semconv._incubating.metrics.gen_ai_metrics")
    known = {
        value for module in (attributes, metrics) for value in vars(module).values() if isinstance(value, str)
    }
    names = semconv.RELEASES["1.41"]
    spelled = {
        *(semconv.OPERATION, semconv.REQUEST_MODEL, semconv.RESPONSE_MODEL, semconv.MAX_TOKENS),
        *(semconv.CHOICES, semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS, semconv.FINISH_REASONS),
        *(semconv.CONVERSATION, semconv.WHICH_TOKENS),
        *(names.provider, names.stream, names.first_chunk, names.cache_read, names.messages),
        *(metric.name for metric in names.metrics),
        semconv.RELEASES["1.36"].provider,
    }
    assert spelled <= known


def cached(trips: Trips, *, store: MemoryAnswers | None = None) -> ResponseCache:
    """Its processor has a cache, whose fills its traces hear of."""
    cache = ResponseCache(
        MemoryAnswers(1 << 20, clock=lambda: trips.now_ns) if store is None else store,
        lambda tenant, _: CacheRule(scope=f"tenant:{tenant}"),
        answer_bytes_max=4_096,
        request_bytes_max=4_096,
        clock=lambda: trips.now_ns,
    )
    cache.on_filled = trips.request_traces.filled
    trips.processor.cache, trips.processor.event_cluster = cache, "events"
    return cache


SURE = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}


def test_a_miss_its_fill_and_a_hit() -> None:
    """The miss's spans say what became of its answer; a hit's that none was asked, and how old it was."""
    trips = Trips()
    cache = cached(trips)
    _, reply = trips.ask(METADATA, body=SURE)
    assert cache.fill(reply.reservation_id, answer_of())
    trips.end(reply)
    spans = trips.spans()
    assert spans["steersman.decide"].attributes["steersman.cache"] == "miss"
    assert spans["chat m"].attributes["steersman.cache.fill"] == "kept"
    trips.notes.clear()
    trips.now_ns += 7_000 * MS_NS
    trips.ask(METADATA, body=SURE)
    spans = trips.spans()
    assert list(spans) == ["steersman.decide", "chat m"]
    about = spans["steersman.decide"].attributes
    assert (about["steersman.cache"], about["steersman.cache.age_s"]) == ("hit", 7)
    about = spans["chat m"].attributes
    assert (about["steersman.cache"], about["http.response.status_code"]) == ("hit", 200)
    assert not spans["chat m"].error


def test_the_waits_of_a_cache_are_spans() -> None:
    """For its store, and for an equal request's answer; a hit that was waited for is `joined`."""

    class Remote(MemoryAnswers):
        def get(self, scope: str, key: bytes, *, now_ns: int) -> Absent:
            return Absent.ASK

    trips = Trips(hold_ms=9_000)
    cache = cached(trips, store=Remote(1 << 20))
    first, reply = trips.ask(METADATA, body=SURE)
    second, _ = trips.ask(METADATA, body=SURE)
    placed = first.looked(None)
    trips.deliver(first)
    trips.now_ns += 4 * MS_NS
    replies: list[Reply] = []
    assert second.looked(None).wait
    second.when_ready(replies.append)
    trips.now_ns += 30 * MS_NS
    assert cache.fill(placed.reservation_id, answer_of())
    assert replies
    trips.notes.clear()
    trips.deliver(second)
    spans = trips.spans()
    assert spans["steersman.decide"].attributes["steersman.cache"] == "joined"
    look, join = spans["steersman.look"], spans["steersman.join"]
    assert look.parent_id == join.parent_id == spans["steersman.decide"].span_id
    assert (join.end_ns - join.start_ns, look.end_ns - look.start_ns) == (30 * MS_NS, 6 * MS_NS)
    assert reply.ask is not None


def test_an_answer_in_other_words_says_how_likely_it_is() -> None:
    """Its span; one of a question that is still checked says so, and how alike the kept one is."""
    pytest.importorskip("numpy")
    trips = Trips(hold_ms=9_000, permits=99)
    sure = {"wrong_max": 0.05, "confidence": 0.6, "check_share": 0.01}
    wording = Wording({"acme": worded("tenant:a", **sure)})
    trips.processor.cache, trips.processor.event_cluster = wording.cache, "events"
    ways = ("How can I reset my password?", "How do I reset my password please", "how to reset my password")
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["steersman.cache"] == "miss":
        assert len(seen) < 60
        body = {**SURE, "messages": [{"role": "user", "content": ways[len(seen) % 3]}]}
        exchange, reply = trips.ask(METADATA, body=body, deliver=False)
        assert reply.wait
        replies: list[Reply] = []
        exchange.when_ready(replies.append)
        wording.port.deliver()
        assert replies
        trips.notes.clear()
        trips.deliver(exchange)
        seen.append(dict(trips.spans()["steersman.decide"].attributes))
        if placed := replies[0].reservation_id:
            wording.cache.fill(placed, answer_of("Click on it."))
        wording.port.deliver()
        wording.forget_exact()
    assert (seen[0]["steersman.cache.words"], "steersman.cache.similarity" in seen[0]) == ("unknown", False)
    assert seen[-2]["steersman.cache.words"] == "unsure"
    assert 0.75 <= float(seen[-2]["steersman.cache.similarity"]) <= 1.0
    assert (seen[-1]["steersman.cache"], seen[-1]["steersman.cache.words"]) == ("semantic", "hit")
    assert 0.9 < float(seen[-1]["steersman.cache.likely"]) <= 1.0


def test_a_request_that_is_not_looked_up_says_nothing_of_the_cache() -> None:
    """Nor does one where there is none."""
    for has in (True, False):
        trips = Trips()
        if has:
            cached(trips)
        _, reply = trips.ask(METADATA)
        trips.end(reply)
        for span in trips.spans().values():
            assert not [name for name in span.attributes if name.startswith("steersman.cache")]
