"""The decision alone: no gRPC, no Envoy. Parse and decide apart, and the whole exchange of bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from random import Random

from rows import Row, best_us

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.decide import resolve
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome, Reject, Routed
from extproc.core.placement import place
from extproc.core.reading import parse
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.routes import find_route
from extproc.core.scheduler import Scheduler, SchedulerLimits
from extproc.core.tenant import ANONYMOUS, Directory
from extproc.observe.stats import Stats
from extproc.observe.what_if import Recent
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor

AIMS_US = {10: 60.0, 100: 250.0, 1000: 2000.0}
#: Streams on each endpoint.
STREAMS = 20
PROMPTS = {"1 KB": 1_000, "400 KB": 400_000}


def _scheduler(endpoints: int, strategy: str = "steer") -> Scheduler:
    pool = PoolSpec(
        name="chat",
        models=("m",),
        strategy=strategy,
        endpoints=tuple((f"10.0.{i // 250}.{i % 250 + 1}:80", "", 1000) for i in range(endpoints)),
    )
    scheduler = Scheduler(
        Fleet([pool]), instance="bench", default_model="m", limits=SchedulerLimits(), rng=Random(1)
    )
    rng = Random(2)
    for number in range(endpoints * STREAMS):
        tokens = rng.randrange(10, 500)
        request = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, stream=True, prompt_tokens=tokens)
        decision = scheduler.admit(request, ANONYMOUS, now_ns=number * 10_000_000)
        if isinstance(decision, Routed):
            scheduler.settlement.first_token(decision.reservation.id, now_ns=number * 10_000_000 + 1_000)
    return scheduler


def _decide(scheduler: Scheduler, request: Request, rng: Random) -> None:
    routing = resolve(
        request,
        ANONYMOUS,
        scheduler.fleet,
        scheduler.ledger,
        id="bench-1",
        default_model="m",
        reservations_max=10_000_000,
        now_ns=1 << 50,
    )
    assert not isinstance(routing, Reject)
    place(routing, scheduler.fleet, now_ns=1 << 50, rng=rng)


def _body(size: int) -> bytes:
    text = ("The quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size]
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
    ).encode()


def run() -> Iterator[Row]:
    """Yield microseconds per call."""
    route = find_route("POST", "/v1/chat/completions")
    assert route is not None
    rng = Random(3)
    for size_name, size in PROMPTS.items():
        body = _body(size)
        yield Row(f"parse, {size_name} prompt", best_us(lambda body=body: parse(route, body)), "µs")
        request = parse(route, body)
        assert not isinstance(request, Reject)
        for endpoints, aim in AIMS_US.items():
            scheduler = _scheduler(endpoints)
            yield Row(
                f"decide, steer, {endpoints} endpoints, {size_name} prompt",
                best_us(lambda scheduler=scheduler, request=request: _decide(scheduler, request, rng)),
                "µs",
                aim,
            )
    for size_name, size in PROMPTS.items():
        yield Row(f"exchange of bytes with settle, 10 endpoints, {size_name}", _exchange_us(size), "µs")


def headers_message(key: str, **more: str) -> pb.ProcessingRequest:
    """The headers of a request with this key, as Envoy sends them; `more` are further ones."""
    message = pb.ProcessingRequest()
    for name, value in {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        ":authority": "gateway",
        ":scheme": "http",
        "user-agent": "bench",
        "content-type": "application/json",
        "authorization": f"Bearer {key}",
        "x-request-id": "0b5ee4f6-4ee1-4a84-9b6b-5b2ab5ba2f6a",
        "x-forwarded-for": "10.1.2.3",
        **more,
    }.items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return message


def exchange_messages(size: int) -> tuple[Processor, bytes, bytes]:
    """A processor of 10 endpoints, and the two messages of a request with a prompt of so many bytes."""
    processor = Processor(
        _scheduler(10),
        Directory([], required=False),
        decisions_concurrent_max=100,
        body_bytes_max=1 << 30,
        clock=time.monotonic_ns,
    )
    processor.scheduler.events.observers = (Stats(), Recent())
    head = headers_message("sk-bench")
    body = pb.ProcessingRequest()
    body.request_body.body = _body(size)
    return processor, head.SerializeToString(), body.SerializeToString()


def _exchange_us(size: int) -> float:
    """Headers and body in, both answers out, then the settlement: all that is ours but the transport."""
    processor, head, body = exchange_messages(size)
    scheduler = processor.scheduler

    def once() -> None:
        exchange = Exchange(processor)
        exchange.receive(head)
        reply = exchange.receive(body)
        exchange.delivered()
        exchange.close()
        entry = scheduler.ledger.get(reply.reservation_id)
        assert entry is not None
        scheduler.settlement.settle(Outcome(reservation=entry.reservation, final=True, status=200), now_ns=1)

    return best_us(once)
