"""Bodies are looked at before anything is built of them."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.bodies import BOUNDS, ESCAPES_MAX, BodyBounds, refused_unread
from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.request import Request, prefix_of
from extproc.core.routes import EXTRA_ROUTES, ROUTES

MEBI = 1024 * 1024
#: A quarter of what is allowed: what grows faster than the body is found here as well.
BODY_BYTES = MEBI - 64
CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
SCORE = "/v1/score"
EMBEDDINGS, RERANK, TURNS, VERTEX = "/v1/embeddings", "/v1/rerank", "/v1/messages", "/vertex"
EVERY = {**ROUTES, **EXTRA_ROUTES}


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    """A body of that size, of as many units as go into it."""
    count = (BODY_BYTES - len(before) - len(after)) // (len(unit) + 1)
    return before + b",".join([unit] * count) + after


#: One of each kind that took 0.1 to 0.8 s: the path, and how a body of it is filled.
WORST: dict[str, tuple[str, tuple[bytes, bytes, bytes]]] = {
    "messages": (CHAT, (b'{"messages":[', b"{}", b"]}")),
    "messages with text": (CHAT, (b'{"messages":[', b'{"content":""}', b"]}")),
    "parts": (CHAT, (b'{"messages":[{"content":[', b"{}", b"]}]}")),
    "images": (CHAT, (b'{"messages":[{"content":[', b'{"type":"image_url"}', b"]}]}")),
    "tools": (CHAT, (b'{"messages":[{"content":"x"}],"tools":[', b"{}", b"]}")),
    "tools of numbers": (CHAT, (b'{"messages":[{"content":"x"}],"tools":[', b"1", b"]}")),
    "ids": (COMPLETION, (b'{"prompt":[', b"1", b"]}")),
    "long ids": (COMPLETION, (b'{"prompt":[', b"1" * 4000, b"]}")),
    "lists": (COMPLETION, (b'{"prompt":[', b"[]", b"]}")),
    "lists of ids": (COMPLETION, (b'{"prompt":[[', b"1", b"]]}")),
    "texts": (COMPLETION, (b'{"prompt":[', b'""', b"]}")),
    "objects": (COMPLETION, (b'{"prompt":[', b"{}", b"]}")),
    "mixed": (COMPLETION, (b'{"prompt":["x",1,', b"1.0", b"]}")),
    "texts with numbers": (COMPLETION, (b'{"prompt":["x",1,', b'""', b"]}")),
    "parts of text": (CHAT, (b'{"messages":[{"content":[', b'""', b"]}]}")),
    "floats": (COMPLETION, (b'{"prompt":[', b"1e9", b"]}")),
    "fields": (GENERATE, (b'{"inputs":"x",', b'"a":1', b"}")),
    "deep": (GENERATE, (b'{"inputs":"x","a":[', b"[" * 400 + b"]" * 400, b"]}")),
    "embeddings": (EMBEDDINGS, (b'{"input":[', b'""', b"]}")),
    "documents": (RERANK, (b'{"query":"x","documents":[', '"é"'.encode(), b"]}")),
    "instances": (VERTEX, (b'{"instances":[', b"1", b"]}")),
    "long numbers for texts": (CHAT, (b'{"messages":[{"content":[{"text":[', b"1" * 4000, b"]}]}]}")),
    "long numbers in a turn": (TURNS, (b'{"messages":[{"content":[{"text":[', b"1" * 4000, b"]}]}]}")),
    "long numbers in options": (CHAT, (b'{"messages":[],"response_format":{"type":[', b"1" * 4000, b"]}}")),
    "documents of numbers": (RERANK, (b'{"query":"x","documents":[{"text":[', b"1" * 4000, b"]}]}")),
    "prompts of numbers": (COMPLETION, (b'{"prompt":[{"prompt_string":[', b"1" * 4000, b"]}]}")),
    "a user of numbers": (TURNS, (b'{"messages":"x","metadata":{"user_id":[', b"1" * 4000, b"]}}")),
    "texts in a document": (RERANK, (b'{"query":"x","documents":[{"content":[', b'""', b"]}]}")),
    "texts in a score": (SCORE, (b'{"text_1":"x","text_2":[{"content":[', '"é"'.encode(), b"]}]}")),
    "no documents": (RERANK, (b'{"query":"x","texts":[{"messages":[', b"1", b"]}]}")),
    "no input": (EMBEDDINGS, (b'{"input":[{"content":[{"content":[', b"1.0", b"]}]}]}")),
    "lists of signs": (RERANK, (b'{"query":"x","texts":[[', '"😀"'.encode(), b"]]}")),
    "escaped quotes": (GENERATE, (b'{"inputs":"{', b'\\"[', b'"}')),
}


#: Bytes for each of a body's: ids (`1,`) take 7.6, all else up to 3; what is built takes 12 to 44.
MEMORY_TIMES = 9
#: Passes that a body may cost. Those that are read cost up to five, those that were built 9 to 80.
PASSES = 8
#: Who else works on the machine makes single looks long, and a body that is too dear is so at every look.
LOOKS = 40


def read_through(path: str, body: bytes) -> None:
    """All that a service reads of it."""
    request = parse(EVERY[path][0], body)
    if isinstance(request, Request):
        prefix_of(request)


def thread_s(work: Callable[[], object]) -> float:
    """CPU time of this thread, in seconds."""
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s


@pytest.mark.parametrize("name", WORST)
def test_the_worst_body_costs_no_more_than_a_few_passes_over_it(name: str) -> None:
    """Against the decoder's own pass over a body of the same size that builds nothing: before it was up to 80
    times that. The cheapest of both counts, looked at in turn until that is enough."""
    path, shape = WORST[name]
    body, skipped = filled(*shape), filled(b'{"a":[', b"[]", b"]}")
    nothing = msgspec.json.Decoder(msgspec.defstruct("Nothing", []))
    costs_s = pass_s = float("inf")
    for _ in range(LOOKS):
        pass_s = min(pass_s, thread_s(lambda: nothing.decode(skipped)))
        costs_s = min(costs_s, thread_s(lambda: read_through(path, body)))
        if costs_s < PASSES * pass_s:
            break
    assert costs_s < PASSES * pass_s


@pytest.mark.parametrize("name", WORST)
def test_the_worst_body_is_not_built(name: str) -> None:
    """Reading it takes a few times its own memory, on any machine, and no object for each of its pieces."""
    path, shape = WORST[name]
    body = filled(*shape)
    tracemalloc.start()
    try:
        read_through(path, body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MEMORY_TIMES * len(body)


@pytest.mark.parametrize("name", WORST)
def test_the_worst_body_is_refused_or_read(name: str) -> None:
    """Never an exception; what is refused says 400, 413 or 422."""
    path, shape = WORST[name]
    answer = parse(EVERY[path][0], filled(*shape))
    if isinstance(answer, Reject):
        assert answer.status in (400, 413, 422)
        assert (answer.status == 413) == (answer.code == "body_too_large")


@pytest.mark.parametrize(
    ("before", "unit", "after", "times"),
    [
        (b'{"messages":[{"content":"x"}],"n":', b"1", b"}", 1.5),
        (b'{"messages":[{"content":"x"}],"n":"', b"1", b'"}', 2.5),
        (b'"', b"\\n", b'"', 0.1),
    ],
    ids=["a number", "a number as a text", "a text alone"],
)
def test_one_long_value_is_not_decoded(before: bytes, unit: bytes, after: bytes, times: float) -> None:
    """A number of a million digits is as many sequences as nobody may ask for, and a text is no request: said
    without a copy for each step of reading it."""
    body = before + unit * ((BODY_BYTES - len(before) - len(after)) // len(unit)) + after
    tracemalloc.start()
    try:
        answer = parse(EVERY[CHAT][0], body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(answer, Reject)
    assert answer.status == 422
    assert peak_bytes < times * len(body)


def test_a_text_full_of_brackets_is_read() -> None:
    """What stands in a string is no piece: code and JSON are prompts as any other."""
    text = json.dumps({"a": [[{"b": ":"}]] * 10, "c": 'say "{[:" \\'}) * 5_000
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    assert sum(body.count(each) for each in (b"{", b"[", b":")) > 4 * BOUNDS.pieces_max
    request = parse(ROUTES[CHAT][0], body)
    assert isinstance(request, Request)
    assert request.prompt_bytes == len(text)


def test_messages_and_parts_are_bounded_together() -> None:
    """At the bound they are read, above it refused with the bound in the message."""
    bounds = BodyBounds(pieces_max=1_000_000, messages_max=10)

    def answer(messages: list[Any]) -> Request | Reject:
        return parse(ROUTES[CHAT][0], json.dumps({"messages": messages}).encode(), bounds)

    part = {"type": "text", "text": "x"}
    assert isinstance(answer([{"content": "x"}] * 10), Request)
    assert isinstance(answer([{"content": [part] * 9}]), Request)
    for messages in ([{"content": "x"}] * 11, [{"content": [part] * 10}]):
        refused = answer(messages)
        assert isinstance(refused, Reject)
        assert (refused.status, "at most 10" in refused.message) == (413, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=40,
)


def pieces_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(pieces_of, value.values()))
    return 1 + sum(map(pieces_of, value)) if isinstance(value, list) else 0


@given(JSON, st.booleans())
def test_pieces_are_counted_exactly(value: Any, ascii_only: bool) -> None:
    """At its own number of pieces a body passes, at one less it does not."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    pieces = pieces_of(value)
    assert refused_unread(body, BodyBounds(pieces_max=pieces)) is None
    if pieces:
        assert refused_unread(body, BodyBounds(pieces_max=pieces - 1)) is not None


@given(st.binary(max_size=200))
def test_any_bytes_are_counted(body: bytes) -> None:
    """What is no JSON is the decoder's to refuse; counting it raises nothing."""
    refused_unread(body, BodyBounds(pieces_max=1))


def test_ids_are_counted_without_being_built() -> None:
    """Flat and nested, empty lists and blanks included: the same counts as of the lists themselves."""
    chance = Random(3)
    for _ in range(50):
        flat = [chance.randrange(200_000) for _ in range(chance.randrange(1, 40))]
        nested = [flat[: chance.randrange(len(flat) + 1)] for _ in range(chance.randrange(1, 6))]
        for prompt, indent in ((flat, None), (flat, 1), (nested, None), (nested, 1)):
            body = json.dumps({"prompt": prompt}, indent=indent).encode()
            request = parse(ROUTES[COMPLETION][0], body)
            assert isinstance(request, Request)
            lists = prompt if isinstance(prompt[0], list) else [prompt]
            assert request.prompt_tokens == sum(map(len, lists))
            assert request.sequences == len(lists)
            assert len(request.prompt_ids) == 4 * len(lists[0])


@pytest.mark.parametrize("escape", [rb"\"", rb"\\"])
def test_escapes_are_counted_to_their_bound(escape: bytes) -> None:
    """So many escaped quotes and backslashes are read, one more is too many, and so are a million."""

    def code(escapes: int) -> bytes:
        return b'{"inputs":"' + b"[" * (BOUNDS.pieces_max + 1) + escape * escapes + b'"}'

    assert refused_unread(code(ESCAPES_MAX), BOUNDS) is None
    for beyond in (ESCAPES_MAX + 1, 2 * ESCAPES_MAX):
        refused = refused_unread(code(beyond), BOUNDS)
        assert refused is not None
        assert "escaped quotes and backslashes" in refused.message
