"""The fields that bodies of all routes share, each read by itself: what cannot be read is as good as absent.

Owns the tolerance. What an engine takes is never refused here, but for too many sequences.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from xxhash import xxh3_64_hexdigest

from extproc.core.errors import Error
from extproc.core.hints import flag, whole
from extproc.core.outcome import Reject
from extproc.core.prompts import SEQUENCES_MAX, elements
from extproc.core.request import NO_LIMIT, UsageAsked

T = TypeVar("T")

#: Characters of a user's or session's name; a longer one names nobody.
USER_CHARACTERS_MAX = 1024
#: Passes whatever stands there, undecoded; empty when absent.
ABSENT = msgspec.Raw()
_NULL = msgspec.Raw(b"null")


class BodyFields(msgspec.Struct):
    model: str | None = None
    stream: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    n_predict: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    response_format: msgspec.Raw = ABSENT


class _Format(msgspec.Struct):
    type: msgspec.Raw = ABSENT


class _StreamOptions(msgspec.Struct):
    include_usage: msgspec.Raw = ABSENT
    continuous_usage_stats: msgspec.Raw = ABSENT


TEXT = msgspec.json.Decoder(str)
_format = msgspec.json.Decoder(_Format)
_stream_options = msgspec.json.Decoder(_StreamOptions)


def given(raw: msgspec.Raw) -> bool:
    return bool(raw) and raw != _NULL


def digest(raw: msgspec.Raw) -> bytes:
    return xxh3_64_hexdigest(raw).encode()


def peek(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw) -> T | None:
    """What a hint says, None where it says nothing that we understand."""
    if not raw:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def text_of(raw: msgspec.Raw) -> str | None:
    """A value's text; None where it is no text.

    Nothing else is built: a number of 4,000 digits costs 60 times what skipping it does. Raises
    msgspec.DecodeError on what is no JSON.
    """
    if not raw:
        return None
    try:
        return TEXT.decode(raw)
    except msgspec.ValidationError:
        return None


def limit_of(raw: msgspec.Raw) -> int | None:
    """New tokens that are asked for: None where nothing is said, NO_LIMIT where it is no number of them."""
    if not raw:
        return None
    limit = whole(raw)
    if limit is None:
        return None if raw == _NULL else NO_LIMIT
    return NO_LIMIT if limit < 0 else limit


def sequences_of(*raw: msgspec.Raw, prompts: int = 1) -> int | Reject:
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


def count_of(raw: msgspec.Raw) -> int:
    try:
        return elements(raw) if raw else 0
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0


def user_of(hints: BodyFields) -> str | None:
    for raw in (hints.session_id, hints.user):
        name = peek(TEXT, raw)
        if name and len(name) <= USER_CHARACTERS_MAX:
            return name
    return None


def usage_of(raw: msgspec.Raw) -> UsageAsked:
    options = peek(_stream_options, raw)
    if options is None or not flag(options.include_usage):
        return UsageAsked.NONE
    return UsageAsked.EACH if flag(options.continuous_usage_stats) else UsageAsked.LAST


def wants_json(raw: msgspec.Raw) -> bool:
    wanted = peek(_format, raw)
    return wanted is not None and text_of(wanted.type) not in (None, "text")
