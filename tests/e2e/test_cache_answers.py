"""What the cache must never keep, through the real Envoy; and that filling it touches no stream."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cache_engine import CacheEngine
from cache_gateway import figures, judged, kept, looked, over_an_engine
from gateway import KEYS, Gateway, wait_for

pytestmark = pytest.mark.envoy

BOUND = 256 * 1024
EVENTS = "text/event-stream"


@pytest.fixture
def stand() -> Iterator[tuple[Gateway, CacheEngine]]:
    with over_an_engine() as running:
        yield running


def ask(gateway: Gateway, text: str, *, stream: bool = False, read: int | None = None) -> bytes:
    """A request's answer as far as it came; `read` pieces of it, then the client leaves."""
    body = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "stream": stream,
    }
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.read() if read is None else answer.read(read)
    except http.client.IncompleteRead as error:
        return error.partial
    finally:
        connection.close()


def whole(text: str = "hi", **change: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    value = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}, **change}
    return json.dumps(value).encode()


def piece(text: str = "hi", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_bad_answers_reach_their_client_and_nobody_else(stand: tuple[Gateway, CacheEngine]) -> None:
    """Errors, empty, refused and over-large ones are passed on as they are, and asked for again."""
    gateway, engine = stand
    cases = [
        ("error in a 200", "", whole(error={"message": "no"})),
        ("empty", "empty", whole("")),
        ("no end", "cut", whole().replace(b'"stop"', b"null")),
        ("filtered", "refused", whole().replace(b'"stop"', b'"content_filter"')),
        ("no usage", "uncounted", whole(usage=None)),
        ("no JSON", "unreadable", b"no JSON at all"),
        ("too large", "", whole("x" * BOUND)),
    ]
    for name, judgement, body in cases:
        engine.tell(body[: len(body) // 2], body[len(body) // 2 :])
        for _ in range(2):
            before = engine.requests
            assert ask(gateway, name) == body, name
            assert engine.requests == before + 1, name
        if judgement:
            judged(gateway, judgement, 2)
        wait_for("quiet", gateway.quiet)
    for status in (400, 429, 500):
        engine.tell(whole(), status=status)
        ask(gateway, f"status {status}")
        ask(gateway, f"status {status}")
    wait_for("quiet", gateway.quiet)
    assert figures(gateway)["answers"] == 0
    assert looked(gateway, "hit") == 0
    engine.tell(whole())
    ask(gateway, "good")
    kept(gateway, 1)


def test_cut_streams_are_never_kept(stand: tuple[Gateway, CacheEngine]) -> None:
    """Cut by the engine, without their end, or left by their client: each is asked for again."""
    gateway, engine = stand
    pieces = [piece(), piece(" there"), piece("", "stop"), DONE]
    good = b"".join(pieces)
    for count in range(1, 4):
        engine.tell(*pieces[:count], kind=EVENTS, cut=True)
        assert good.startswith(ask(gateway, f"cut {count}", stream=True))
    for count in range(1, 4):
        engine.tell(*pieces[:count], kind=EVENTS)
        assert ask(gateway, f"short {count}", stream=True) == b"".join(pieces[:count])
    engine.tell(piece(), b'data: {"error":{"message":"x"}}\n\n', piece("", "stop"), DONE, kind=EVENTS)
    ask(gateway, "an error in it", stream=True)
    engine.tell(*pieces, kind=EVENTS, holds_at=2)
    assert ask(gateway, "left", stream=True, read=20) == good[:20]
    engine.goes_on.set()
    wait_for("quiet", gateway.quiet)
    assert figures(gateway)["answers"] == 0
    # Whole with [DONE], though the connection is cut right behind it.
    engine.tell(*pieces, kind=EVENTS, cut=True)
    assert ask(gateway, "good", stream=True) == good
    kept(gateway, 1)
    before = engine.requests
    assert ask(gateway, "good", stream=True) == good
    assert engine.requests == before


def test_answers_up_to_the_bound_are_kept_and_given_whole(stand: tuple[Gateway, CacheEngine]) -> None:
    """A body of just 256 KiB comes back as it was; one byte more is not kept."""
    gateway, engine = stand
    room = BOUND - len(whole(""))
    for size, count in ((room, 1), (room + 1, 1)):
        body = whole("x" * size)
        engine.tell(body)
        assert ask(gateway, f"{size}") == body
        wait_for("quiet", gateway.quiet)
        kept(gateway, count)
    before = engine.requests
    assert ask(gateway, f"{room}") == whole("x" * room)
    assert engine.requests == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_is_gone_cuts_no_stream(
    stand: tuple[Gateway, CacheEngine], number: signal.Signals
) -> None:
    """Answers are gathered, and the service is killed or hangs before they end: all streams come whole."""
    gateway, engine = stand
    pieces = [piece(f" {i}") for i in range(50)] + [piece("", "stop"), DONE]
    engine.tell(*pieces, kind=EVENTS, holds_at=25)
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(ask, gateway, f"question {i}", stream=True) for i in range(8)]
        wait_for("all in flight", lambda: gateway.status()["in_flight"] == 8)
        wait_for("half of each", engine.holding.is_set)
        gateway.service.signal(number)
        engine.goes_on.set()
        answers = [each.result(60) for each in running]
    assert answers == [b"".join(pieces)] * 8
    if number is signal.SIGKILL:
        gateway.service.kill()
        gateway.start_service()
    else:
        gateway.service.signal(signal.SIGCONT)
    engine.tell(whole())
    wait_for("decisions again", lambda: ask(gateway, "again") == whole())
    wait_for("answers again", lambda: figures(gateway)["answers"] > 0)
