"""The response cache: what a hit costs beside a routed decision, what a miss adds, what answers take.

Requests are played through the objects that the service is built of, as bytes in and bytes out; neither Envoy
nor a transport is in it. Prompts are all different but for the hits', so that no prefix is known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import median

from bench_decide import headers_message
from rows import Row

from extproc._pb import ext_proc_pb2 as pb
from extproc.cache.memory import MemoryAnswers
from extproc.cache.store import KeptAnswer, packed
from extproc.config.model import Config
from extproc.core.cachekeys import Usage
from extproc.service.app import App
from extproc.wire.exchange import Exchange

KEY = "sk-bench"
REQUESTS, ROUNDS = 100, 15
ENTRIES = 100_000
#: Words of an answer, about six bytes each.
ANSWER_WORDS = 300
PROMPT_BYTES = {"1 KB": 1_000, "10 KB": 10_000}
WORDS = [f"w{i:04d}" for i in range(2_000)]


def app(*, cache: bool) -> App:
    """A service of the default configuration, with or without a cache."""
    tenant = {"name": "acme", "keys": [{"sha256": sha256(KEY.encode()).hexdigest()}]}
    endpoints = [{"address": f"10.0.0.{i + 1}:80", "max_concurrent": 512} for i in range(10)]
    made = App(
        Config.model_validate(
            {
                "pools": [{"name": "chat", "models": ["m"], "endpoints": endpoints}],
                "tenants": [tenant | ({"cache": {"mode": "on"}} if cache else {})],
                **({"cache": {}} if cache else {}),
            }
        ),
        clock=lambda: 1 << 50,
    )
    made.processor.event_cluster = "steersman.event"
    return made


def body(rng: Random, size: int) -> bytes:
    """A chat of so many bytes, as Envoy's message."""
    text = " ".join(rng.choices(WORDS, k=size // 6))
    content = {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 99,
    }
    message = pb.ProcessingRequest()
    message.request_body.body = json.dumps(content).encode()
    message.request_body.end_of_stream = True
    return message.SerializeToString()


def answer(rng: Random) -> bytes:
    """A chat's whole answer, of words."""
    said = {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=ANSWER_WORDS))}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 200, "completion_tokens": ANSWER_WORDS, "total_tokens": 200 + ANSWER_WORDS}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def timed(made: App, head: bytes, bodies: list[bytes]) -> list[float]:
    """Microseconds of CPU from a request's headers to its decision's bytes."""
    took = []
    for each in bodies:
        exchange = Exchange(made.processor)
        begun = time.thread_time_ns()
        exchange.receive(head)
        exchange.receive(each)
        took.append((time.thread_time_ns() - begun) / 1e3)
        exchange.close()  # not delivered: its reservation is undone
    return took


def run() -> Iterator[Row]:
    """Yield microseconds (medians, in short rounds that take turns), ratios and megabytes."""
    rng, head = Random(1), headers_message(KEY).SerializeToString()
    for name, size in PROMPT_BYTES.items():
        plain, caching = app(cache=False), app(cache=True)
        known = [body(rng, size) for _ in range(REQUESTS)]
        _fill(caching, head, known, rng)
        routed, missed, hit = [], [], []
        for _ in range(ROUNDS):
            fresh = [body(rng, size) for _ in range(REQUESTS)]
            routed += timed(plain, head, fresh)
            missed += timed(caching, head, fresh)
            hit += timed(caching, head, known)
        cache = caching.caching.cache
        assert cache is not None
        assert cache.looked["acme", "hit"] == ROUNDS * REQUESTS
        base = median(routed)
        yield Row(f"cache: a routed decision without one, {name}", base, "µs")
        yield Row(f"cache: what a miss adds, {name}", median(missed) - base, "µs", 60.0)
        yield Row(f"cache: a hit over a routed decision, {name}", median(hit) / base, "times", 1.2)
    yield from _memory(rng)


def _fill(made: App, head: bytes, bodies: list[bytes], rng: Random) -> None:
    """Have every one of these answered once."""
    cache, processor = made.caching.cache, made.processor
    assert cache is not None
    for each in bodies:
        before = cache.awaited
        exchange = Exchange(processor)
        exchange.receive(head)
        exchange.receive(each)
        assert cache.awaited == before + 1
        cache.fill(next(reversed(cache._awaited)), answer(rng))
        exchange.close()
    assert cache.filled["kept"] == len(bodies)


def _memory(rng: Random) -> Iterator[Row]:
    """What answers take, by what the process grows; half of their words are in every one."""
    before = resident()
    store = MemoryAnswers(1 << 40)
    length = 0
    for i in range(ENTRIES):
        whole = answer(rng)
        length += len(whole)
        kept = KeptAnswer(
            packed=packed(whole),
            length=len(whole),
            stream=False,
            tenant="acme",
            model="m",
            pool="chat",
            usage=Usage(200, ANSWER_WORDS),
            made_ns=0,
            expires_ns=1 << 60,
        )
        store.put(f"tenant:{i % 100}", sha256(b"%d" % i).digest(), kept, scope_bytes_max=1 << 40, now_ns=0)
    grown = (resident() - before) / 1e6
    name = f"cache: {ENTRIES:,} answers of {length // ENTRIES:,} bytes, the process grows by"
    yield Row(name, grown, "MB", 300.0)
    yield Row("cache: the same by its own books", store.size / 1e6, "MB")
    begun, found = time.perf_counter(), store.get("tenant:0", sha256(b"0").digest(), now_ns=0)
    assert found is not None
    found.body()
    yield Row("cache: one look among them, unpacked", (time.perf_counter() - begun) * 1e6, "µs")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
