"""The response cache: what a hit costs beside a routed decision, what a miss adds, what answers take.

Requests are played through the objects that the service is built of, as bytes in and bytes out; neither Envoy
nor a transport is in it. Prompts are all different but for the hits', so that no prefix is known.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import median

import uvloop
from bench_decide import headers_message
from rows import Row

from extproc._pb import ext_proc_pb2 as pb
from extproc.cache.memory import MemoryAnswers
from extproc.cache.redis.answers import RedisAnswers
from extproc.cache.sealed import AnswerSeal
from extproc.cache.store import KeptAnswer, packed
from extproc.config.model import Config
from extproc.core.cachekeys import AskAnswer, Usage
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
    yield from _redis(rng)


def _redis(rng: Random) -> Iterator[Row]:
    """What a look into a Redis of this machine takes, one at a time; nothing without a redis-server."""
    binary = shutil.which("redis-server")
    if binary is None:
        return
    with socket.socket() as found, tempfile.TemporaryDirectory() as folder:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        given = [
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        server = subprocess.Popen([binary, *given], stdout=subprocess.DEVNULL)
        try:
            for name, keys in (("", []), (", encrypted", [b"k" * 32])):
                url = f"redis://127.0.0.1:{port}/0"
                yield from uvloop.run(_looks(url, rng, name, keys))
            yield from uvloop.run(_hits(url, rng))
        finally:
            server.kill()
            server.wait()


def _store(url: str, prefix: str, keys: list[bytes]) -> RedisAnswers:
    return RedisAnswers(
        url,
        prefix=prefix,
        name="bench",
        seal=AnswerSeal(keys),
        bytes_max=1 << 30,
        clock=time.monotonic_ns,
        on_purged=lambda _: None,
        budget_s=1.0,
    )


async def _hits(url: str, rng: Random) -> list[Row]:
    """Hits from Redis, one at a time and sixteen at once, beside decisions that are routed."""
    head = headers_message(KEY).SerializeToString()
    plain, caching = app(cache=False), app(cache=True)
    cache, store = caching.caching.cache, _store(url, "hits", [])
    assert cache is not None
    store.start(lambda *_: False)
    try:
        await _until(lambda: store.session.connected)
        cache.store = store
        known = [body(rng, 1_000) for _ in range(REQUESTS)]
        await _fill_there(caching, head, known, rng, store)
        routed: list[float] = []
        took: dict[int, list[float]] = {1: [], 16: []}
        for _ in range(ROUNDS):
            routed += timed(plain, head, [body(rng, 1_000) for _ in range(REQUESTS)])
            for at_once, each in took.items():
                for start in range(0, REQUESTS, at_once):
                    some = known[start : start + at_once]
                    begun = time.thread_time_ns()
                    if at_once == 1:
                        await _hit(caching, head, some[0])
                    else:
                        await asyncio.gather(*(_hit(caching, head, one) for one in some))
                    each.append((time.thread_time_ns() - begun) / 1e3 / len(some))
        assert cache.looked["acme", "hit"] == 2 * ROUNDS * REQUESTS
    finally:
        await store.close()
    base = median(routed)
    return [
        Row("cache: a hit from Redis over a routed decision, 1 KB", median(took[1]) / base, "times", 1.2),
        Row("cache: the same, sixteen at once", median(took[16]) / base, "times", 1.2),
    ]


async def _hit(made: App, head: bytes, message: bytes) -> None:
    """One request, answered from the store."""
    exchange = Exchange(made.processor)
    exchange.receive(head)
    asked = exchange.receive(message).ask
    assert isinstance(asked, AskAnswer)
    assert made.processor.cache is not None
    exchange.looked(await made.processor.cache.ask(asked))
    exchange.close()


async def _fill_there(made: App, head: bytes, bodies: list[bytes], rng: Random, store: RedisAnswers) -> None:
    """Have every one of these answered once; the wire's clock stands still, the store's does not."""
    cache = made.caching.cache
    assert cache is not None
    cache._clock = time.monotonic_ns
    for each in bodies:
        exchange = Exchange(made.processor)
        exchange.receive(head)
        asked = exchange.receive(each).ask
        assert isinstance(asked, AskAnswer)
        exchange.looked(await cache.ask(asked))
        cache.fill(next(reversed(cache._awaited)), answer(rng))
        exchange.close()
    await _until(lambda: store.counts["put.kept"] == len(bodies))


async def _looks(url: str, rng: Random, name: str, keys: list[bytes]) -> list[Row]:
    store = _store(url, f"bench{len(keys)}", keys)
    store.start(lambda *_: False)
    try:
        await _until(lambda: store.session.connected)
        known = [sha256(b"%d" % i).digest() for i in range(REQUESTS)]
        now_ns = time.monotonic_ns()
        for key in known:
            kept = _kept(answer(rng), now_ns + (1 << 50))
            store.put("tenant:acme", key, kept, scope_bytes_max=1 << 30, begun_ns=now_ns, now_ns=now_ns)
        await _until(lambda: store.counts["put.kept"] == REQUESTS)
        took: list[float] = []
        cpu_ns = 0
        for _ in range(ROUNDS):
            for key in known:
                begun, begun_cpu = time.perf_counter(), time.thread_time_ns()
                found = await store.ask("tenant:acme", key)
                took.append((time.perf_counter() - begun) * 1e6)
                assert isinstance(found, KeptAnswer)
                found.body()
                cpu_ns += time.thread_time_ns() - begun_cpu
        await asyncio.sleep(1.2)
        size = store.figures().size
    finally:
        await store.close()
    took.sort()
    return [
        Row(f"cache: a look in Redis, median{name}", median(took), "µs"),
        Row(f"cache: a look in Redis, 99th of 100{name}", took[len(took) * 99 // 100], "µs", 5_000.0),
        Row(f"cache: a look in Redis, CPU of the service{name}", cpu_ns / len(took) / 1e3, "µs"),
        Row(f"cache: an answer in Redis by its own books{name}", size / REQUESTS, "bytes"),
    ]


async def _until(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 30, "it did not happen"
        await asyncio.sleep(0.01)


def _kept(whole: bytes, expires_ns: int) -> KeptAnswer:
    return KeptAnswer(
        packed=packed(whole),
        length=len(whole),
        stream=False,
        tenant="acme",
        model="m",
        pool="chat",
        usage=Usage(200, ANSWER_WORDS),
        made_ns=0,
        expires_ns=expires_ns,
    )


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
        kept = _kept(whole, 1 << 60)
        store.put(f"tenant:{i % 100}", sha256(b"%d" % i).digest(), kept, scope_bytes_max=1 << 40, now_ns=0)
    grown = (resident() - before) / 1e6
    name = f"cache: {ENTRIES:,} answers of {length // ENTRIES:,} bytes, the process grows by"
    yield Row(name, grown, "MB", 300.0)
    yield Row("cache: the same by its own books", store.size / 1e6, "MB")
    begun, found = time.perf_counter(), store.get("tenant:0", sha256(b"0").digest(), now_ns=0)
    assert isinstance(found, KeptAnswer)
    found.body()
    yield Row("cache: one look among them, unpacked", (time.perf_counter() - begun) * 1e6, "µs")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
