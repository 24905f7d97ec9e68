"""What each route costs in our own code up to its decision: headers and a body of about 1 KB, as bytes.

Neither Envoy nor a transport is in it, and no end: see `path`. Requests of all routes take turns, so that a
busy moment meets them alike; compare the ratios. The answer to Envoy is in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from hashlib import sha256
from statistics import median
from typing import Any, NamedTuple

from bench_decide import headers_message
from rows import Row

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.model import Config
from extproc.service.app import App
from extproc.wire.exchange import Exchange

KEY = "sk-bench"
ENDPOINTS, ROUNDS, REQUESTS, SKIPPED = 10, 40, 10, 20
TEXT = "The quick brown fox jumps over lazy dogs and runs home. " * 16
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\0" * 900
)


class Played(NamedTuple):
    """A request: its path, its body (none for GET), and what its headers say besides."""

    path: str
    body: Any
    headers: dict[str, str]


_SAYS = [{"role": "user", "content": TEXT}]
ROUTES = {
    "chat": Played("/v1/chat/completions", {"model": "m", "messages": _SAYS, "max_tokens": 50}, {}),
    "completion": Played("/v1/completions", {"model": "m", "prompt": TEXT, "max_tokens": 50}, {}),
    "TGI's generate": Played("/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 50}}, {}),
    "responses": Played("/v1/responses", {"model": "m", "input": TEXT, "max_output_tokens": 50}, {}),
    "messages": Played("/v1/messages", {"model": "m", "messages": _SAYS, "max_tokens": 50}, {}),
    "embeddings": Played("/v1/embeddings", {"model": "m", "input": [TEXT[:225]] * 4}, {}),
    "rerank": Played("/v1/rerank", {"model": "m", "query": "fox?", "documents": [TEXT[:225]] * 4}, {}),
    "transcription": Played("/v1/audio/transcriptions", FORM, {"content-length": "25000000"}),
    "speech": Played("/v1/audio/speech", {"model": "m", "input": TEXT, "voice": "x"}, {}),
    "tokenize": Played("/tokenize", {"model": "m", "prompt": TEXT}, {}),
    "own, embedding": Played("/own/embed", {"model": "m", "texts": [TEXT[:225]] * 4}, {}),
    "own, generation": Played("/own/write", {"o": {"model": "m", "most": 50}, "text": TEXT}, {}),
}
OWN = [
    {"path": "/own/embed", "work": "embedding", "input": ["texts"]},
    {
        "path": "/own/write",
        "work": "generation",
        "model": {"field": "o.model"},
        "input": ["text"],
        "output_limit": "o.most",
    },
]


class Player:
    """Plays requests of every route through one service, each until it is decided."""

    def __init__(self) -> None:
        self._now_ns = 1 << 50
        listed = [{"address": f"10.0.0.{i + 1}:80"} for i in range(ENDPOINTS)]
        config = {
            "pools": [{"name": "p", "models": ["m"], "engine": "vllm", "endpoints": listed}],
            "routes": OWN,
            "tenants": [{"name": "acme", "keys": [{"sha256": sha256(KEY.encode()).hexdigest()}]}],
        }
        self.app = App(Config.model_validate(config), clock=lambda: self._now_ns)

    def play(self, head: bytes, body: bytes) -> float:
        """Microseconds of CPU that a request took to its decision; it is undone then."""
        self._now_ns += 10_000_000
        began = time.thread_time_ns()
        exchange = Exchange(self.app.processor)
        exchange.receive(head)
        reply = exchange.receive(body)
        exchange.delivered()
        exchange.close()
        took_ns = time.thread_time_ns() - began
        assert reply.reservation_id, reply
        self.app.scheduler.cancel(reply.reservation_id, now_ns=self._now_ns)
        return took_ns / 1e3


def messages(played: Played) -> tuple[bytes, bytes]:
    """A request as Envoy shows it."""
    head = headers_message(KEY, **played.headers)
    for header in head.request_headers.headers.headers:
        if header.key == ":path":
            header.raw_value = played.path.encode()
    body = pb.ProcessingRequest()
    form = isinstance(played.body, bytes)
    body.request_body.body = played.body if form else json.dumps(played.body).encode()
    body.request_body.end_of_stream = not form
    return head.SerializeToString(), body.SerializeToString()


def run() -> Iterator[Row]:
    """Yield the median of each route, and its ratio to a chat's in the same run."""
    player = Player()
    asked = {name: messages(played) for name, played in ROUTES.items()}
    took: dict[str, list[float]] = {name: [] for name in ROUTES}
    for _ in range(ROUNDS):
        for name, (head, body) in asked.items():
            took[name] += [player.play(head, body) for _ in range(REQUESTS)]
    usual = median(took["chat"][SKIPPED:])
    for name, each in took.items():
        found = median(each[SKIPPED:])
        yield Row(f"routes: {name}, 1 KB to its decision", found, "µs")
        yield Row(f"routes: {name}, of a chat's", found / usual, "times")
