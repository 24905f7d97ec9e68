"""Conversations in other words than a chat's: OpenAI's responses and Anthropic's messages.

Owns the reading of their turns as a chat's messages, so that prefixes, images and sizes are told in one way.
"""

from __future__ import annotations

from operator import attrgetter

import msgspec

from extproc.core.bodies import BodyBounds
from extproc.core.body_fields import (
    ABSENT,
    TEXT,
    USER_CHARACTERS_MAX,
    count_of,
    given,
    limit_of,
    peek,
    wants_json,
)
from extproc.core.body_messages import (
    ContentPart,
    MessageTexts,
    WideChatMessage,
    bytes_of,
    flattened,
    too_long,
    unread,
)
from extproc.core.errors import Error
from extproc.core.hints import flag
from extproc.core.outcome import Reject
from extproc.core.prompts import as_text
from extproc.core.request import Request, bounded
from extproc.core.routes import Route, RouteWork

#: The longest id of a response that is looked for.
RESPONSE_ID_MAX = 256


class _Responses(msgspec.Struct):
    model: str | None = None
    input: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    previous_response_id: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT


class _Tool(msgspec.Struct):
    type: msgspec.Raw = ABSENT


class _TextOptions(msgspec.Struct):
    format: msgspec.Raw = ABSENT


class _Messages(msgspec.Struct):
    model: str | None = None
    messages: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    metadata: msgspec.Raw = ABSENT


class _Metadata(msgspec.Struct):
    user_id: msgspec.Raw = ABSENT


class _Part(msgspec.Struct):
    """A part of a turn: a text, an image or file, a tool's call or its answer, whatever of it is there."""

    text: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT
    file_id: msgspec.Raw = ABSENT
    file_url: msgspec.Raw = ABSENT
    file_data: msgspec.Raw = ABSENT
    input_audio: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT


_media = attrgetter("image_url", "source", "file_id", "file_url", "file_data", "input_audio")


class _Turn(msgspec.Struct):
    role: msgspec.Raw = ABSENT
    content: str | list[_Part] | None = None
    arguments: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT


_responses = msgspec.json.Decoder(_Responses)
_messages = msgspec.json.Decoder(_Messages)
_turns = msgspec.json.Decoder(list[_Turn])
_blocks = msgspec.json.Decoder(str | list[_Part])
_text_options = msgspec.json.Decoder(_TextOptions)
_metadata = msgspec.json.Decoder(_Metadata)
_tools = msgspec.json.Decoder(list[_Tool])
#: Tools that clients run themselves.
_CLIENTS_TOOLS = frozenset({b'"function"', b'"custom"'})
_NULL_ROLE = msgspec.Raw(b'"system"')


def read_responses(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    """`input` is a text or items; `instructions` come before them."""
    fields = _responses.decode(body)
    follows: str | None = None
    if given(fields.previous_response_id):
        follows = peek(TEXT, fields.previous_response_id)
        if not follows or len(follows) > RESPONSE_ID_MAX:
            return Error.UNFIT.reject("'previous_response_id' is no id of a response")
    if not given(fields.input) and follows is None:
        return Error.UNFIT.reject("'input' is missing")
    said = _said(fields.instructions, fields.input, fields.tools, bounds)
    if isinstance(said, Reject):
        return said
    options = peek(_text_options, fields.text)
    works = _engine_works(fields.tools)
    return _request(
        route,
        said,
        model=fields.model,
        # With tools of its own an engine generates several times, and the limit is that of one.
        limit=ABSENT if works else fields.max_output_tokens,
        stream=fields.stream,
        tools=fields.tools,
        user=peek(TEXT, fields.user),
        json_output=options is not None and wants_json(options.format),
        follows=follows,
        beside=works or follows is not None,
    )


def read_messages(route: Route, body: bytes, bounds: BodyBounds) -> Request | Reject:
    """Anthropic's; `system` comes before them."""
    fields = _messages.decode(body)
    if not given(fields.messages):
        return Error.UNFIT.reject("'messages' is missing")
    said = _said(fields.system, fields.messages, fields.tools, bounds)
    if isinstance(said, Reject):
        return said
    about = peek(_metadata, fields.metadata)
    return _request(
        route,
        said,
        model=fields.model,
        limit=fields.max_tokens,
        stream=fields.stream,
        tools=fields.tools,
        user=None if about is None else peek(TEXT, about.user_id),
    )


def _request(
    route: Route,
    said: MessageTexts,
    *,
    model: str | None,
    limit: msgspec.Raw,
    stream: msgspec.Raw,
    tools: msgspec.Raw,
    user: str | None,
    json_output: bool = False,
    follows: str | None = None,
    beside: bool = False,
) -> Request:
    generates = route.work is RouteWork.GENERATES
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=model or None,
        stream=generates and flag(stream),
        max_new_tokens=bounded(limit_of(limit)) if generates else 0,
        prompt_bytes=bytes_of(said.segments) + said.bytes_beside,
        images=said.images,
        segments=said.segments,
        marks=said.marks,
        messages=said.count,
        tools=count_of(tools),
        user=user if user and len(user) <= USER_CHARACTERS_MAX else None,
        json_output=json_output,
        follows=follows,
        beside=beside,
    )


def _engine_works(tools: msgspec.Raw) -> bool:
    """Whether a tool is offered that the engine runs: what it finds is read by the model as well."""
    return any(bytes(tool.type) not in _CLIENTS_TOOLS for tool in peek(_tools, tools) or () if tool.type)


def _said(
    first: msgspec.Raw, turns: msgspec.Raw, tools: msgspec.Raw, bounds: BodyBounds
) -> MessageTexts | Reject:
    """What stands before the turns, and the turns, as a chat's messages."""
    found: list[WideChatMessage] = []
    blocks = peek(_blocks, first) if given(first) else None
    if blocks is not None:
        found.append(_message(_Turn(_NULL_ROLE, blocks)))
    text = peek(TEXT, turns)
    if text is not None:
        found.append(WideChatMessage(text))
        return flattened(found, tools)
    read = peek(_turns, turns)
    if read is None:
        # Of a shape that we do not know: its engine will say so, or knows it.
        return unread(turns)
    found += map(_message, read)
    return too_long(found, bounds) or flattened(found, tools)


def _message(turn: _Turn) -> WideChatMessage:
    """One turn as a chat's message: what tools are asked and answer is text to a template."""
    content = turn.content
    parts: list[ContentPart | str] = (
        [content] if isinstance(content, str) else [_part(each) for each in content or ()]
    )
    parts += [as_text(bytes(raw))[0] for raw in (turn.arguments, turn.output) if given(raw)]
    return WideChatMessage(parts, turn.role)


def _part(part: _Part) -> ContentPart | str:
    for text in (peek(TEXT, part.text), peek(TEXT, part.thinking)):
        if text is not None:
            return text
    for medium in _media(part):
        if given(medium):
            return ContentPart(image_url=medium)
    raw = part.content if given(part.content) else part.input
    return as_text(bytes(raw))[0] if given(raw) else ContentPart()
