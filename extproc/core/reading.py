"""Reads what a decision needs from a client's body, and nothing else.

Owns the tolerant decoding of bodies: what an engine takes is never refused here. What a decision cannot do
without is the model's name, and that there is something to work on; all else is a hint. A hint that cannot be
read is as good as absent, and its mistake is the engine's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from extproc.core.bodies import BOUNDS, BodyBounds, refused_unread
from extproc.core.body_fields import (
    ABSENT,
    TEXT,
    BodyFields,
    count_of,
    given,
    limit_of,
    peek,
    sequences_of,
    usage_of,
    user_of,
    wants_json,
)
from extproc.core.body_forms import read_form
from extproc.core.body_inputs import read_embeddings, read_pairs, read_speech
from extproc.core.body_messages import (
    MESSAGES,
    WIDE_MESSAGES,
    ChatMessage,
    MessageTexts,
    WideChatMessage,
    bytes_of,
    flattened,
    too_long,
    unread,
)
from extproc.core.body_own import read_own
from extproc.core.body_turns import read_messages, read_responses
from extproc.core.errors import Error
from extproc.core.hints import flag, whole
from extproc.core.outcome import Reject
from extproc.core.prefix import BLOCK_TOKENS
from extproc.core.prompts import SEQUENCES_MAX, TooManyError, as_text, elements, embedded, read_prompts
from extproc.core.request import (
    Request,
    RouteKind,
    TokenLimits,
    UsageAsked,
    bounded,
)
from extproc.core.routes import BodyKind, Route, RouteWork
from extproc.core.wrapped import instances, wrapped_kind

#: Quotes of a body whose messages may be lists of texts.
QUOTES_MAX = 65_536
#: Bytes of a body that is one text: a larger one is refused by its first byte, as by the decoder at its end.
TEXT_BYTES_MAX = 65_536
#: What some clients write before their JSON, and readers of JSON pass over.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Chat(BodyFields):
    messages: list[ChatMessage] | None = None


class _WideChat(BodyFields):
    messages: list[WideChatMessage] | None = None


class _OddChat(BodyFields):
    messages: msgspec.Raw = ABSENT


class _Completion(BodyFields):
    prompt: msgspec.Raw = ABSENT
    prompt_embeds: msgspec.Raw = ABSENT
    best_of: msgspec.Raw = ABSENT


class _Parameters(msgspec.Struct):
    max_new_tokens: msgspec.Raw = ABSENT
    best_of: msgspec.Raw = ABSENT
    grammar: msgspec.Raw = ABSENT
    adapter_id: msgspec.Raw = ABSENT


class _Generate(BodyFields):
    inputs: str | None = None
    parameters: msgspec.Raw = ABSENT


class _Tokenize(msgspec.Struct):
    model: str | None = None
    inputs: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT


class _Bare(msgspec.Struct):
    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    best_of: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_new_tokens: msgspec.Raw = ABSENT
    n_predict: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    parameters: msgspec.Raw = ABSENT


#: The routes that a wrapped body may be of.
_WRAPPED = {"generate": RouteKind.COMPAT, "chat": RouteKind.CHAT, "completion": RouteKind.COMPLETION}

_chat = msgspec.json.Decoder(_Chat)
_wide_chat = msgspec.json.Decoder(_WideChat)
_odd_chat = msgspec.json.Decoder(_OddChat)
_completion = msgspec.json.Decoder(_Completion)
_generate = msgspec.json.Decoder(_Generate)
_parameters = msgspec.json.Decoder(_Parameters)
_tokenize = msgspec.json.Decoder(_Tokenize)
_bare = msgspec.json.Decoder(_Bare)
_text = msgspec.json.Decoder(str)


def parse(route: Route, body: bytes, bounds: BodyBounds = BOUNDS) -> Request | Reject:
    """Decode a body; Reject says why: it is no JSON (400) or no request (422), or it holds too much (413)."""
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        if route.body is BodyKind.JSON and (refused := refused_unread(body, bounds)):
            return refused
        if len(body) > TEXT_BYTES_MAX and route.own is None and body[:64].lstrip()[:1] == b'"':
            return Error.UNFIT.reject("the body does not fit: Expected `object`, got `str`")
        return _read(route, body, bounds)
    except msgspec.ValidationError as error:
        return Error.UNFIT.reject(f"the body does not fit: {error}")
    except msgspec.DecodeError as error:
        message = f"the body is not valid JSON: {error}" if body else "the body is empty"
        return Error.INVALID_REQUEST.reject(message)
    except UnicodeDecodeError as error:
        return Error.INVALID_REQUEST.reject(f"the body is not UTF-8: {error.reason}")
    except RecursionError:
        return Error.INVALID_REQUEST.reject("the body is nested too deeply")


def _read(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    """What a body of its route says. Its pieces were counted. Raises msgspec's errors."""
    match route.kind:
        case RouteKind.CHAT:
            return _read_chat(route, body, bounds)
        case RouteKind.COMPLETION:
            return _read_completion(route, _completion.decode(body))
        case RouteKind.GENERATE | RouteKind.GENERATE_STREAM | RouteKind.COMPAT:
            return _read_generate(route, _generate.decode(body))
        case RouteKind.EMBEDDINGS:
            return read_embeddings(route, body)
        case RouteKind.RERANK | RouteKind.SCORE:
            return read_pairs(route, body)
        case RouteKind.SPEECH:
            return read_speech(route, body)
        case RouteKind.TRANSCRIPTION:
            return read_form(route, body)
        case RouteKind.RESPONSES:
            return read_responses(route, body, bounds)
        case RouteKind.MESSAGES | RouteKind.COUNT_TOKENS:
            return read_messages(route, body, bounds)
        case RouteKind.TOKENIZE:
            return _read_tokenize(route, _tokenize.decode(body), bounds)
        case RouteKind.INVOCATIONS:
            return _read(_unwrapped(route, body), body, bounds)
        case RouteKind.VERTEX:
            return _read_vertex(route, body, bounds)
        case RouteKind.OTHER | RouteKind.OTHER_FREE:
            return read_own(route, body)
        case _:
            return Request(kind=route.kind, dialect=route.dialect)


def bare(route: Route, body: bytes) -> Request:
    """What is left of a request when reading it failed: its model and size, and all that it asks for.

    Each field by itself, with as little as can go wrong; what cannot be read is as good as absent, and what
    is out of range is the most that may be asked for.
    """
    fields = peek(_bare, msgspec.Raw(body)) or _Bare()
    parameters = peek(_bare, fields.parameters) or _Bare()
    each = max(whole(raw) or 1 for raw in (fields.n, fields.best_of, parameters.best_of))
    try:
        # A list of token ids is one prompt, however long.
        head = bytes(fields.prompt)[:64].translate(None, b" \t\r\n")
        prompts = elements(fields.prompt) if head[:2] in (b'["', b"[[", b"[{") else 1
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        prompts = 1
    named = (fields.max_completion_tokens, fields.max_tokens, parameters.max_new_tokens)
    limit = next((found for raw in named if (found := limit_of(raw)) is not None), None)
    predict = limit_of(fields.n_predict)
    generates = route.work is RouteWork.GENERATES
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=peek(TEXT, fields.model) or None,
        stream=route.kind is RouteKind.GENERATE_STREAM or flag(fields.stream),
        max_new_tokens=bounded(limit) if generates else 0,
        limits=None if predict is None or not generates else TokenLimits(limit, None, predict),
        sequences=max(1, min(each * max(1, prompts), SEQUENCES_MAX)),
        prompt_bytes=len(body),
    )


def _read_chat(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    chat: _Chat | _WideChat | None
    try:
        chat = _chat.decode(body)
    except msgspec.ValidationError:
        chat = peek(_wide_chat, msgspec.Raw(body)) if body.count(b'"') <= QUOTES_MAX else None
    hints: BodyFields
    if chat is None:
        # Messages of a shape that we do not know, or no chat at all: then this says so.
        hints = odd = _odd_chat.decode(body)
        said = unread(odd.messages)
    elif chat.messages is None:
        return Error.UNFIT.reject("'messages' is missing")
    elif rejected := too_long(chat.messages, bounds):
        return rejected
    else:
        hints, said = chat, flattened(chat.messages, chat.tools)
    sequences = sequences_of(hints.n)
    if isinstance(sequences, Reject):
        return sequences
    tokens, completion = limit_of(hints.max_tokens), limit_of(hints.max_completion_tokens)
    predict = limit_of(hints.n_predict)
    several = predict is not None or not (tokens is None or completion is None or tokens == completion)
    streams = flag(hints.stream)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=hints.model or None,
        stream=streams,
        max_new_tokens=bounded(tokens if completion is None else completion),
        sequences=sequences,
        prompt_bytes=bytes_of(said.segments) + said.bytes_beside,
        images=said.images,
        segments=said.segments,
        marks=said.marks,
        messages=said.count,
        tools=count_of(hints.tools),
        user=user_of(hints),
        json_output=wants_json(hints.response_format),
        limits=TokenLimits(tokens, completion, predict) if several else None,
        usage=usage_of(hints.stream_options) if streams else UsageAsked.NO_STREAM,
    )


def _read_completion(route: Route, body: _Completion) -> Request | Reject:
    try:
        prompts = read_prompts(body.prompt) if given(body.prompt) else embedded(body.prompt_embeds)
    except TooManyError:
        return Error.UNFIT.reject(f"'prompt' holds too many prompts; at most {SEQUENCES_MAX}")
    if prompts is None:
        return Error.UNFIT.reject("'prompt' is missing")
    sequences = sequences_of(body.n, body.best_of, prompts=prompts.count)
    if isinstance(sequences, Reject):
        return sequences
    tokens, predict = limit_of(body.max_tokens), limit_of(body.n_predict)
    streams = flag(body.stream)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=streams,
        max_new_tokens=bounded(tokens),
        limits=None if predict is None else TokenLimits(tokens, None, predict),
        sequences=sequences,
        prompt_bytes=bytes_of(prompts.texts) + prompts.bytes_beside,
        prompt_tokens=prompts.tokens,
        images=prompts.images,
        segments=prompts.texts,
        prompt_ids=prompts.ids,
        prefix_block_tokens=None if prompts.tokens is None else BLOCK_TOKENS,
        usage=usage_of(body.stream_options) if streams else UsageAsked.NO_STREAM,
        tools=count_of(body.tools),
        user=user_of(body),
        json_output=wants_json(body.response_format),
    )


def _read_generate(route: Route, body: _Generate) -> Request | Reject:
    if body.inputs is None:
        return Error.UNFIT.reject("'inputs' is missing")
    parameters = peek(_parameters, body.parameters) or _Parameters()
    sequences = sequences_of(parameters.best_of)
    if isinstance(sequences, Reject):
        return sequences
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        stream=route.kind is RouteKind.GENERATE_STREAM
        or (route.kind is RouteKind.COMPAT and flag(body.stream)),
        max_new_tokens=bounded(limit_of(parameters.max_new_tokens)),
        sequences=sequences,
        prompt_bytes=bytes_of((body.inputs,)),
        segments=(body.inputs,),
        tools=count_of(body.tools),
        user=user_of(body),
        adapter=peek(_text, parameters.adapter_id) or None,
        json_output=given(parameters.grammar) or wants_json(body.response_format),
    )


def _unwrapped(route: Route, body: bytes | msgspec.Raw) -> Route:
    return replace(route, kind=_WRAPPED[wrapped_kind(body)])


def _read_vertex(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    """All its instances as one request: as many sequences, one after another in one prompt's place."""
    found = instances(body)
    if not found:
        return Error.UNFIT.reject(f"'instances' must hold 1 to {SEQUENCES_MAX - 1} requests")
    each: list[Request] = []
    for raw in found:
        request = _read(_unwrapped(route, raw), bytes(raw), bounds)
        if isinstance(request, Reject):
            return request
        each.append(request)
    sequences = sum(request.sequences for request in each)
    if sequences > SEQUENCES_MAX:
        return Error.UNFIT.reject(f"'instances' ask for more than {SEQUENCES_MAX} answers")
    limits = [request.max_new_tokens for request in each]
    return msgspec.structs.replace(
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
    raw = next((each for each in (body.inputs, body.prompt, body.content) if given(each)), ABSENT)
    if not given(raw) and not given(body.messages):
        return Error.UNFIT.reject("'inputs' is missing (vLLM and SGLang: 'prompt'; llama.cpp: 'content')")
    said = MessageTexts()
    if given(body.messages):
        messages: Sequence[ChatMessage | WideChatMessage] | None = peek(MESSAGES, body.messages)
        if messages is None and bytes(body.messages).count(b'"') <= QUOTES_MAX:
            messages = peek(WIDE_MESSAGES, body.messages)
        if messages is None:
            said = unread(body.messages)
        elif rejected := too_long(messages, bounds):
            return rejected
        else:
            said = flattened(messages)
    segments, marks = said.segments, said.marks
    if given(raw):
        text = peek(TEXT, raw)
        segments = (as_text(bytes(raw))[0] if text is None else text, *segments)
        marks = (b"", *marks)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        max_new_tokens=0,
        prompt_bytes=bytes_of(segments) + said.bytes_beside,
        images=said.images,
        segments=segments,
        marks=marks,
        messages=said.count,
    )
