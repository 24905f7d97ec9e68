"""Reads what a decision needs from a client's request, and nothing else.

Owns the routes, their dialects and the tolerant decoding of their bodies. Unknown fields are the
engine's business and pass unread; a field that is read and has the wrong type is the client's
mistake, said with its path. Hints (roles, tools, the user) are only peeked at: of a wrong type they
are as good as absent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

import msgspec
from xxhash import xxh3_64_hexdigest

from extproc.core.outcome import Reject
from extproc.core.prefix import (
    BLOCK_TOKENS,
    BLOCKS_MAX,
    CALLS_MARK,
    IMAGE_MARK,
    MESSAGE_MARK,
    TOOLS_MARK,
    chain,
    chain_ids,
)

T = TypeVar("T")

#: Tokens that one image part counts as, when the engine's own count is not known yet (a ViT-L/14 at
#: 336 pixels makes 576 patches).
IMAGE_TOKENS = 576
#: Sequences one request may ask for (n, best_of or a batch of prompts); above it 400.
SEQUENCES_MAX = 1024
#: Characters of a user's or session's name; a longer one names nobody.
USER_CHARACTERS_MAX = 1024


class Dialect(Enum):
    """Whose error bodies the client expects."""

    OPENAI = "openai"
    TGI = "tgi"


class Kind(Enum):
    """What a path asks for."""

    CHAT = "chat"
    COMPLETION = "completion"
    GENERATE = "generate"
    GENERATE_STREAM = "generate_stream"
    COMPAT = "compat"  # TGI's POST /, streamed or not by its `stream` field
    TOKENIZE = "tokenize"
    MODELS = "models"
    INFO = "info"
    HEALTH = "health"


class UsageAsked(Enum):
    """What an OpenAI stream's client asked to be told of its usage."""

    NO_STREAM = "no stream"  # nor one of another dialect
    NONE = "none"
    LAST = "last"  # stream_options.include_usage
    EACH = "each"  # vLLM's continuous_usage_stats


@dataclass(frozen=True, slots=True)
class Route:
    """A path the gateway serves."""

    method: str
    kind: Kind
    dialect: Dialect


ROUTES: dict[str, tuple[Route, ...]] = {
    "/v1/chat/completions": (Route("POST", Kind.CHAT, Dialect.OPENAI),),
    "/v1/completions": (Route("POST", Kind.COMPLETION, Dialect.OPENAI),),
    "/v1/models": (Route("GET", Kind.MODELS, Dialect.OPENAI),),
    "/generate": (Route("POST", Kind.GENERATE, Dialect.TGI),),
    "/generate_stream": (Route("POST", Kind.GENERATE_STREAM, Dialect.TGI),),
    "/": (Route("POST", Kind.COMPAT, Dialect.TGI), Route("GET", Kind.HEALTH, Dialect.TGI)),
    "/tokenize": (Route("POST", Kind.TOKENIZE, Dialect.TGI),),
    "/chat_tokenize": (Route("POST", Kind.TOKENIZE, Dialect.TGI),),
    "/info": (Route("GET", Kind.INFO, Dialect.TGI),),
    "/health": (Route("GET", Kind.HEALTH, Dialect.TGI),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as a decision sees it.

    `prompt_bytes` is the UTF-8 length of the prompt's text; `prompt_tokens` is set only where the
    client sent token ids. `max_new_tokens` is per sequence, None when the client set no limit.
    `marks[i]` says what stands before `segments[i]`: roles, images, tool calls and tools (see
    `prefix.chain`). `prompt_ids` are the first prompt's token ids, 4 bytes each, as far as hashed.

    `prefix` is for callers that bring ready hashes (see `prefix_of`); `prefix_block_tokens` says how
    many tokens one stands for, None for BLOCK_BYTES of text. `messages` counts a chat's messages,
    `tools` the tools it offers; `user` is the `session_id`, else the `user`, that the client named.
    """

    kind: Kind
    dialect: Dialect
    model: str | None = None
    stream: bool = False
    max_new_tokens: int | None = None
    sequences: int = 1
    prompt_bytes: int = 0
    prompt_tokens: int | None = None
    images: int = 0
    segments: tuple[str, ...] = ()
    marks: tuple[bytes, ...] = ()
    prompt_ids: bytes = field(default=b"", repr=False)
    prefix: tuple[int, ...] = ()
    prefix_block_tokens: float | None = None
    messages: int = 0
    tools: int = 0
    user: str | None = None
    json_output: bool = False
    #: Not of the body but of the gateway that asks: the addresses it may go to (None any), and targets of
    #: its own instead of its class's (0 none).
    only: frozenset[str] | None = None
    #: A chat's max_tokens and max_completion_tokens, where it has both and they differ (`limited`).
    limits: tuple[int, int] | None = None
    usage: UsageAsked = UsageAsked.NO_STREAM
    ttft_ms: int = 0
    tpot_ms: int = 0


# Passes whatever stands there, undecoded; empty when absent.
_RAW = msgspec.Raw()
_NULL = msgspec.Raw(b"null")


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None
    image_url: msgspec.Raw = _RAW


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    role: msgspec.Raw = _RAW
    tool_calls: msgspec.Raw = _RAW


class _Hints(msgspec.Struct):
    tools: msgspec.Raw = _RAW
    user: msgspec.Raw = _RAW
    session_id: msgspec.Raw = _RAW
    response_format: msgspec.Raw = _RAW


class _StreamOptions(msgspec.Struct):
    include_usage: Any = None
    continuous_usage_stats: Any = None


class _Chat(_Hints):
    messages: list[_Message] | None = None
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: msgspec.Raw = _RAW
    n: int | None = None


class _Completion(_Hints):
    prompt: str | list[Any] | None = None
    model: str | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw = _RAW
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None


class _Parameters(msgspec.Struct):
    max_new_tokens: int | None = None
    best_of: int | None = None
    grammar: msgspec.Raw = _RAW


class _Generate(_Hints):
    inputs: str | None = None
    parameters: _Parameters | None = None
    stream: bool | None = None
    model: str | None = None


class _Tokenize(msgspec.Struct):
    inputs: str | None = None
    messages: list[_Message] | None = None
    model: str | None = None


class _Format(msgspec.Struct):
    type: Any = None


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_generate = msgspec.json.Decoder(_Generate)
_tokenize = msgspec.json.Decoder(_Tokenize)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)
_format = msgspec.json.Decoder(_Format)
_stream_options = msgspec.json.Decoder(_StreamOptions)


def find_route(method: str, path: str) -> Route | None:
    """The route of a method and path (query ignored); what to say without one is in misrouted.py."""
    for route in ROUTES.get(path.partition("?")[0], ()):
        if route.method == method:
            return route
    return None


def parse(route: Route, body: bytes) -> Request | Reject:
    """Decode a body; Reject (400) says what is wrong with it and where."""
    try:
        match route.kind:
            case Kind.CHAT:
                return _read_chat(route, _chat.decode(body))
            case Kind.COMPLETION:
                return _read_completion(route, _completion.decode(body))
            case Kind.GENERATE | Kind.GENERATE_STREAM | Kind.COMPAT:
                return _read_generate(route, _generate.decode(body))
            case Kind.TOKENIZE:
                return _read_tokenize(route, _tokenize.decode(body))
            case _:
                return Request(kind=route.kind, dialect=route.dialect)
    except msgspec.ValidationError as error:
        return bad_request(f"the body does not fit: {error}")
    except msgspec.DecodeError as error:
        return bad_request(f"the body is not valid JSON: {error}" if body else "the body is empty")
    except UnicodeDecodeError as error:
        return bad_request(f"the body is not UTF-8: {error.reason}")
    except RecursionError:
        return bad_request("the body is nested too deeply")


def limited(request: Request, engine: str) -> Request:
    """The request with the limit that an engine obeys of two.

    vLLM goes by max_completion_tokens and SGLang by max_tokens, each by the other where it is 0; where it
    differs by version, or the engine refuses both together, the larger bounds it.
    """
    if request.limits is None:
        return request
    tokens, completion = request.limits
    if engine == "vllm":
        limit = completion or tokens
    elif engine == "sglang":
        limit = tokens or completion
    else:
        limit = max(tokens, completion)
    return replace(request, max_new_tokens=limit, limits=None)


def bad_request(message: str) -> Reject:
    """A 400 for a body or header that cannot be served."""
    return Reject(status=400, code="invalid_request", message=message)


def prefix_of(request: Request) -> tuple[int, ...]:
    """The chained hashes of the (first) prompt's blocks: those that came with it, else our own."""
    if request.prefix:
        return request.prefix
    if request.prompt_ids:
        return chain_ids(request.prompt_ids)
    # A completion's segments are prompts of their own.
    segments = request.segments[:1] if request.kind is Kind.COMPLETION else request.segments
    return chain(segments, request.marks)


def _read_chat(route: Route, body: _Chat) -> Request | Reject:
    if not body.messages:
        return bad_request("'messages' is missing or empty")
    tokens, completion = body.max_tokens, body.max_completion_tokens
    limit = completion if completion is not None else tokens
    if rejected := _check(limit, "max_tokens", body.n, "n") or _check(tokens, "max_tokens", None, ""):
        return rejected
    both = tokens is not None and completion is not None and tokens != completion
    segments, marks, images = _flatten(body.messages, body.tools)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=bool(body.stream),
        max_new_tokens=limit,
        sequences=body.n or 1,
        prompt_bytes=_bytes_of(segments),
        images=images,
        segments=segments,
        marks=marks,
        messages=len(body.messages),
        tools=_count_of(body.tools),
        user=_user_of(body),
        json_output=_wants_json(body.response_format),
        limits=(tokens or 0, completion or 0) if both else None,
        usage=_usage_of(body.stream_options) if body.stream else UsageAsked.NO_STREAM,
    )


def _flatten(
    messages: list[_Message], tools: msgspec.Raw = _RAW
) -> tuple[tuple[str, ...], tuple[bytes, ...], int]:
    """The texts of messages, what stands before each, and the number of images.

    What is not text (images, tool calls, the tools, which templates put first) is marked by its hash:
    it distinguishes what comes after it.
    """
    segments: list[str] = []
    marks: list[bytes] = []
    images = 0
    pending: list[bytes] = [TOOLS_MARK, _digest(tools)] if _given(tools) else []
    for message in messages:
        pending.append(MESSAGE_MARK + message.role)
        content = message.content
        if isinstance(content, str):
            segments.append(content)
            marks.append(b"".join(pending))
            pending.clear()
        elif content is not None:
            for part in content:
                if part.text is not None:
                    segments.append(part.text)
                    marks.append(b"".join(pending))
                    pending.clear()
                elif part.type == "image_url":
                    images += 1
                    pending += (IMAGE_MARK, _digest(part.image_url))
        if _given(message.tool_calls):
            pending += (CALLS_MARK, _digest(message.tool_calls))
    return tuple(segments), tuple(marks), images


def _given(raw: msgspec.Raw) -> bool:
    return raw not in (_RAW, _NULL)


def _digest(raw: msgspec.Raw) -> bytes:
    return xxh3_64_hexdigest(raw).encode()


def _peek(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw) -> T | None:
    """What a hint says, None where it says nothing that we understand."""
    if not raw:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _count_of(raw: msgspec.Raw) -> int:
    items = _peek(_list, raw)
    return len(items) if items else 0


def _user_of(hints: _Hints) -> str | None:
    for raw in (hints.session_id, hints.user):
        name = _peek(_text, raw)
        if name and len(name) <= USER_CHARACTERS_MAX:
            return name
    return None


def _usage_of(raw: msgspec.Raw) -> UsageAsked:
    options = _peek(_stream_options, raw)
    if options is None or options.include_usage is not True:
        return UsageAsked.NONE
    return UsageAsked.EACH if options.continuous_usage_stats is True else UsageAsked.LAST


def _wants_json(raw: msgspec.Raw) -> bool:
    wanted = _peek(_format, raw)
    return wanted is not None and isinstance(wanted.type, str) and wanted.type != "text"


def _ids_of(prompt: list[Any]) -> bytes:
    """Token ids as 4 bytes each; none where one of them cannot be a token's."""
    hashed = prompt[: BLOCKS_MAX * BLOCK_TOKENS]
    try:
        return struct.pack(f"<{len(hashed)}I", *hashed)
    except struct.error:
        return b""


def _read_completion(route: Route, body: _Completion) -> Request | Reject:
    prompt = body.prompt
    if prompt is None or prompt == []:
        return bad_request("'prompt' is missing")
    segments: tuple[str, ...] = ()
    tokens: int | None = None
    ids = b""
    prompts = 1
    if isinstance(prompt, str):
        segments = (prompt,)
    else:
        # By type and in C: a body of the largest size can hold two million token ids.
        kinds = set(map(type, prompt))
        if kinds == {int}:
            tokens, ids = len(prompt), _ids_of(prompt)
        elif kinds == {str}:
            segments, prompts = tuple(prompt), len(prompt)
        elif kinds == {list}:
            tokens, prompts, ids = sum(map(len, prompt)), len(prompt), _ids_of(prompt[0])
        else:
            return bad_request("'prompt' is not text, a list of texts, token ids or lists of token ids")
    if rejected := _check(body.max_tokens, "max_tokens", body.n, "n"):
        return rejected
    each = max(body.n or 1, body.best_of or 1)
    if rejected := _check(None, "", body.best_of, "best_of") or _check(
        None, "", prompts * each, "n × prompts"
    ):
        return rejected
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=bool(body.stream),
        max_new_tokens=body.max_tokens,
        sequences=prompts * each,
        prompt_bytes=_bytes_of(segments),
        prompt_tokens=tokens,
        segments=segments,
        prompt_ids=ids,
        prefix_block_tokens=None if tokens is None else BLOCK_TOKENS,
        usage=_usage_of(body.stream_options) if body.stream else UsageAsked.NO_STREAM,
        tools=_count_of(body.tools),
        user=_user_of(body),
        json_output=_wants_json(body.response_format),
    )


def _read_generate(route: Route, body: _Generate) -> Request | Reject:
    if body.inputs is None:
        return bad_request("'inputs' is missing")
    parameters = body.parameters or _Parameters()
    if rejected := _check(parameters.max_new_tokens, "max_new_tokens", parameters.best_of, "best_of"):
        return rejected
    stream = route.kind is Kind.GENERATE_STREAM or (route.kind is Kind.COMPAT and bool(body.stream))
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=stream,
        max_new_tokens=parameters.max_new_tokens,
        sequences=parameters.best_of or 1,
        prompt_bytes=_bytes_of((body.inputs,)),
        segments=(body.inputs,),
        tools=_count_of(body.tools),
        user=_user_of(body),
        json_output=_given(parameters.grammar) or _wants_json(body.response_format),
    )


def _read_tokenize(route: Route, body: _Tokenize) -> Request | Reject:
    if body.inputs is None and not body.messages:
        return bad_request("'inputs' is missing")
    segments, marks, images = _flatten(body.messages or [])
    if body.inputs is not None:
        segments, marks = (body.inputs, *segments), (b"", *marks)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        max_new_tokens=0,
        prompt_bytes=_bytes_of(segments),
        images=images,
        segments=segments,
        marks=marks,
        messages=len(body.messages or ()),
    )


def _check(limit: int | None, limit_name: str, count: int | None, count_name: str) -> Reject | None:
    # The values are not repeated: Python refuses to print an integer of 4,301 digits.
    if limit is not None and limit < 0:
        return bad_request(f"'{limit_name}' cannot be negative")
    if count is not None and not 1 <= count <= SEQUENCES_MAX:
        return bad_request(f"'{count_name}' must be within 1 to {SEQUENCES_MAX}")
    return None


def _bytes_of(segments: tuple[str, ...]) -> int:
    # isascii is a flag on the string object: no pass over the text for the usual prompt.
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in segments)
