"""Reads what a decision needs from a client's request, and nothing else.

Owns the routes, their dialects and the tolerant decoding of their bodies. Unknown fields are the
engine's business and pass unread; a field that is read and has the wrong type is the client's
mistake, said with its path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from extproc.core.outcome import Reject

#: Tokens that one image part counts as, when the engine's own count is not known yet (a ViT-L/14 at
#: 336 pixels makes 576 patches).
IMAGE_TOKENS = 576
#: Sequences one request may ask for (n, best_of or a batch of prompts); above it 400.
SEQUENCES_MAX = 1024


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


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


class _Chat(msgspec.Struct):
    messages: list[_Message] | None = None
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


class _Completion(msgspec.Struct):
    prompt: str | list[Any] | None = None
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None


class _Parameters(msgspec.Struct):
    max_new_tokens: int | None = None
    best_of: int | None = None


class _Generate(msgspec.Struct):
    inputs: str | None = None
    parameters: _Parameters | None = None
    stream: bool | None = None
    model: str | None = None


class _Tokenize(msgspec.Struct):
    inputs: str | None = None
    messages: list[_Message] | None = None
    model: str | None = None


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_generate = msgspec.json.Decoder(_Generate)
_tokenize = msgspec.json.Decoder(_Tokenize)


def find_route(method: str, path: str) -> tuple[Route | None, Dialect]:
    """The route of a method and path (query ignored), and the dialect to answer in either way."""
    bare = path.partition("?")[0]
    dialect = Dialect.OPENAI if bare.startswith("/v1/") else Dialect.TGI
    for route in ROUTES.get(bare, ()):
        if route.method == method:
            return route, route.dialect
    return None, dialect


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


def bad_request(message: str) -> Reject:
    """A 400 for a body or header that cannot be served."""
    return Reject(status=400, code="invalid_request", message=message)


def _read_chat(route: Route, body: _Chat) -> Request | Reject:
    if not body.messages:
        return bad_request("'messages' is missing or empty")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if rejected := _check(limit, "max_tokens", body.n, "n"):
        return rejected
    segments, images = _flatten(body.messages)
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
    )


def _flatten(messages: list[_Message]) -> tuple[tuple[str, ...], int]:
    segments: list[str] = []
    images = 0
    for message in messages:
        content = message.content
        if isinstance(content, str):
            segments.append(content)
        elif content is not None:
            for part in content:
                if part.text is not None:
                    segments.append(part.text)
                elif part.type == "image_url":
                    images += 1
    return tuple(segments), images


def _read_completion(route: Route, body: _Completion) -> Request | Reject:
    prompt = body.prompt
    if prompt is None or prompt == []:
        return bad_request("'prompt' is missing")
    segments: tuple[str, ...] = ()
    tokens: int | None = None
    prompts = 1
    if isinstance(prompt, str):
        segments = (prompt,)
    else:
        # By type and in C: a body of the largest size can hold two million token ids.
        kinds = set(map(type, prompt))
        if kinds == {int}:
            tokens = len(prompt)
        elif kinds == {str}:
            segments, prompts = tuple(prompt), len(prompt)
        elif kinds == {list}:
            tokens, prompts = sum(map(len, prompt)), len(prompt)
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
    )


def _read_tokenize(route: Route, body: _Tokenize) -> Request | Reject:
    if body.inputs is None and not body.messages:
        return bad_request("'inputs' is missing")
    segments, images = _flatten(body.messages or [])
    if body.inputs is not None:
        segments = (body.inputs, *segments)
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=body.model or None,
        max_new_tokens=0,
        prompt_bytes=_bytes_of(segments),
        images=images,
        segments=segments,
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
