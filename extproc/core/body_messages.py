"""What a chat's messages say: their texts, what stands before each, images, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from extproc.core.bodies import BodyBounds, too_many
from extproc.core.body_fields import ABSENT, count_of, digest, given, text_of
from extproc.core.outcome import Reject
from extproc.core.prefix import CALLS_MARK, IMAGE_MARK, MESSAGE_MARK, TOOLS_MARK
from extproc.core.prompts import as_text


class ContentPart(msgspec.Struct):
    text: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT
    input_audio: msgspec.Raw = ABSENT
    file: msgspec.Raw = ABSENT
    image_embeds: msgspec.Raw = ABSENT
    audio_embeds: msgspec.Raw = ABSENT


#: What a part may hold in place of a text.
_media = attrgetter(*(name for name in ContentPart.__struct_fields__ if name != "text"))


class ChatMessage(msgspec.Struct):
    content: str | list[ContentPart] | None = None
    role: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT


class WideChatMessage(msgspec.Struct):
    # A list of texts is read where there are few: unlike objects they are not counted before.
    content: str | list[ContentPart | str] | None = None
    role: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT


MESSAGES = msgspec.json.Decoder(list[ChatMessage])
WIDE_MESSAGES = msgspec.json.Decoder(list[WideChatMessage])


class MessageTexts(msgspec.Struct, frozen=True):
    """What messages say: texts, what stands before each, images (sounds, films and files as well), how many
    messages there are, and bytes unread."""

    segments: tuple[str, ...] = ()
    marks: tuple[bytes, ...] = ()
    images: int = 0
    count: int = 0
    bytes_beside: int = 0


def flattened(messages: Sequence[ChatMessage | WideChatMessage], tools: msgspec.Raw = ABSENT) -> MessageTexts:
    """What messages say.

    What is not text (images, tool calls, the tools, which templates put first) is marked by its hash:
    it distinguishes what comes after it.
    """
    segments: list[str] = []
    marks: list[bytes] = []
    images = 0
    pending: list[bytes] = [TOOLS_MARK, digest(tools)] if given(tools) else []
    for message in messages:
        pending.append(MESSAGE_MARK + message.role)
        content = message.content
        if isinstance(content, str):
            segments.append(content)
            marks.append(b"".join(pending))
            pending.clear()
        elif content is not None:
            for part in content:
                text = part if isinstance(part, str) else text_of(part.text)
                if text is not None:
                    segments.append(text)
                    marks.append(b"".join(pending))
                    pending.clear()
                elif not isinstance(part, str) and (medium := medium_of(part)):
                    images += 1
                    pending += (IMAGE_MARK, digest(medium))
        if given(message.tool_calls):
            pending += (CALLS_MARK, digest(message.tool_calls))
    return MessageTexts(tuple(segments), tuple(marks), images, len(messages))


def medium_of(part: ContentPart) -> msgspec.Raw:
    """The image, sound, film or file that is a part; nothing where there is none."""
    return next((raw for raw in _media(part) if given(raw)), part.image_url)


def unread(messages: msgspec.Raw) -> MessageTexts:
    """Messages of another shape than we know, as one text."""
    if not given(messages):
        return MessageTexts()
    text, beside = as_text(bytes(messages))
    # A second pass over what is long would cost more than its number is worth.
    count = 1 if beside else max(1, count_of(messages))
    return MessageTexts((text,), (b"",), 0, count, beside)


def too_long(messages: Sequence[ChatMessage | WideChatMessage], bounds: BodyBounds) -> Reject | None:
    parts = sum(len(m.content) for m in messages if isinstance(m.content, list))
    if len(messages) + parts <= bounds.messages_max:
        return None
    return too_many("messages and parts of them", bounds.messages_max)


def bytes_of(segments: tuple[str, ...]) -> int:
    # isascii is a flag on the string object: no pass over the text for the usual prompt.
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in segments)
