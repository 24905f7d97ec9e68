"""What a request costs in our own code, by part: neither Envoy nor a transport is in it.

One streamed chat request after another is played through the objects that the service is built of (`App`,
the default configuration, 10 endpoints): its headers, its body, the first-token event and its record of the
access log, as bytes in and bytes out. Time is simulated: requests come evenly, and others are in flight
meanwhile. The record is written as Envoy writes it, outside of what is measured.

The whole is the median of requests' CPU time. Parts are too short for that clock, which takes 2 µs itself:
theirs are medians of elapsed time, in short rounds between the others. Such a median has no preemption in
it, as long as a part is much shorter than a time slice. The mean of CPU time has garbage collection in it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from random import Random
from statistics import mean, median
from typing import Any, NamedTuple

from bench_decide import headers_message
from rows import Row

from extproc._pb import access_log_pb2
from extproc._pb import ext_proc_pb2 as pb
from extproc.config.model import Config
from extproc.core.contract import (
    COMPLETION_TOKENS_KEY,
    DECISION_NAMESPACE,
    EVENTS_KEY,
    FIRST_CHUNK_KEY,
    OBSERVED_NAMESPACE,
    PROMPT_TOKENS_KEY,
    RESERVATION_HEADER,
    RESERVATION_KEY,
)
from extproc.core.scheduler import Scheduler
from extproc.core.settlement import Settlement
from extproc.service.app import App
from extproc.wire import accesslog
from extproc.wire.exchange import Exchange
from extproc.wire.firsttoken import FirstTokens
from extproc.wire.responder import EnvoyResponder

#: A call's headers, as a transport gives them.
Metadata = tuple[tuple[str, str], ...]

ENDPOINTS, SYSTEMS = 10, 20
ROUNDS, REQUESTS = 12, 200
#: The service's steps come after every so many requests, outside of what is measured.
STEP_EVERY = 5


class Load(NamedTuple):
    """Prompts of so many bytes, `prompts` different ones, one each `every_ns`; after so many others its first
    token comes, and it ends."""

    size: int
    prompts: int
    every_ns: int
    first_after: int
    end_after: int
    #: Microseconds that all of ours may take.
    aim: float | None = None


LOADS = {
    "1 KB": Load(1_000, 400, 10_000_000, 6, 90),
    "400 KB": Load(400_000, 8, 5_000_000_000, 2, 8, 4_000.0),
}
KEY = "sk-bench"
#: What is told of, in the order of a request's way; the rest of the exchange is reading.
PARTS = ("reading", "decision", "answer", "event", "record", "settling", "observers")
NAMES = {
    "reading": "reading headers and body, the stream's states",
    "decision": "the decision",
    "answer": "writing the answer",
    "event": "the first-token event",
    "record": "reading the access log's record",
    "settling": "settling",
    "observers": "observers (metrics, analytics, alerts, stats)",
}


def app(clock: Callable[[], int]) -> App:
    """A service of the default configuration, before anything listens."""
    return App(
        Config.model_validate(
            {
                "pools": [
                    {
                        "name": "chat",
                        "models": ["m"],
                        "endpoints": [{"address": f"10.0.0.{i + 1}:80"} for i in range(ENDPOINTS)],
                    }
                ],
                "tenants": [{"name": "acme", "keys": [{"sha256": sha256(KEY.encode()).hexdigest()}]}],
            }
        ),
        clock=clock,
    )


class Player:
    """Plays requests through one service."""

    def __init__(self, load: Load) -> None:
        self._now_ns = 1 << 50
        self._load = load
        self.app = app(lambda: self._now_ns)
        self.app.processor.event_cluster = "steersman.event"
        self._first_tokens = FirstTokens(self.app.processor, self.app.requests.first_token)
        rng = Random(1)
        self._head = _head()
        systems = [f"You are assistant {i}. " + "Be brief, kind and exact. " * 12 for i in range(SYSTEMS)]
        words = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "runs", "home")
        filler = " ".join(rng.choices(words, k=load.size // 4))
        self._bodies = [
            _body(rng.choice(systems), f"{i} {filler}"[: load.size - 300]) for i in range(load.prompts)
        ]
        self._number = 0
        #: The events' headers of those whose first token is to come, and the records of all, oldest first.
        self._prefilled: deque[Metadata] = deque()
        self._running: deque[bytes] = deque()

    def begin(self) -> bytes:
        """Headers and body of one request; the answer to its body."""
        exchange = Exchange(self.app.processor)
        exchange.receive(self._head)
        reply = exchange.receive(self._bodies[self._number % len(self._bodies)])
        exchange.delivered()
        exchange.close()
        assert reply.reservation_id, reply
        return reply.data

    def follow(self) -> None:
        """The first token of who waits longest for it, and the record of the oldest in flight."""
        if len(self._prefilled) > self._load.first_after:
            self._first_tokens.take(self._prefilled.popleft())
        if len(self._running) > self._load.end_after:
            self._record(self._running.popleft())

    def _record(self, data: bytes) -> None:
        for outcome in accesslog.read(data, self.app.processor.seal, failed=_fails, forged=_forged):
            self.app.settle(outcome)

    def play(self, count: int) -> Iterator[float]:
        """Play so many; microseconds of CPU that each took."""
        for _ in range(count):
            self._now_ns += self._load.every_ns
            began = time.thread_time_ns()
            answer = self.begin()
            took_ns = time.thread_time_ns() - began
            event, record = _afterwards(answer, self._load)
            self._prefilled.append(event)
            self._running.append(record)
            began = time.thread_time_ns()
            self.follow()
            took_ns += time.thread_time_ns() - began
            self._number += 1
            if self._number % STEP_EVERY == 0:
                self.app.scheduler.step(now_ns=self._now_ns)
                self.app.analysing.listener.take()
            yield took_ns / 1e3


def _fails(error: Exception) -> None:
    raise error


def _forged() -> None:
    raise AssertionError("a record of ours was not taken")


def _head() -> bytes:
    message = headers_message(KEY, accept="*/*", **{"x-forwarded-proto": "http"})
    message.attributes["envoy.filters.http.ext_proc"].update({"source.address": "10.1.2.3:4711"})
    return message.SerializeToString()


def _body(system: str, text: str) -> bytes:
    message = pb.ProcessingRequest()
    message.request_body.body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 100,
        }
    ).encode()
    message.request_body.end_of_stream = True
    return message.SerializeToString()


def _afterwards(answer: bytes, load: Load) -> tuple[Metadata, bytes]:
    """The first-token event's call, and the record, of the request that was answered so."""
    response = pb.ProcessingResponse.FromString(answer)
    decided = response.dynamic_metadata.fields[DECISION_NAMESPACE].struct_value
    endpoints = response.dynamic_metadata.fields["envoy.lb"].struct_value
    message = access_log_pb2.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    common = entry.common_properties
    common.metadata.filter_metadata[DECISION_NAMESPACE].CopyFrom(decided)
    common.metadata.filter_metadata["envoy.lb"].CopyFrom(endpoints)
    begun_ns = 1_700_000_000_000_000_000
    common.metadata.filter_metadata[OBSERVED_NAMESPACE].update(
        {
            FIRST_CHUNK_KEY: str((begun_ns + load.first_after * load.every_ns) // 1_000),
            EVENTS_KEY: 80,
            PROMPT_TOKENS_KEY: 250,
            COMPLETION_TOKENS_KEY: 80,
            "done": True,
        }
    )
    address, _, port = next(iter(endpoints.fields.values())).string_value.partition(",")[0].partition(":")
    upstream = common.upstream_remote_address.socket_address
    upstream.address, upstream.port_value = address, int(port)
    client = common.downstream_remote_address.socket_address
    client.address, client.port_value = "10.1.2.3", 4711
    common.start_time.FromNanoseconds(begun_ns)
    common.duration.FromNanoseconds(load.end_after * load.every_ns)
    common.time_to_first_upstream_rx_byte.FromNanoseconds(50_000_000)
    common.time_to_last_upstream_rx_byte.FromNanoseconds(890_000_000)
    common.time_to_last_downstream_tx_byte.FromNanoseconds(895_000_000)
    common.upstream_cluster, common.route_name = "pool.chat/standard", "chat"
    common.upstream_request_attempt_count = 1
    common.access_log_type = access_log_pb2.DOWNSTREAM_END
    common.stream_id = "0b5ee4f6-4ee1-4a84-9b6b-5b2ab5ba2f6a"
    entry.request.path = "/v1/chat/completions"
    entry.request.request_body_bytes = 1_200
    entry.response.response_code.value = 200
    entry.response.response_body_bytes = 16_000
    entry.response.response_headers["content-type"] = "text/event-stream"
    entry.response.response_code_details = "via_upstream"
    sealed = decided.fields[RESERVATION_KEY].string_value
    return (("user-agent", "envoy"), (RESERVATION_HEADER, sealed)), message.SerializeToString()


class Clock:
    """Whose turn it is: each part's own time, without what it calls of the others."""

    def __init__(self) -> None:
        self.ns = dict.fromkeys(PARTS, 0)
        self._on: list[str] = []
        self._since = 0

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same call, on this part's account."""
        on, ns, now = self._on, self.ns, time.perf_counter_ns

        def timed(*args: Any, **kwargs: Any) -> Any:
            at = now()
            if on:
                ns[on[-1]] += at - self._since
            on.append(part)
            self._since = now()
            try:
                return call(*args, **kwargs)
            finally:
                at = now()
                ns[on.pop()] += at - self._since
                self._since = now()

        return timed

    @contextmanager
    def on(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """An attribute of a class or a module is timed for as long as this lasts."""
        plain = owner.__dict__[name]
        setattr(owner, name, self.around(plain, part))
        try:
            yield
        finally:
            setattr(owner, name, plain)


#: What is timed: whose, which, and on which part's account.
TIMED = (
    (Exchange, "receive", "reading"),
    (Exchange, "delivered", "reading"),
    (Exchange, "close", "reading"),
    (Scheduler, "admit", "decision"),
    (EnvoyResponder, "route", "answer"),
    (Player, "_record", "record"),
    (FirstTokens, "take", "event"),
    (Settlement, "settle", "settling"),
)
#: What observers hear of a request that is served.
EVENTS = ("placed", "decided", "first_token", "settled")


def _parts(player: Player) -> dict[str, list[float]]:
    """Microseconds of each request, by part."""
    clock = Clock()
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    with ExitStack() as stack:
        # The emitter's own, not its class's: it makes them for those who hear of each.
        told = ((player.app.scheduler.events, name, "observers") for name in EVENTS)
        for owner, name, part in (*TIMED, *told):
            stack.enter_context(clock.on(owner, name, part))
        for _ in player.play(REQUESTS):
            for part, spent in clock.ns.items():
                found[part].append(spent / 1e3)
                clock.ns[part] = 0
    return found


def run() -> Iterator[Row]:
    """Yield microseconds a request."""
    for name, load in LOADS.items():
        player = Player(load)
        list(player.play(2 * REQUESTS))
        totals: list[float] = []
        parts: dict[str, list[float]] = {part: [] for part in PARTS}
        for _ in range(ROUNDS):
            totals += player.play(REQUESTS)
            for part, spent in _parts(player).items():
                parts[part] += spent
        total = median(totals)
        for part in PARTS:
            yield Row(f"path, {name} prompt: {NAMES[part]}", median(parts[part]), "µs")
        yield Row(f"path, {name} prompt: all of ours", total, "µs", load.aim)
        yield Row(
            f"path, {name} prompt: parts, of the whole", sum(map(median, parts.values())) / total * 100, "%"
        )
        yield Row(f"path, {name} prompt: the mean, garbage collection included", mean(totals), "µs")
