"""Reads what a decision needs from a client's body, and nothing else.

Owns the tolerant decoding of bodies: what an engine takes is never refused here. What a decision cannot do
without is the model's name, and that there is something to work on; all else is a hint. A hint that cannot be
read is as good as absent, and its mistake is the engine's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from xxhash import xxh3_64_hexdigest

from extproc.core.bodies import BOUNDS, BodyBounds, refused_unread, too_many
from extproc.core.errors import Error
from extproc.core.hints import flag, whole
from extproc.core.outcome import Reject
from extproc.core.prefix import BLOCK_TOKENS, CALLS_MARK, IMAGE_MARK, MESSAGE_MARK, TOOLS_MARK
from extproc.core.prompts import SEQUENCES_MAX, TooManyError, as_text, elements, embedded, read_prompts
from extproc.core.request import (
    NO_LIMIT,
    Request,
    Route,
    RouteKind,
    TokenLimits,
    UsageAsked,
    bounded,
)
from extproc.core.wrapped import instances, wrapped_kind

T = TypeVar("T")

#: Characters of a user's or session's name; a longer one names nobody.
USER_CHARACTERS_MAX = 1024
#: Quotes of a body whose messages may be lists of texts.
QUOTES_MAX = 65_536
#: What some clients write before their JSON, and readers of JSON pass over.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Passes whatever stands there, undecoded; empty when absent.
_RAW = msgspec.Raw()
_NULL = msgspec.Raw(b"null")


class _Part(msgspec.Struct):
    text: Any = None
    image_url: msgspec.Raw = _RAW


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    role: msgspec.Raw = _RAW
    tool_calls: msgspec.Raw = _RAW


class _WideMessage(msgspec.Struct):
    # A list of texts is read where there are few: unlike objects they are not counted before.
    content: str | list[_Part | str] | None = None
    role: msgspec.Raw = _RAW
    tool_calls: msgspec.Raw = _RAW


class _Hints(msgspec.Struct):
    model: str | None = None
    stream: msgspec.Raw = _RAW
    stream_options: msgspec.Raw = _RAW
    max_tokens: msgspec.Raw = _RAW
    max_completion_tokens: msgspec.Raw = _RAW
    n_predict: msgspec.Raw = _RAW
    n: msgspec.Raw = _RAW
    tools: msgspec.Raw = _RAW
    user: msgspec.Raw = _RAW
    session_id: msgspec.Raw = _RAW
    response_format: msgspec.Raw = _RAW


class _Chat(_Hints):
    messages: list[_Message] | None = None


class _WideChat(_Hints):
    messages: list[_WideMessage] | None = None


class _OddChat(_Hints):
    messages: msgspec.Raw = _RAW


class _Completion(_Hints):
    prompt: msgspec.Raw = _RAW
    prompt_embeds: msgspec.Raw = _RAW
    best_of: msgspec.Raw = _RAW


class _Parameters(msgspec.Struct):
    max_new_tokens: msgspec.Raw = _RAW
    best_of: msgspec.Raw = _RAW
    grammar: msgspec.Raw = _RAW


class _Generate(_Hints):
    inputs: str | None = None
    parameters: msgspec.Raw = _RAW


class _Tokenize(msgspec.Struct):
    model: str | None = None
    inputs: msgspec.Raw = _RAW
    prompt: msgspec.Raw = _RAW
    content: msgspec.Raw = _RAW
    messages: msgspec.Raw = _RAW


class _Bare(msgspec.Struct):
    model: msgspec.Raw = _RAW
    stream: msgspec.Raw = _RAW
    n: msgspec.Raw = _RAW
    best_of: msgspec.Raw = _RAW
    max_tokens: msgspec.Raw = _RAW
    max_completion_tokens: msgspec.Raw = _RAW
    max_new_tokens: msgspec.Raw = _RAW
    n_predict: msgspec.Raw = _RAW
    prompt: msgspec.Raw = _RAW
    parameters: msgspec.Raw = _RAW


class _Format(msgspec.Struct):
    type: Any = None


class _StreamOptions(msgspec.Struct):
    include_usage: Any = None
    continuous_usage_stats: Any = None


#: The routes that a wrapped body may be of.
_WRAPPED = {"generate": RouteKind.COMPAT, "chat": RouteKind.CHAT, "completion": RouteKind.COMPLETION}

_chat = msgspec.json.Decoder(_Chat)
_wide_chat = msgspec.json.Decoder(_WideChat)
_odd_chat = msgspec.json.Decoder(_OddChat)
_messages = msgspec.json.Decoder(list[_Message])
_wide_messages = msgspec.json.Decoder(list[_WideMessage])
_completion = msgspec.json.Decoder(_Completion)
_generate = msgspec.json.Decoder(_Generate)
_parameters = msgspec.json.Decoder(_Parameters)
_tokenize = msgspec.json.Decoder(_Tokenize)
_text = msgspec.json.Decoder(str)
_bare = msgspec.json.Decoder(_Bare)
_format = msgspec.json.Decoder(_Format)
_stream_options = msgspec.json.Decoder(_StreamOptions)


@dataclass(frozen=True, slots=True)
class _Said:
    """What messages say: texts, what stands before each, images, how many there are, and bytes unread."""

    segments: tuple[str, ...] = ()
    marks: tuple[bytes, ...] = ()
    images: int = 0
    count: int = 0
    bytes_beside: int = 0


def parse(route: Route, body: bytes, bounds: BodyBounds = BOUNDS) -> Request | Reject:
    """Decode a body; Reject says why: it is no JSON (400) or no request (422), or it holds too much (413)."""
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        if route.method == "POST" and (refused := refused_unread(body, bounds)):
            return refused
        match route.kind:
            case RouteKind.CHAT:
                return _read_chat(route, body, bounds)
            case RouteKind.COMPLETION:
                return _read_completion(route, _completion.decode(body))
            case RouteKind.GENERATE | RouteKind.GENERATE_STREAM | RouteKind.COMPAT:
                return _read_generate(route, _generate.decode(body))
            case RouteKind.TOKENIZE:
                return _read_tokenize(route, _tokenize.decode(body), bounds)
            case RouteKind.INVOCATIONS:
                return parse(_unwrapped(route, body), body, bounds)
            case RouteKind.VERTEX:
                return _read_vertex(route, body, bounds)
            case _:
                return Request(kind=route.kind, dialect=route.dialect)
    except msgspec.ValidationError as error:
        return Error.UNFIT.reject(f"the body does not fit: {error}")
    except msgspec.DecodeError as error:
        message = f"the body is not valid JSON: {error}" if body else "the body is empty"
        return Error.INVALID_REQUEST.reject(message)
    except UnicodeDecodeError as error:
        return Error.INVALID_REQUEST.reject(f"the body is not UTF-8: {error.reason}")
    except RecursionError:
        return Error.INVALID_REQUEST.reject("the body is nested too deeply")


def bare(route: Route, body: bytes) -> Request:
    """What is left of a request when reading it failed: its model and size, and all that it asks for.

    Each field by itself, with as little as can go wrong; what cannot be read is as good as absent, and what
    is out of range is the most that may be asked for.
    """
    fields = _peek(_bare, msgspec.Raw(body)) or _Bare()
    parameters = _peek(_bare, fields.parameters) or _Bare()
    each = max(whole(raw) or 1 for raw in (fields.n, fields.best_of, parameters.best_of))
    try:
        # A list of token ids is one prompt, however long.
        head = bytes(fields.prompt)[:64].translate(None, b" \t\r\n")
        prompts = elements(fields.prompt) if head[:2] in (b'["', b"[[", b"[{") else 1
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        prompts = 1
    named = (fields.max_completion_tokens, fields.max_tokens, parameters.max_new_tokens)
    limit = next((found for raw in named if (found := _limit(raw)) is not None), None)
    predict = _limit(fields.n_predict)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=_peek(_text, fields.model) or None,
        stream=route.kind is RouteKind.GENERATE_STREAM or flag(fields.stream),
        max_new_tokens=bounded(limit),
        limits=None if predict is None else TokenLimits(limit, None, predict),
        sequences=max(1, min(each * max(1, prompts), SEQUENCES_MAX)),
        prompt_bytes=len(body),
    )


def _read_chat(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    chat: _Chat | _WideChat | None
    try:
        chat = _chat.decode(body)
    except msgspec.ValidationError:
        chat = _peek(_wide_chat, msgspec.Raw(body)) if body.count(b'"') <= QUOTES_MAX else None
    hints: _Hints
    if chat is None:
        # Messages of a shape that we do not know, or no chat at all: then this says so.
        hints = odd = _odd_chat.decode(body)
        said = _unread(odd.messages)
    elif chat.messages is None:
        return Error.UNFIT.reject("'messages' is missing")
    elif rejected := _too_long(chat.messages, bounds):
        return rejected
    else:
        hints, said = chat, _flatten(chat.messages, chat.tools)
    sequences = _sequences(hints.n)
    if isinstance(sequences, Reject):
        return sequences
    tokens, completion = _limit(hints.max_tokens), _limit(hints.max_completion_tokens)
    predict = _limit(hints.n_predict)
    several = predict is not None or not (tokens is None or completion is None or tokens == completion)
    streams = flag(hints.stream)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=hints.model or None,
        stream=streams,
        max_new_tokens=bounded(tokens if completion is None else completion),
        sequences=sequences,
        prompt_bytes=_bytes_of(said.segments) + said.bytes_beside,
        images=said.images,
        segments=said.segments,
        marks=said.marks,
        messages=said.count,
        tools=_count_of(hints.tools),
        user=_user_of(hints),
        json_output=_wants_json(hints.response_format),
        limits=TokenLimits(tokens, completion, predict) if several else None,
        usage=_usage_of(hints.stream_options) if streams else UsageAsked.NO_STREAM,
    )


def _flatten(messages: Sequence[_Message | _WideMessage], tools: msgspec.Raw = _RAW) -> _Said:
    """What messages say.

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
                text = part if isinstance(part, str) else part.text
                if isinstance(text, str):
                    segments.append(text)
                    marks.append(b"".join(pending))
                    pending.clear()
                elif not isinstance(part, str) and part.image_url:
                    images += 1
                    pending += (IMAGE_MARK, _digest(part.image_url))
        if _given(message.tool_calls):
            pending += (CALLS_MARK, _digest(message.tool_calls))
    return _Said(tuple(segments), tuple(marks), images, len(messages))


def _unread(messages: msgspec.Raw) -> _Said:
    """Messages of another shape than we know, as one text."""
    if not _given(messages):
        return _Said()
    text, beside = as_text(bytes(messages))
    # A second pass over what is long would cost more than its number is worth.
    count = 1 if beside else max(1, _count_of(messages))
    return _Said((text,), (b"",), 0, count, beside)


def _too_long(messages: Sequence[_Message | _WideMessage], bounds: BodyBounds) -> Reject | None:
    parts = sum(len(m.content) for m in messages if isinstance(m.content, list))
    if len(messages) + parts <= bounds.messages_max:
        return None
    return too_many("messages and parts of them", bounds.messages_max)


def _given(raw: msgspec.Raw) -> bool:
    return bool(raw) and raw != _NULL


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


def _limit(raw: msgspec.Raw) -> int | None:
    """New tokens that are asked for: None where nothing is said, NO_LIMIT where it is no number of them."""
    if not raw:
        return None
    limit = whole(raw)
    if limit is None:
        return None if raw == _NULL else NO_LIMIT
    return NO_LIMIT if limit < 0 else limit


def _sequences(*raw: msgspec.Raw, prompts: int = 1) -> int | Reject:
    """The sequences asked for: the most of those that are said, times the prompts."""
    most = 1
    for each in raw:
        if each:
            most = max(most, whole(each) or 1)
    asked = prompts * most
    if asked > SEQUENCES_MAX:
        return Error.UNFIT.reject(
            f"more than {SEQUENCES_MAX} sequences are asked for (n or best_of, times the prompts)"
        )
    return asked


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
    if options is None or not _yes(options.include_usage):
        return UsageAsked.NONE
    return UsageAsked.EACH if _yes(options.continuous_usage_stats) else UsageAsked.LAST


def _yes(value: Any) -> bool:
    """A truth that was decoded already, as `flag` reads it."""
    return (
        value
        if isinstance(value, bool)
        else isinstance(value, str | int) and flag(msgspec.json.encode(value))
    )


def _wants_json(raw: msgspec.Raw) -> bool:
    wanted = _peek(_format, raw)
    return wanted is not None and isinstance(wanted.type, str) and wanted.type != "text"


def _read_completion(route: Route, body: _Completion) -> Request | Reject:
    given = _given(body.prompt)
    try:
        prompts = read_prompts(body.prompt) if given else embedded(body.prompt_embeds)
    except TooManyError:
        return Error.UNFIT.reject(f"'prompt' holds too many prompts; at most {SEQUENCES_MAX}")
    if prompts is None:
        return Error.UNFIT.reject("'prompt' is missing")
    sequences = _sequences(body.n, body.best_of, prompts=prompts.count)
    if isinstance(sequences, Reject):
        return sequences
    tokens, predict = _limit(body.max_tokens), _limit(body.n_predict)
    streams = flag(body.stream)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=streams,
        max_new_tokens=bounded(tokens),
        limits=None if predict is None else TokenLimits(tokens, None, predict),
        sequences=sequences,
        prompt_bytes=_bytes_of(prompts.texts) + prompts.bytes_beside,
        prompt_tokens=prompts.tokens,
        images=prompts.images,
        segments=prompts.texts,
        prompt_ids=prompts.ids,
        prefix_block_tokens=None if prompts.tokens is None else BLOCK_TOKENS,
        usage=_usage_of(body.stream_options) if streams else UsageAsked.NO_STREAM,
        tools=_count_of(body.tools),
        user=_user_of(body),
        json_output=_wants_json(body.response_format),
    )


def _read_generate(route: Route, body: _Generate) -> Request | Reject:
    if body.inputs is None:
        return Error.UNFIT.reject("'inputs' is missing")
    parameters = _peek(_parameters, body.parameters) or _Parameters()
    sequences = _sequences(parameters.best_of)
    if isinstance(sequences, Reject):
        return sequences
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=route.kind is RouteKind.GENERATE_STREAM
        or (route.kind is RouteKind.COMPAT and flag(body.stream)),
        max_new_tokens=bounded(_limit(parameters.max_new_tokens)),
        sequences=sequences,
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
        return Error.UNFIT.reject(f"'instances' must hold 1 to {SEQUENCES_MAX} requests")
    each: list[Request] = []
    for raw in found:
        request = parse(_unwrapped(route, raw), bytes(raw), bounds)
        if isinstance(request, Reject):
            return request
        each.append(request)
    sequences = sum(request.sequences for request in each)
    if sequences > SEQUENCES_MAX:
        return Error.UNFIT.reject(f"'instances' ask for more than {SEQUENCES_MAX} answers")
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
    """TGI says inputs, vLLM and SGLang prompt, llama.cpp content; each takes only its own."""
    raw = next((each for each in (body.inputs, body.prompt, body.content) if _given(each)), _RAW)
    if not _given(raw) and not _given(body.messages):
        return Error.UNFIT.reject("'inputs' is missing (vLLM and SGLang: 'prompt'; llama.cpp: 'content')")
    said = _Said()
    if _given(body.messages):
        messages: Sequence[_Message | _WideMessage] | None = _peek(_messages, body.messages)
        if messages is None and bytes(body.messages).count(b'"') <= QUOTES_MAX:
            messages = _peek(_wide_messages, body.messages)
        if messages is None:
            said = _unread(body.messages)
        elif rejected := _too_long(messages, bounds):
            return rejected
        else:
            said = _flatten(messages)
    segments, marks = said.segments, said.marks
    if _given(raw):
        text = _peek(_text, raw)
        segments = (as_text(bytes(raw))[0] if text is None else text, *segments)
        marks = (b"", *marks)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        max_new_tokens=0,
        prompt_bytes=_bytes_of(segments) + said.bytes_beside,
        images=said.images,
        segments=segments,
        marks=marks,
        messages=said.count,
    )


def _bytes_of(segments: tuple[str, ...]) -> int:
    # isascii is a flag on the string object: no pass over the text for the usual prompt.
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in segments)
