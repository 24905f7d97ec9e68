from __future__ import annotations

import pytest
from msgspec import structs
from trips import OFFSET_NS, PARENT, SAMPLED, TRACE, UNSAMPLED, Trips

from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.routes import find_route
from extproc.observe.tracing import propagation
from extproc.observe.tracing.request_trace import (
    ORPHANS_MAX,
    Decided,
    Expired,
    RequestTrace,
    TraceEnd,
    hashed,
    prompt_of,
)
from tests.stand.changed import replace


def test_the_parent_is_the_call_s() -> None:
    """Envoy's word counts, never the client's header beside it."""
    trips = Trips()
    forged = ("traceparent", f"00-{'1' * 32}-{'2' * 16}-01")
    _, reply = trips.ask(("traceparent", SAMPLED), ("tracestate", "v=1"), headers=(forged,))
    carried = propagation.read(trips.carried(reply))
    assert carried is not None
    assert (carried.trace, carried.parent, carried.state) == (TRACE, PARENT, "v=1")


def test_the_client_s_header_where_envoy_names_none() -> None:
    """With Envoy's tracer off; and not where the configuration says that clients do not count."""
    header = ("traceparent", SAMPLED)
    trips = Trips()
    _, reply = trips.ask(headers=(header,))
    carried = propagation.read(trips.carried(reply))
    assert carried is not None
    assert carried.trace == TRACE
    trips = Trips(client_parent=False)
    _, reply = trips.ask(headers=(header,))
    carried = propagation.read(trips.carried(reply))
    assert carried is not None
    assert carried.trace != TRACE
    assert carried.parent == "0" * 16


@pytest.mark.parametrize(
    ("ratio", "parent", "spans"),
    [(1.0, UNSAMPLED, False), (0.0, SAMPLED, True), (0.0, None, False), (1.0, None, True)],
)
def test_sampling(ratio: float, parent: str | None, spans: bool) -> None:
    """A parent's flag holds; without a parent it is the ratio. What is not sampled carries nothing."""
    trips = Trips(sample_ratio=ratio)
    _, reply = trips.ask(*([("traceparent", parent)] if parent else []))
    assert bool(trips.carried(reply)) is spans
    trips.end(reply)
    assert bool(trips.spans()) is spans
    # Its end is noted in any case: the metrics count everybody.
    assert [type(note) for note in trips.notes] == [Decided, TraceEnd] if spans else [TraceEnd]


def test_the_ratio_is_kept() -> None:
    """Of many requests about so many are followed."""
    trips = Trips(sample_ratio=0.25)
    followed = 0
    for _ in range(400):
        _, reply = trips.ask()
        followed += bool(trips.carried(reply))
        trips.scheduler.cancel(reply.reservation_id, now_ns=trips.now_ns)
    assert 60 < followed < 140


def test_traces_off() -> None:
    """Only metrics: nothing rides along, ends are noted."""
    trips = Trips(traces=False)
    _, reply = trips.ask(("traceparent", SAMPLED))
    assert trips.carried(reply) == ""
    trips.end(reply)
    assert [type(note) for note in trips.notes] == [TraceEnd]


def test_a_record_that_never_comes() -> None:
    """It expires, and its trace with it; of another's nothing is known."""
    trips = Trips()
    _, reply = trips.ask(("traceparent", SAMPLED))
    reservation = trips.reservation(reply)
    assert trips.request_traces.in_flight == 1
    trips.request_traces.expired(reservation, now_ns=trips.now_ns)
    trips.request_traces.expired(reservation, now_ns=trips.now_ns)
    assert [type(note) for note in trips.notes] == [Decided, Expired]
    assert trips.request_traces.in_flight == 0


def test_another_service_s_record() -> None:
    """It is noted when its time has come, by the heir alone; without a trace, by nobody."""
    for lives, noted in ((True, 1), (False, 0)):
        trips = Trips(lives=lives)
        trips.request_traces.orphan_wait_ns = 5_000
        _, reply = trips.ask(("traceparent", SAMPLED))
        trips.notes.clear()
        trips.end(reply, here=False)
        trips.end(reply, here=False, trace="")
        trips.request_traces.step(now_ns=trips.now_ns + 4_999)
        assert trips.notes == []
        trips.request_traces.step(now_ns=trips.now_ns + 5_000)
        assert len(trips.notes) == noted


def test_the_last_step_and_the_bound_of_orphans() -> None:
    """At the end nobody waits any longer; above the bound they are dropped and counted."""
    trips = Trips()
    trips.request_traces.orphan_wait_ns = 5_000
    _, reply = trips.ask(("traceparent", SAMPLED))
    trips.notes.clear()
    for _ in range(ORPHANS_MAX + 3):
        trips.end(reply, here=False)
    assert trips.request_traces.dropped == 3
    trips.request_traces.step(now_ns=trips.now_ns, last=True)
    assert len(trips.notes) == ORPHANS_MAX


def test_the_wall_clock_is_followed() -> None:
    """A clock that was set right moves later spans, not earlier marks."""
    trips = Trips()
    wall_ns = OFFSET_NS + 7_000_000_000
    trips.request_traces._wall_ns = lambda: trips.now_ns + wall_ns
    trips.request_traces.step(now_ns=trips.now_ns)
    trips.ask(("traceparent", SAMPLED))
    (note,) = trips.notes
    assert isinstance(note, Decided)
    assert note.offset_ns == wall_ns


@pytest.mark.parametrize(("users", "said"), [("none", ""), ("hashed", hashed("alice")), ("named", "alice")])
def test_the_conversation(users: str, said: str) -> None:
    """Left out, hashed, or as it is."""
    trips = Trips(users=users)
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "user": "alice"}
    _, reply = trips.ask(("traceparent", SAMPLED), body=body)
    carried = propagation.read(trips.carried(reply))
    assert carried is not None
    assert carried.user == said
    assert "alice" not in hashed("alice")


def messages(body: bytes, characters_max: int, path: str = "/v1/chat/completions") -> list[tuple[str, str]]:
    route = find_route("POST", path)
    assert route is not None
    request = parse(route, body)
    assert not isinstance(request, Reject)
    return list(prompt_of(request, characters_max))


def test_a_prompt_s_messages() -> None:
    """Roles and texts; parts of one message are one; images and tools leave no trace."""
    body = (
        b'{"tools": [{"type": "function"}], "messages": [{"role": "system", "content": "be kind"},'
        b'{"role": "user", "content": [{"type": "text", "text": "look "},'
        b'{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "here"}]}]}'
    )
    assert messages(body, 100) == [("system", "be kind"), ("user", "look here")]
    assert messages(body, 9) == [("system", "be kind"), ("user", "lo")]
    assert messages(b'{"prompt": ["one", "two"]}', 100, "/v1/completions") == [
        ("user", "one"),
        ("user", "two"),
    ]
    assert messages(b'{"inputs": "three"}', 2, "/generate") == [("user", "th")]


def test_no_prompt_is_kept_of_others() -> None:
    """Only of a tenant that opted in, and only where it is sampled."""
    for key, parent, kept in (("open", SAMPLED, True), ("key", SAMPLED, False), ("open", UNSAMPLED, False)):
        exchange, _ = Trips().ask(("traceparent", parent), key=key)
        assert isinstance(exchange.request_trace, RequestTrace)
        assert bool(exchange.request_trace.prompt) is kept


def test_a_placement_that_was_undone() -> None:
    """Placed again, or refused after all: nothing of the first stays in flight."""
    for then in ("again", "refused"):
        trips = Trips()
        exchange, _ = trips.ask(("traceparent", SAMPLED), deliver=False)
        request_trace = exchange.request_trace
        assert isinstance(request_trace, RequestTrace)
        routed = request_trace.routed
        assert routed is not None
        if then == "again":
            other = replace(routed, reservation=structs.replace(routed.reservation, id="i-99"))
            request_trace.placed(other)
        else:
            request_trace.answer(Reject(status=503, code="internal", message="a fault"))
        assert trips.request_traces.in_flight == (then == "again")
        request_trace.delivered()
        spans = trips.spans()
        assert ("chat m" in spans) is (then != "again")
