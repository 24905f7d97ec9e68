"""A request as its client wrote it: routes, dialects, what is refused and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.core.body_fields import USER_CHARACTERS_MAX
from extproc.core.outcome import Reject
from extproc.core.prompts import SEQUENCES_MAX
from extproc.core.reading import parse
from extproc.core.request import (
    NEW_TOKENS_MAX,
    Dialect,
    Request,
    RouteKind,
    UsageAsked,
    limited,
)
from extproc.core.routes import ROWS, Route, find_route

CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
SAY = [{"role": "user", "content": "hi"}]


def route_of(path: str, method: str = "POST") -> Route:
    route = find_route(method, path)
    assert route is not None
    return route


def read(path: str, body: Any) -> Request | Reject:
    return parse(route_of(path), body if isinstance(body, bytes) else json.dumps(body).encode())


def good(path: str, body: Any) -> Request:
    request = read(path, body)
    assert isinstance(request, Request), request
    return request


def bad(path: str, body: Any, status: int = 422) -> str:
    reject = read(path, body)
    assert isinstance(reject, Reject), reject
    assert (reject.status, reject.code) == (status, "invalid_request")
    return reject.message


@pytest.mark.parametrize(
    ("method", "path", "kind", "dialect"),
    [
        ("POST", "/v1/chat/completions", RouteKind.CHAT, Dialect.OPENAI),
        ("POST", "/v1/completions", RouteKind.COMPLETION, Dialect.OPENAI),
        ("GET", "/v1/models", RouteKind.MODELS, Dialect.OPENAI),
        ("POST", "/v1/embeddings", RouteKind.EMBEDDINGS, Dialect.OPENAI),
        ("POST", "/v1/rerank", RouteKind.RERANK, Dialect.OPENAI),
        ("POST", "/rerank", RouteKind.RERANK, Dialect.OPENAI),
        ("POST", "/v1/score", RouteKind.SCORE, Dialect.OPENAI),
        ("POST", "/v1/responses", RouteKind.RESPONSES, Dialect.OPENAI),
        ("POST", "/v1/messages", RouteKind.MESSAGES, Dialect.ANTHROPIC),
        ("POST", "/v1/messages/count_tokens", RouteKind.COUNT_TOKENS, Dialect.ANTHROPIC),
        ("GET", "/v1/responses/resp_1", RouteKind.RESPONSE, Dialect.OPENAI),
        ("DELETE", "/v1/responses/resp_1", RouteKind.RESPONSE, Dialect.OPENAI),
        ("POST", "/v1/responses/resp_1/cancel", RouteKind.RESPONSE, Dialect.OPENAI),
        ("GET", "/v1/responses/resp_1/input_items", RouteKind.RESPONSE, Dialect.OPENAI),
        ("GET", "/v1/models/org/name", RouteKind.MODEL, Dialect.OPENAI),
        ("POST", "/v1/audio/transcriptions", RouteKind.TRANSCRIPTION, Dialect.OPENAI),
        ("POST", "/v1/audio/translations", RouteKind.TRANSCRIPTION, Dialect.OPENAI),
        ("POST", "/v1/audio/speech", RouteKind.SPEECH, Dialect.OPENAI),
        ("POST", "/generate", RouteKind.GENERATE, Dialect.TGI),
        ("POST", "/generate_stream", RouteKind.GENERATE_STREAM, Dialect.TGI),
        ("POST", "/", RouteKind.COMPAT, Dialect.TGI),
        ("GET", "/", RouteKind.HEALTH, Dialect.TGI),
        ("POST", "/tokenize", RouteKind.TOKENIZE, Dialect.TGI),
        ("POST", "/chat_tokenize", RouteKind.TOKENIZE, Dialect.TGI),
        ("GET", "/info", RouteKind.INFO, Dialect.TGI),
        ("GET", "/health", RouteKind.HEALTH, Dialect.TGI),
        ("GET", "/steersman/v1/site", RouteKind.SITE, Dialect.OPENAI),
    ],
)
def test_every_route(method: str, path: str, kind: RouteKind, dialect: Dialect) -> None:
    """Each path and method has its kind and dialect, with or without a query."""
    for spelled in (path, f"{path}?", f"{path}?a=/v1/models"):
        found = find_route(method, spelled)
        assert found is not None
        assert (found.method, found.kind, found.dialect) == (method, kind, dialect)


def test_the_route_table_is_covered() -> None:
    """A route added to the table must be added to the test above."""
    assert len(ROWS) == 27


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/generate"),
        ("OPTIONS", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/embeddings"),
        ("POST", "/v1/models/tiny-chat"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/responses/a/b"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat%2Fcompletions"),
        ("POST", "//generate"),
        ("POST", "/GENERATE"),
        ("post", "/generate"),
        ("CONNECT", ""),
    ],
)
def test_no_route(method: str, path: str) -> None:
    """What is not in the table has no route, near as it may be."""
    assert find_route(method, path) is None


@pytest.mark.parametrize(
    ("tokens", "completion", "engine", "limit"),
    [
        (2_000, 0, "vllm", 2_000),
        (2_000, 5, "vllm", 5),
        (2_000, 5, "sglang", 2_000),
        (0, 5, "sglang", 5),
        (5, 2_000, "llamacpp", 2_000),
        (2_000, 5, "tgi", 2_000),
        (7, 7, "vllm", 7),
        (None, 5, "sglang", 5),
        (9, None, "vllm", 9),
    ],
)
def test_of_two_limits_the_one_that_the_engine_obeys(
    tokens: int | None, completion: int | None, engine: str, limit: int
) -> None:
    """A client cannot reserve little by the one that its engine does not look at."""
    body = {"messages": SAY, "max_tokens": tokens, "max_completion_tokens": completion}
    assert limited(good(CHAT, body), engine).max_new_tokens == limit


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (None, UsageAsked.NONE),
        ({}, UsageAsked.NONE),
        ([1], UsageAsked.NONE),
        ({"include_usage": False}, UsageAsked.NONE),
        ({"include_usage": True}, UsageAsked.LAST),
        ({"include_usage": True, "continuous_usage_stats": True}, UsageAsked.EACH),
        ({"continuous_usage_stats": True}, UsageAsked.NONE),
    ],
)
def test_what_a_stream_asks_of_usage(options: Any, asked: UsageAsked) -> None:
    """As vLLM reads it: without include_usage the other says nothing."""
    body = {"messages": SAY, "stream": True, "stream_options": options}
    assert good(CHAT, body).usage is asked
    assert good(CHAT, {**body, "stream": False}).usage is UsageAsked.NO_STREAM


def test_chat() -> None:
    """A chat request yields model, stream, limit, sequences and the length of its text."""
    body = {"model": "m", "messages": SAY, "stream": True, "max_tokens": 9, "n": 3, "temperature": 0.5}
    assert good(CHAT, body) == Request(
        kind=RouteKind.CHAT,
        dialect=Dialect.OPENAI,
        model="m",
        stream=True,
        max_new_tokens=9,
        sequences=3,
        prompt_bytes=2,
        segments=("hi",),
        marks=(b'\xff"user"',),
        messages=1,
        usage=UsageAsked.NONE,
    )


def test_max_completion_tokens_wins() -> None:
    """The newer limit counts before the older, also when it is 0."""
    assert good(CHAT, {"messages": SAY, "max_tokens": 9, "max_completion_tokens": 0}).max_new_tokens == 0


def test_chat_parts() -> None:
    """Text parts are the prompt; images, sounds, films and files are counted, and other parts pass."""
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}},
        {"type": "input_audio", "input_audio": {"data": "AAAA"}},
        {"type": "video_url", "image_url": None, "video_url": {"url": "https://x/film"}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "refusal", "refusal": "no"},
        {"type": "text", "text": "this?"},
    ]
    request = good(CHAT, {"messages": [{"role": "system", "content": "Be kind."}, {"content": parts}]})
    assert request.segments == ("Be kind.", "what is ", "this?")
    assert (request.images, request.prompt_bytes) == (4, 21)
    other = [
        {**part, "video_url": {"url": "https://x/another"}} if "video_url" in part else part for part in parts
    ]
    again = good(CHAT, {"messages": [{"role": "system", "content": "Be kind."}, {"content": other}]})
    assert again.marks != request.marks  # another film, another prefix


def test_chat_messages_without_content() -> None:
    """An assistant's tool calls carry no content; neither do nulls."""
    messages = [{"role": "assistant", "tool_calls": [{"id": "1"}]}, {"content": None}, *SAY]
    assert good(CHAT, {"messages": messages}).segments == ("hi",)


def test_nulls_mean_absent() -> None:
    """Client libraries send null for what the user left out."""
    names = ("model", "stream", "max_tokens", "max_completion_tokens", "n")
    assert good(CHAT, {"messages": SAY, **dict.fromkeys(names)}) == good(CHAT, {"messages": SAY})
    names = ("model", "stream", "max_tokens", "n", "best_of")
    assert good(COMPLETION, {"prompt": "a", **dict.fromkeys(names)}) == good(COMPLETION, {"prompt": "a"})
    body = {"inputs": "a", "parameters": {"max_new_tokens": None, "best_of": None}, "stream": None}
    assert good(GENERATE, body) == good(GENERATE, {"inputs": "a"})
    assert good(GENERATE, {"inputs": "a", "parameters": None}) == good(GENERATE, {"inputs": "a"})


def test_an_empty_model_is_none() -> None:
    """`"model": ""` names nothing."""
    assert good(CHAT, {"messages": SAY, "model": ""}).model is None


@pytest.mark.parametrize(
    ("prompt", "options", "sequences", "tokens", "size"),
    [
        ("abc", {}, 1, None, 3),
        ("", {}, 1, None, 0),
        ("abc", {"n": 2}, 2, None, 3),
        ("abc", {"n": 2, "best_of": 5}, 5, None, 3),
        (["ab", "cde"], {}, 2, None, 5),
        (["ab", "cde"], {"n": 3}, 6, None, 5),
        ([1, 2, 3], {}, 1, 3, 0),
        ([10**25], {}, 1, 1, 0),
        ([[1, 2], [3]], {"n": 2}, 4, 3, 0),
        ([[]], {}, 1, 0, 0),
        ("é", {}, 1, None, 2),
        ("🙂", {}, 1, None, 4),
    ],
)
def test_completion_prompts(
    prompt: Any, options: dict[str, int], sequences: int, tokens: int | None, size: int
) -> None:
    """Texts count bytes and token arrays tokens; sequences are prompts times the larger of n, best_of."""
    request = good(COMPLETION, {"prompt": prompt, **options})
    assert (request.sequences, request.prompt_tokens, request.prompt_bytes) == (sequences, tokens, size)


def test_generate() -> None:
    """TGI's own route: inputs and parameters; `stream` is the path's, not the body's."""
    body = {"inputs": "été", "parameters": {"max_new_tokens": 7, "best_of": 2, "seed": 1}, "stream": True}
    request = good(GENERATE, body)
    assert request == Request(
        kind=RouteKind.GENERATE,
        dialect=Dialect.TGI,
        max_new_tokens=7,
        sequences=2,
        prompt_bytes=5,
        segments=("été",),
    )
    assert good("/generate_stream", body).stream
    assert good("/", body).stream
    assert not good("/", {"inputs": "a"}).stream
    assert not good("/", {"inputs": "a", "stream": False}).stream


@pytest.mark.parametrize("name", ["inputs", "prompt", "content"])
def test_tokenize(name: str) -> None:
    """Tokenizing takes text or messages, under each engine's name for it, and generates nothing."""
    request = good("/tokenize", {name: "abc"})
    assert (request.max_new_tokens, request.segments, request.prompt_bytes) == (0, ("abc",), 3)
    assert good("/tokenize", {name: ["a", 1]}).prompt_bytes > 0
    assert good("/chat_tokenize", {"messages": SAY}).segments == ("hi",)
    assert good("/tokenize", {"messages": "odd"}).segments == ('"odd"',)
    assert bad("/tokenize", {}).startswith("'inputs' is missing")


def test_info_reads_no_body() -> None:
    """A GET's body is nobody's business."""
    request = parse(route_of("/info", "GET"), b"\xff not json")
    assert isinstance(request, Request)


MANY = f"more than {SEQUENCES_MAX} sequences are asked for (n or best_of, times the prompts)"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, {}, "'messages' is missing"),
        (CHAT, {"messages": None}, "'messages' is missing"),
        (COMPLETION, {}, "'prompt' is missing"),
        (COMPLETION, {"prompt": []}, "'prompt' is missing"),
        (COMPLETION, {"prompt": None, "prompt_embeds": None}, "'prompt' is missing"),
        (GENERATE, {}, "'inputs' is missing"),
        (GENERATE, {"inputs": None}, "'inputs' is missing"),
        (CHAT, {"messages": SAY, "n": 10**30}, MANY),
        (CHAT, {"messages": SAY, "n": "1025"}, MANY),
        (COMPLETION, {"prompt": "", "best_of": 1025.0}, MANY),
        (COMPLETION, {"prompt": ["a"] * 600, "n": 2}, MANY),
        (GENERATE, {"inputs": "", "parameters": {"best_of": 1025}}, MANY),
    ],
)
def test_missing_and_out_of_range(path: str, body: Any, message: str) -> None:
    """There must be something to work on, of no more sequences than the books hold."""
    assert bad(path, body) == message


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (CHAT, {"messages": SAY, "model": ["m"]}, "$.model`"),
        (CHAT, {"messages": "x", "model": 5}, "$.model`"),
        (COMPLETION, {"prompt": "x", "model": 5}, "$.model`"),
        (GENERATE, {"inputs": ["x"]}, "$.inputs`"),
        ("/tokenize", {"inputs": "x", "model": 1}, "$.model`"),
        (CHAT, [1], "got `array`"),
        (CHAT, b"null", "got `null`"),
    ],
)
def test_wrong_types_are_said_with_their_path(path: str, body: Any, where: str) -> None:
    """A model must be a name, what no engine but TGI serves a text, and a body an object."""
    message = bad(path, body)
    assert message.startswith("the body does not fit: ")
    assert message.endswith(where)


@pytest.mark.parametrize(
    "body", [b"{", b"\xff{}", b"{} x", b"'a'", b"\xef\xbb\xbf{", b'{"messages":[{"content":"\\ud800"}]}']
)
def test_malformed_json(body: bytes) -> None:
    """What is no JSON is said to be none."""
    assert bad(CHAT, body, 400).startswith("the body is not valid JSON: ")


def test_an_empty_body() -> None:
    """An empty body is named as such in every route that reads one."""
    for path in (CHAT, COMPLETION, GENERATE, "/generate_stream", "/", "/tokenize", "/chat_tokenize"):
        assert bad(path, b"", 400) == "the body is empty"


def test_invalid_utf8() -> None:
    """Text that is read must be UTF-8; what is not read is the engine's business."""
    assert bad(CHAT, b'{"messages":[{"content":"\xff"}]}', 400).startswith("the body is not UTF-8: ")
    assert good(CHAT, b'{"x":"\xff","messages":[{"content":"a"}]}').prompt_bytes == 1


def test_deep_nesting() -> None:
    """Nesting as deep as a body allows is refused, not crashed on."""
    assert bad(CHAT, b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}", 400) == "the body is nested too deeply"
    assert bad(COMPLETION, b'{"prompt":' + b"[" * 9_000, 400) == "the body is nested too deeply"
    for path, body in ((CHAT, b'{"x":' + b"[" * 500_000), (COMPLETION, b'{"prompt":' + b"[" * 500_000)):
        refused = read(path, body)
        assert isinstance(refused, Reject)
        assert refused.status == 413


def test_huge_numbers() -> None:
    """A limit of any size is a limit, and so is a number of sequences too long to print."""
    for huge in (10**30, 10**400):
        assert good(CHAT, {"messages": SAY, "max_tokens": huge}).max_new_tokens == NEW_TOKENS_MAX
    long = b"9" * 5_000
    body = b'{"messages":[{"content":"a"}],%b}'
    for said in (b'"n":' + long, b'"n":1e400', b'"n":"1' + b"0" * 90 + b'"'):
        assert bad(CHAT, body % said) == MANY
    for said in (b'"n":-' + long, b'"max_tokens":-' + long):
        request = good(CHAT, body % said)
        assert (request.sequences, request.max_new_tokens) == (1, None)


def test_the_last_of_repeated_keys_counts() -> None:
    """As in most JSON readers."""
    assert good(CHAT, b'{"model":"a","model":"b","messages":[{"content":"a"}]}').model == "b"


def test_a_long_prompt() -> None:
    """400 KB of text keep their length, in ASCII and beyond it."""
    assert good(CHAT, {"messages": [{"content": "a" * 400_000}]}).prompt_bytes == 400_000
    body = json.dumps({"prompt": "é" * 200_000}, ensure_ascii=False).encode()
    assert good(COMPLETION, body).prompt_bytes == 400_000


def test_hints() -> None:
    """Tools are counted, the session goes before the user, and a wish for JSON is seen."""
    hints = {
        "tools": [{"type": "function"}, {"type": "function"}],
        "user": "u",
        "response_format": {"type": "json_schema", "json_schema": {}},
    }
    request = good(CHAT, {"messages": SAY * 3, **hints})
    assert (request.messages, request.tools, request.user, request.json_output) == (3, 2, "u", True)
    assert good(CHAT, {"messages": SAY, **hints, "session_id": "s"}).user == "s"
    assert good(COMPLETION, {"prompt": "a", **hints}).json_output
    assert good(GENERATE, {"inputs": "a", "parameters": {"grammar": {"type": "json"}}}).json_output
    assert not good(GENERATE, {"inputs": "a", "parameters": {"grammar": None}}).json_output
    assert not good(CHAT, {"messages": SAY, "response_format": {"type": "text"}}).json_output


@pytest.mark.parametrize(
    "odd",
    [
        b"null",
        b"5",
        b'"x"',
        b"[]",
        b"{}",
        b"true",
        b"1e400",
        b"[" * 900 + b"]" * 900,
        b'"\xff"',
    ],
)
@pytest.mark.parametrize("name", [b"tools", b"user", b"session_id", b"response_format"])
def test_hints_of_a_wrong_type(name: bytes, odd: bytes) -> None:
    """What is only peeked at is never the client's mistake."""
    request = good(CHAT, b'{"messages":[{"role":"user","content":"hi"}],"%b":%b}' % (name, odd))
    assert not request.json_output
    assert request.tools in (0, 1)
    assert request.user in (None, "x")


@pytest.mark.parametrize("odd", [b"null", b"5", b"{}", b"1e400", b'"\xff"'])
def test_roles_and_calls_of_a_wrong_type(odd: bytes) -> None:
    """So it is with what a message says beside its content."""
    body = b'{"messages":[{"role":%b,"tool_calls":%b,"content":[{"type":"image_url","image_url":%b}]}]}'
    assert good(CHAT, body % (odd, odd, odd)).images == 1


def test_a_long_user_is_nobody() -> None:
    """A name that long would cost memory wherever it is kept."""
    assert good(CHAT, {"messages": SAY, "user": "u" * USER_CHARACTERS_MAX}).user == "u" * USER_CHARACTERS_MAX
    assert good(CHAT, {"messages": SAY, "user": "u" * (USER_CHARACTERS_MAX + 1)}).user is None
