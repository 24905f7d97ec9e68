"""Bodies that engines take, as clients send them: none is refused, and each is read for what it asks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.errors import Error, as_engine_says
from extproc.core.hints import WHOLE_MAX, flag, whole
from extproc.core.outcome import Reject
from extproc.core.reading import bare, parse
from extproc.core.request import (
    NEW_TOKENS_MAX,
    Dialect,
    Request,
    UsageAsked,
    limited,
)
from extproc.core.routes import ROUTES

CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
SAY = [{"role": "user", "content": "hi"}]
EMBEDS = "A" * 30_000


def read(path: str, body: Any) -> Request:
    request = parse(ROUTES[path][0], body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(request, Request), request
    return request


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (b"100", 100),
        (b"100.0", 100),
        (b"1e2", 100),
        (b'"100"', 100),
        (b'" 100 "', 100),
        (b'"100.0"', 100),
        (b'"\\u0031\\u0030\\u0030"', 100),
        (b"0", 0),
        (b"-1", -1),
        (b"1.5", 2),
        (b"9007199254740993", 9007199254740993),
        (b"1e400", WHOLE_MAX),
        (b"9" * 500, WHOLE_MAX),
        (b"-" + b"9" * 500, -WHOLE_MAX),
        (b'"ten"', None),
        (b'""', None),
        (b"true", None),
        (b"null", None),
        (b"[1]", None),
        (b"{}", None),
        (b'"nan"', None),
        (b'"\xff"', None),
        (b"", None),
    ],
)
def test_numbers_as_clients_send_them(raw: bytes, number: int | None) -> None:
    """As generously as any engine reads them; what is no number says nothing."""
    assert whole(raw) == number


@pytest.mark.parametrize("raw", [b"true", b"1", b"1.0", b'"true"', b'"True"', b'"yes"', b'"on"', b'"1"'])
def test_truths_as_clients_send_them(raw: bytes) -> None:
    """As pydantic reads them for vLLM and SGLang."""
    assert flag(raw)


@pytest.mark.parametrize("raw", [b"false", b"0", b'"false"', b'"no"', b"null", b"", b"[1]", b'"of course"'])
def test_what_is_no_yes(raw: bytes) -> None:
    """Neither is what nobody reads as one."""
    assert not flag(raw)


@given(st.binary(max_size=80))
def test_no_value_fails(raw: bytes) -> None:
    """Whatever stands there is read or says nothing."""
    number = whole(raw)
    assert number is None or abs(number) <= WHOLE_MAX
    flag(raw)


@pytest.mark.parametrize("limit", [100, 100.0, "100", "100.0"])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_limits_as_clients_send_them(path: str, limit: Any) -> None:
    """A limit is the same limit in each spelling, and so is a number of sequences."""
    request = read(path, {"messages": SAY, "prompt": "x", "max_tokens": limit, "n": 1.0, "stream": "false"})
    assert (request.max_new_tokens, request.sequences, request.stream) == (100, 1, False)
    assert read(path, {"messages": SAY, "prompt": "x", "n": "3"}).sequences == 3


@pytest.mark.parametrize("odd", [-1, "many", [1], {}, True, "-5"])
def test_a_limit_that_is_none(odd: Any) -> None:
    """It bounds nothing (llama.cpp's -1), and what is wrong with it is the engine's to say."""
    for path in (CHAT, COMPLETION):
        body = {"messages": SAY, "prompt": "x", "max_tokens": odd, "n": odd, "stream": [1], "tools": 5}
        request = read(path, body)
        assert (request.max_new_tokens, request.sequences, request.stream) == (None, 1, False)
    assert read(GENERATE, {"inputs": "x", "parameters": {"max_new_tokens": odd}}).max_new_tokens is None
    assert read(GENERATE, {"inputs": "x", "parameters": odd}).sequences == 1


@pytest.mark.parametrize("stream", [True, "true", 1])
def test_streams_as_clients_ask_for_them(stream: Any) -> None:
    """A stream that is asked for in another spelling is metered as one."""
    request = read(CHAT, {"messages": SAY, "stream": stream, "stream_options": {"include_usage": "true"}})
    assert (request.stream, request.usage) == (True, UsageAsked.LAST)


@pytest.mark.parametrize(
    ("prompt", "prompts", "text"),
    [
        ([12, "hello", 34], 1, "hello"),
        (["hello", 12], 1, "hello"),
        (["hello", [1, 2]], 2, "hello"),
        ([[1, 2], "hello"], 2, "[1, 2]"),
        ([[1, "a"], [2]], 2, '[1, "a"]'),
        ({"prompt_string": "hello"}, 1, "hello"),
        ([{"prompt_string": "hello"}, "b"], 2, "hello"),
        ([{"prompt_string": 5}], 1, '{"prompt_string": 5}'),
        ([1.5, 2], 1, ""),
        ([True], 1, "true"),
        (5, 1, "5"),
        (["a", *range(2_000)], 1, None),
    ],
)
def test_prompt_shapes(prompt: Any, prompts: int, text: str | None) -> None:
    """llama.cpp's mixed lists and objects are prompts; what nobody takes is the engine's to refuse."""
    request = read(COMPLETION, {"prompt": prompt})
    assert request.sequences == prompts
    assert text is None or request.segments[0] == text
    assert request.prompt_bytes > 0


def test_prompts_with_images() -> None:
    """llama.cpp's objects bring images: they count as such, not as text."""
    prompt = {"prompt_string": "what is <__media__>?", "multimodal_data": ["A" * 5_000, "B" * 5_000]}
    request = read(COMPLETION, {"prompt": prompt})
    assert (request.images, request.prompt_bytes) == (2, len("what is <__media__>?"))


@pytest.mark.parametrize(("embeds", "prompts"), [(EMBEDS, 1), ([EMBEDS, EMBEDS], 2)])
def test_prompts_as_embeddings(embeds: Any, prompts: int) -> None:
    """vLLM takes embeddings in place of a prompt; their size tells their tokens, roughly."""
    request = read(COMPLETION, {"prompt_embeds": embeds, "max_tokens": 4})
    assert request.sequences == prompts
    assert 4 <= request.prompt_bytes <= 100


def test_too_many_prompts() -> None:
    """A batch beyond the books is refused, whatever its shape."""
    for body in ({"prompt": ["a"] * 1_025}, {"prompt_embeds": ["a"] * 1_025}, {"prompt": [[1]] * 1_025}):
        assert isinstance(parse(ROUTES[COMPLETION][0], json.dumps(body).encode()), Reject)


@pytest.mark.parametrize(
    ("content", "segments", "images"),
    [
        (["a", "b"], ("a", "b"), 0),
        ([{"type": "input_text", "text": "a"}], ("a",), 0),
        ([{"image_url": "http://x/y.png"}, {"text": "a"}], ("a",), 1),
        ([{"type": "image_url", "image_url": {"url": "u"}}], (), 1),
        ([{"type": 5, "text": {"a": 1}}, {"type": "text", "text": "b"}], ("b",), 0),
        ([], (), 0),
        (None, (), 0),
    ],
)
def test_content_shapes(content: Any, segments: tuple[str, ...], images: int) -> None:
    """Parts may be texts, and images come without a type."""
    request = read(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert (request.segments, request.images) == (segments, images)


@pytest.mark.parametrize(
    "messages", ["x", {"content": "x"}, [None], ["x"], [{"content": 5}], [{"content": [5]}]]
)
def test_odd_messages(messages: Any) -> None:
    """Messages of a shape that nobody knows count as the text that they are."""
    request = read(CHAT, {"messages": messages, "max_tokens": "7", "model": "m"})
    assert request.segments == (json.dumps(messages),)
    assert (request.max_new_tokens, request.model) == (7, "m")


def test_no_messages_yet() -> None:
    """An empty list is the engine's to judge: its template may begin the talk."""
    assert read(CHAT, {"messages": []}).segments == ()


@pytest.mark.parametrize("path", [CHAT, COMPLETION, GENERATE, "/tokenize"])
def test_a_byte_order_mark(path: str) -> None:
    """What stands before the JSON of some clients is passed over, as engines do."""
    body = json.dumps({"messages": SAY, "prompt": "x", "inputs": "x"}).encode()
    assert read(path, b"\xef\xbb\xbf" + body) == read(path, body)


@pytest.mark.parametrize(
    ("body", "engine", "limit"),
    [
        ({"n_predict": 4_000, "max_tokens": 1}, "llamacpp", 4_000),
        ({"n_predict": -1, "max_tokens": 1}, "llamacpp", None),
        ({"n_predict": 4_000}, "llamacpp", 4_000),
        ({"n_predict": 4_000, "max_tokens": 1}, "vllm", 1),
        ({"n_predict": 4_000}, "vllm", None),
        ({"max_tokens": -1, "max_completion_tokens": 5}, "llamacpp", None),
    ],
)
def test_the_limit_by_llamacpps_own_name(body: dict[str, Any], engine: str, limit: int | None) -> None:
    """n_predict goes before max_tokens there: by a small one nobody is charged little for a long answer."""
    for path in (CHAT, COMPLETION):
        if path == COMPLETION and "max_completion_tokens" in body:
            continue
        assert limited(read(path, {"messages": SAY, "prompt": "x", **body}), engine).max_new_tokens == limit
    if "max_completion_tokens" not in body:
        left = bare(ROUTES[CHAT][0], json.dumps({"messages": SAY, **body}).encode())
        assert limited(left, engine).max_new_tokens == limit


def test_what_is_left_reads_numbers_alike() -> None:
    """A degraded decision asks for as much as a whole one would."""
    body = {"prompt": ["a", "b"], "n": "3", "max_tokens": 70.0, "stream": 1}
    request = bare(ROUTES[COMPLETION][0], json.dumps(body).encode())
    assert (request.sequences, request.max_new_tokens, request.stream) == (6, 70, True)
    assert bare(ROUTES[CHAT][0], b'{"max_tokens":1e999}').max_new_tokens == NEW_TOKENS_MAX


@pytest.mark.parametrize(
    ("dialect", "engine", "status"),
    [
        (Dialect.OPENAI, "vllm", 400),
        (Dialect.OPENAI, "sglang", 400),
        (Dialect.OPENAI, "llamacpp", 400),
        (Dialect.OPENAI, "", 400),
        (Dialect.OPENAI, "tgi", 422),
        (Dialect.TGI, "tgi", 422),
        (Dialect.TGI, "vllm", 422),
    ],
)
def test_a_refusal_has_the_engines_status(dialect: Dialect, engine: str, status: int) -> None:
    """TGI and its clients know 422 for what is no request; what is no JSON is 400 to everybody."""
    assert as_engine_says(Error.UNFIT.reject(), dialect, engine).status == status
    assert as_engine_says(Error.INVALID_REQUEST.reject(), dialect, engine).status == 400
