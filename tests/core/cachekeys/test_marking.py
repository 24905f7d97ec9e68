"""A hit's usage that says so differs from its miss in one field, and in nothing else."""

from __future__ import annotations

import json

import pytest

from extproc.core.cachekeys import CachedAnswer, CacheRule, marked
from tests.stand.cached import Asking, answer_of, body_of

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 3},
}


def test_all_prompt_tokens_are_told_as_cached() -> None:
    """What else is in the details stays, and so does every other byte of a value."""
    choices = (
        b'[{"index":0,"logprobs":{"x":-0.12345678901234567},"message":{"content":"\\u00e9 \\ud83d\\ude00"}}]'
    )
    body = (
        b'{"choices":'
        + choices
        + b',"big":12345678901234567890123,"usage":'
        + json.dumps(USAGE).encode()
        + b"}"
    )
    found = marked(body, stream=False)
    assert choices in found
    assert b"12345678901234567890123" in found
    usage = json.loads(found)["usage"]
    assert usage.pop("prompt_tokens_details") == {"audio_tokens": 0, "cached_tokens": 7}
    assert usage == {"prompt_tokens": 7, "completion_tokens": 2}


@pytest.mark.parametrize("usage", [b"null", b"[]", b'{"prompt_tokens":"many"}', b"3"])
def test_what_tells_no_usage_stays_as_it_is(usage: bytes) -> None:
    """Whole or in a stream."""
    for body in (b'{"a":1,"usage":' + usage + b"}", b'{"a":1}'):
        assert marked(body, stream=False) == body
        events = b"data: " + body + b"\n\ndata: [DONE]\n\n"
        assert marked(events, stream=True) == events


def test_of_a_stream_the_events_with_usage_are_marked() -> None:
    """The others, the end and the lines between stay."""
    events = [{"choices": [{"delta": {"content": 'the "usage" of'}}]}, {"choices": [], "usage": USAGE}]
    lines = [b"data: " + json.dumps(each).encode() for each in events]
    body = b": ping\n\n" + b"\n\n".join([*lines, b"data: [DONE]"]) + b"\n\n"
    found = marked(body, stream=True).split(b"\n\n")
    assert found[0] == b": ping"
    assert json.loads(found[1][6:]) == events[0]
    assert json.loads(found[2][6:])["usage"]["prompt_tokens_details"]["cached_tokens"] == 7
    assert found[3:] == [b"data: [DONE]", b""]


@pytest.mark.parametrize("marks", [False, True])
def test_a_tenant_says_whether(marks: bool) -> None:
    """Off: the hit is the miss to the byte."""
    asking = Asking({"a": CacheRule(scope="tenant:a", marks=marks)})
    asking.serve("a", body_of(), answer_of())
    found = asking.look("a", body_of())
    assert isinstance(found, CachedAnswer)
    assert (found.body == answer_of()) is not marks
    assert json.loads(found.body)["usage"].get("prompt_tokens_details") == (
        {"cached_tokens": 3} if marks else None
    )
