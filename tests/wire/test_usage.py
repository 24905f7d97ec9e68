"""Usage asked of engines in the client's name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome, Reservation
from extproc.core.request import RouteKind, UsageAsked
from extproc.wire.usage import EVERY, LAST, wanted, with_usage


def pool_of(engine: str, *, ask_usage: bool = True, taught: int = 0, per_event: int = 1) -> Any:
    """A pool whose meter has seen so many answers."""
    spec = PoolSpec(
        name="p",
        strategy="least_work",
        models=("m",),
        endpoints=(("10.0.0.1:80", "", 8),),
        engine=engine,
        ask_usage=ask_usage,
    )
    pool = Fleet([spec]).pools["p"]
    known = {
        "tenant": "t",
        "model": "m",
        "pool": "p",
        "address": "a:1",
        "input_tokens": 1,
        "output_tokens": 1,
    }
    reservation = Reservation(id="i-1", permits=1, prompt_bytes=1, stream=True, route="chat", **known)  # type: ignore[arg-type]
    for number in range(taught):
        events = 300 + 7 * number
        pool.calibration.meters.saw(
            Outcome(
                reservation=reservation,
                final=True,
                status=200,
                events=events,
                response_bytes=events * (200 + 31 * (number % 3)),
                output_tokens=events * per_event + (number % 3) * events * (per_event - 1),
            )
        )
    return pool


@pytest.mark.parametrize(
    ("pool", "kind", "asked", "words"),
    [
        (pool_of("vllm"), RouteKind.CHAT, UsageAsked.NONE, f"{LAST} {EVERY}"),
        (pool_of("vllm"), RouteKind.CHAT, UsageAsked.LAST, EVERY),
        (pool_of("vllm"), RouteKind.CHAT, UsageAsked.EACH, ""),
        (pool_of("vllm"), RouteKind.CHAT, UsageAsked.NO_STREAM, ""),
        (pool_of("vllm", ask_usage=False), RouteKind.CHAT, UsageAsked.NONE, ""),
        # Once an event is known to be a token, the last one's usage is enough.
        (pool_of("vllm", taught=9), RouteKind.CHAT, UsageAsked.NONE, LAST),
        (pool_of("vllm", taught=9), RouteKind.CHAT, UsageAsked.LAST, ""),
        (pool_of("sglang", taught=9, per_event=4), RouteKind.CHAT, UsageAsked.NONE, f"{LAST} {EVERY}"),
        (pool_of("llamacpp"), RouteKind.COMPLETION, UsageAsked.NONE, LAST),
        (pool_of("tgi"), RouteKind.CHAT, UsageAsked.NONE, LAST),
        (pool_of("tgi"), RouteKind.COMPLETION, UsageAsked.NONE, ""),
    ],
)
def test_what_is_asked_for(pool: Any, kind: RouteKind, asked: UsageAsked, words: str) -> None:
    """What the client did not ask for and the engine can say, as far as it is needed."""
    assert wanted(pool, kind, asked) == words


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true}',
        b' \n{"stream": true, "content": "\\u00e9 \xc3\xa9 {\\"stream_options\\": 1}"}',
        b'{"stream":true,"stream_options":null}',
        b'{"stream":true,"stream_options":{"include_usage":false,"other":[1]}}',
    ],
)
def test_a_body_asks_and_is_else_as_it_was(body: bytes, every: bool) -> None:
    """To the letter where nothing was said of it."""
    before, after = json.loads(body), json.loads(with_usage(body, every=every))
    options = {**(before.pop("stream_options", None) or {}), "include_usage": True}
    assert after.pop("stream_options") == (options | {"continuous_usage_stats": True} if every else options)
    assert after == before


@pytest.mark.parametrize("body", [b'["stream_options"]', b'{"stream_options":[1]}', b'{"stream_options":1'])
def test_what_cannot_be_written_raises(body: bytes) -> None:
    """Its caller lets it go on as it came."""
    with pytest.raises(msgspec.MsgspecError):
        with_usage(body, every=False)
