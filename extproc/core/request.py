"""Reads what a decision needs from a client's request, and nothing else.

Owns the routes, their dialects and the tolerant decoding of their bodies. Unknown fields are the
engine's business and pass unread; a field that is read and has the wrong type is the client's
mistake, said with its path. Hints (roles, tools, the user) are only peeked at: of a wrong type they
are as good as absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

import msgspec
from xxhash import xxh3_64_hexdigest

from extproc.core.bodies import BOUNDS, BodyBounds, refused_unread, too_many
from extproc.core.outcome import Reject
from extproc.core.prefix import (
    BLOCK_TOKENS,
    CALLS_MARK,
    IMAGE_MARK,
    MESSAGE_MARK,
    TOOLS_MARK,
    chain,
    chain_ids,
)
from extproc.core.prompts import SEQUENCES_MAX, TooManyError, elements, read_prompts
from extproc.core.wrapped import instances, wrapped_kind

T = TypeVar("T")

#: Tokens that one image part counts as, when the engine's own count is not known yet (a ViT-L/14 at
#: 336 pixels makes 576 patches).
IMAGE_TOKENS = 576
#: A client that allows more new tokens than this allows any number: no engine produces them, and sums and
#: floats must hold it.
NEW_TOKENS_MAX = 2**31 - 1
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
    METRICS = "metrics"  # the replica's own
    INVOCATIONS = "invocations"  # SageMaker's: a body of any of the others
    VERTEX = "vertex"  # Vertex AI's: a list of them


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
#: Served where `gateway.extra_routes` names them.
EXTRA_ROUTES: dict[str, tuple[Route, ...]] = {
    "/ping": (Route("GET", Kind.HEALTH, Dialect.TGI),),
    "/metrics": (Route("GET", Kind.METRICS, Dialect.TGI),),
    "/invocations": (Route("POST", Kind.INVOCATIONS, Dialect.TGI),),
    "/vertex": (Route("POST", Kind.VERTEX, Dialect.TGI),),
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
    prompt: msgspec.Raw = _RAW
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


class _Bare(msgspec.Struct):
    model: msgspec.Raw = _RAW
    stream: msgspec.Raw = _RAW
    n: msgspec.Raw = _RAW
    best_of: msgspec.Raw = _RAW
    max_tokens: msgspec.Raw = _RAW
    max_completion_tokens: msgspec.Raw = _RAW
    max_new_tokens: msgspec.Raw = _RAW
    prompt: msgspec.Raw = _RAW
    parameters: msgspec.Raw = _RAW


class _Format(msgspec.Struct):
    type: Any = None


#: The routes that a wrapped body may be of.
_WRAPPED = {"generate": Kind.COMPAT, "chat": Kind.CHAT, "completion": Kind.COMPLETION}

_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_generate = msgspec.json.Decoder(_Generate)
_tokenize = msgspec.json.Decoder(_Tokenize)
_text = msgspec.json.Decoder(str)
_whole = msgspec.json.Decoder(int)
_bare = msgspec.json.Decoder(_Bare)
_format = msgspec.json.Decoder(_Format)
_stream_options = msgspec.json.Decoder(_StreamOptions)


def find_route(method: str, path: str, extra: frozenset[str] = frozenset()) -> Route | None:
    """The route of a method and path (query ignored); what to say without one is in misrouted.py.

    `extra` are the paths of EXTRA_ROUTES that are served. What answers GET answers HEAD.
    """
    bare = path.partition("?")[0]
    routes = ROUTES.get(bare) or (EXTRA_ROUTES[bare] if bare in extra else ())
    wanted = "GET" if method == "HEAD" else method
    return next((route for route in routes if route.method == wanted), None)


def parse(route: Route, body: bytes, bounds: BodyBounds = BOUNDS) -> Request | Reject:
    """Decode a body; Reject says what is wrong with it and where (400), or that it holds too much (413)."""
    try:
        if route.method == "POST" and (refused := refused_unread(body, bounds)):
            return refused
        match route.kind:
            case Kind.CHAT:
                return _read_chat(route, _chat.decode(body), bounds)
            case Kind.COMPLETION:
                return _read_completion(route, _completion.decode(body))
            case Kind.GENERATE | Kind.GENERATE_STREAM | Kind.COMPAT:
                return _read_generate(route, _generate.decode(body))
            case Kind.TOKENIZE:
                return _read_tokenize(route, _tokenize.decode(body), bounds)
            case Kind.INVOCATIONS:
                return parse(_unwrapped(route, body), body, bounds)
            case Kind.VERTEX:
                return _read_vertex(route, body, bounds)
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


def bare(route: Route, body: bytes) -> Request:
    """What is left of a request when reading it failed: its model and size, and all that it asks for.

    Each field by itself, with as little as can go wrong; what cannot be read is as good as absent, and what
    is out of range is the most that may be asked for.
    """
    fields = _peek(_bare, msgspec.Raw(body)) or _Bare()
    parameters = _peek(_bare, fields.parameters) or _Bare()
    counts = [_peek(_whole, each) for each in (fields.n, fields.best_of, parameters.best_of)]
    each = max((count for count in counts if count), default=1)
    try:
        # A list of token ids is one prompt, however long.
        head = bytes(fields.prompt)[:64].translate(None, b" \t\r\n")
        prompts = elements(fields.prompt) if head[:2] in (b'["', b"[[") else 1
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        prompts = 1
    limits = (fields.max_completion_tokens, fields.max_tokens, parameters.max_new_tokens)
    limit = next((found for raw in limits if (found := _peek(_whole, raw)) is not None), None)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=_peek(_text, fields.model) or None,
        stream=route.kind is Kind.GENERATE_STREAM or fields.stream == b"true",
        max_new_tokens=None if limit is None else _bounded(max(0, limit)),
        sequences=max(1, min(each * max(1, prompts), SEQUENCES_MAX)),
        prompt_bytes=len(body),
    )


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


def _read_chat(route: Route, body: _Chat, bounds: BodyBounds) -> Request | Reject:
    if not body.messages:
        return bad_request("'messages' is missing or empty")
    if rejected := _too_long(body.messages, bounds):
        return rejected
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
        max_new_tokens=_bounded(limit),
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


def _too_long(messages: list[_Message], bounds: BodyBounds) -> Reject | None:
    parts = sum(len(m.content) for m in messages if isinstance(m.content, list))
    if len(messages) + parts <= bounds.messages_max:
        return None
    return too_many("messages and parts of them", bounds.messages_max)


def _bounded(limit: int | None) -> int | None:
    return None if limit is None else min(limit, NEW_TOKENS_MAX)


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
    try:
        return elements(raw) if raw else 0
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0


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


def _read_completion(route: Route, body: _Completion) -> Request | Reject:
    try:
        prompts = read_prompts(body.prompt) if _given(body.prompt) else None
    except TooManyError:
        return bad_request(f"'prompt' holds too many prompts; at most {SEQUENCES_MAX}")
    if prompts is None:
        if not _given(body.prompt) or bytes(body.prompt).translate(None, b" \t\r\n") == b"[]":
            return bad_request("'prompt' is missing")
        if bytes(body.prompt)[:1] != b"[":
            return bad_request("the body does not fit: Expected `str | array | null` - at `$.prompt`")
        return bad_request("'prompt' is not text, a list of texts, token ids or lists of token ids")
    if rejected := _check(body.max_tokens, "max_tokens", body.n, "n"):
        return rejected
    each = max(body.n or 1, body.best_of or 1)
    if rejected := _check(None, "", body.best_of, "best_of") or _check(
        None, "", prompts.count * each, "n × prompts"
    ):
        return rejected
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=bool(body.stream),
        max_new_tokens=_bounded(body.max_tokens),
        sequences=prompts.count * each,
        prompt_bytes=_bytes_of(prompts.texts),
        prompt_tokens=prompts.tokens,
        segments=prompts.texts,
        prompt_ids=prompts.ids,
        prefix_block_tokens=None if prompts.tokens is None else BLOCK_TOKENS,
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
        max_new_tokens=_bounded(parameters.max_new_tokens),
        sequences=parameters.best_of or 1,
        prompt_bytes=_bytes_of((body.inputs,)),
        segments=(body.inputs,),
        tools=_count_of(body.tools),
        user=_user_of(body),
        json_output=_given(parameters.grammar) or _wants_json(body.response_format),
    )


def _unwrapped(route: Route, body: bytes | msgspec.Raw) -> Route:
    return replace(route, kind=_WRAPPED[wrapped_kind(body)])


def _read_vertex(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    """All its instances as one request: as many sequences, one after another in one prompt's place."""
    found = instances(body)
    if not 1 <= len(found) <= SEQUENCES_MAX:
        return bad_request(f"'instances' must hold 1 to {SEQUENCES_MAX} requests")
    each: list[Request] = []
    for raw in found:
        request = parse(_unwrapped(route, raw), bytes(raw), bounds)
        if isinstance(request, Reject):
            return request
        each.append(request)
    sequences = sum(request.sequences for request in each)
    if rejected := _check(None, "", sequences, "sequences"):
        return rejected
    limits = [request.max_new_tokens for request in each]
    return replace(
        each[0],
        kind=route.kind,
        stream=False,
        usage=UsageAsked.NO_STREAM,
        sequences=sequences,
        max_new_tokens=None if None in limits else max(limit or 0 for limit in limits),
        limits=None,
        prompt_bytes=sum(request.prompt_bytes for request in each),
        prompt_tokens=None,
        images=sum(request.images for request in each),
    )


def _read_tokenize(route: Route, body: _Tokenize, bounds: BodyBounds) -> Request | Reject:
    if body.inputs is None and not body.messages:
        return bad_request("'inputs' is missing")
    if rejected := _too_long(body.messages or [], bounds):
        return rejected
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
