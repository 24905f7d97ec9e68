"""A processor with request_traces, driven by Envoy's messages, whose notes are kept."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.tracing import OpenTelemetry
from extproc.core.outcome import End, Outcome, Reservation
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.observe.tracing.request_trace import Note, RequestTraces
from extproc.observe.tracing.semconv import RELEASES
from extproc.observe.tracing.spans import Span, Spans
from extproc.wire.exchange import Exchange
from extproc.wire.responder import Reply
from tests.stand.schedulers import make_pool, make_processor, make_scheduler, make_settled

MS_NS = 1_000_000
#: The wall clock is this much ahead of the monotonic one.
OFFSET_NS = 1_700_000_000_000_000_000
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Trips:
    """One service: two replicas of `permits` places each, requests of tenant acme."""

    def __init__(
        self,
        *,
        names: str = "0.1/dup",
        hold_ms: int = 0,
        lives: bool = True,
        permits: int = 1,
        **settings: Any,
    ) -> None:
        self.now_ns = 10_000 * MS_NS
        self.notes: list[Note] = []
        self.lives = lives
        pool = make_pool("10.0.0.1:80", "10.0.0.2:80", permits=permits)
        self.scheduler = make_scheduler(pool, policy=Policy(classes=(ClassSpec(hold_ns=hold_ms * MS_NS),)))
        tenants = [
            (Tenant(name="acme"), [hash_key("key")]),
            (Tenant(name="open", trace_prompts=True), [hash_key("open")]),
        ]
        self.processor = make_processor(
            self.scheduler, Directory(tenants, required=True), clock=lambda: self.now_ns
        )
        self.request_traces = self.processor.request_traces = RequestTraces(
            OpenTelemetry(endpoint="http://localhost:4317", **settings),
            clock=lambda: self.now_ns,
            wall_ns=lambda: self.now_ns + OFFSET_NS,
            rng=Random(2),
            offer=self.notes.append,
            heir=lambda _: self.lives,
        )
        self.spans_of = Spans(RELEASES[names], engines={"p": "tgi", "m": "tgi"}, rng=Random(3)).of

    def open(self, *metadata: tuple[str, str]) -> Exchange:
        """A stream of Envoy's, with its call's metadata."""
        exchange = Exchange(self.processor)
        exchange.request_trace = self.request_traces.begin(lambda: metadata)
        return exchange

    def ask(
        self,
        *metadata: tuple[str, str],
        path: str = "/v1/chat/completions",
        key: str = "key",
        body: Any = None,
        headers: tuple[tuple[str, str], ...] = (),
        deliver: bool = True,
    ) -> tuple[Exchange, Reply]:
        """A whole request, 1 ms from its headers to its body and 2 ms to the answer's leaving."""
        exchange = self.open(*metadata)
        message = pb.ProcessingRequest()
        for name, value in (
            (":method", "POST"),
            (":path", path),
            ("authorization", f"Bearer {key}"),
            *headers,
        ):
            message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        reply = exchange.receive(message.SerializeToString())
        self.now_ns += MS_NS
        if not reply.end:
            content = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
            message = pb.ProcessingRequest()
            message.request_body.body = json.dumps(content if body is None else body).encode()
            reply = exchange.receive(message.SerializeToString())
        self.now_ns += 2 * MS_NS
        if deliver and reply.end:
            self.deliver(exchange)
        return exchange, reply

    def deliver(self, exchange: Exchange) -> None:
        """The reply is out and the stream over."""
        exchange.delivered()
        exchange.close()

    def carried(self, reply: Reply) -> str:
        """What rides with the request."""
        fields = pb.ProcessingResponse.FromString(reply.data).dynamic_metadata.fields
        about = fields["steersman"].struct_value.fields
        return str(about["trace"].string_value) if "trace" in about else ""

    def reservation(self, reply: Reply) -> Reservation:
        """What was entered into the books."""
        entry = self.scheduler.ledger.get(reply.reservation_id)
        assert entry is not None
        return entry.reservation

    def end(self, reply: Reply, *, here: bool = True, **facts: Any) -> None:
        """Its record comes."""
        facts.setdefault("status", 200)
        facts.setdefault("end", End.OK)
        facts.setdefault("duration_ns", 500 * MS_NS)
        facts.setdefault("start_unix_ns", OFFSET_NS + self.now_ns - 500 * MS_NS)
        facts.setdefault("trace", self.carried(reply))
        outcome = Outcome(reservation=self.reservation(reply), final=True, attempts=1, **facts)
        self.request_traces.settled(make_settled(outcome, here=here), now_ns=self.now_ns)

    def spans(self) -> dict[str, Span]:
        """What the notes so far come to, by name; a name that comes twice fails."""
        spans = [span for note in self.notes for span in self.spans_of(note)]
        found = {span.name: span for span in spans}
        assert len(found) == len(spans), [span.name for span in spans]
        return found
