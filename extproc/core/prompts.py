"""Prompts of completions as they are sent: a text, texts, token ids, or several lists of those.

Owns the counting of token ids without building them: a body of the largest size holds two million, and all
that a decision needs is how many there are and the first of them. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgspec

from extproc.core.prefix import BLOCK_TOKENS, BLOCKS_MAX

#: Sequences one request may ask for (n, best_of or a batch of prompts); above it 400.
SEQUENCES_MAX = 1024
#: Token ids that are read, for the prefix; what is beyond is counted alone. A longer id is no token's.
IDS_READ_MAX = min(65_536, BLOCKS_MAX * BLOCK_TOKENS)
_ID_DIGITS_MAX = 10
_BLANKS = b" \t\r\n"
_NUMBERS = b"0123456789," + _BLANKS

_any: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_ids = msgspec.json.Decoder(list[int])
# Fails at the first element beyond, unlike a list's bound, which is looked at when all are built.
_few = msgspec.json.Decoder(
    msgspec.defstruct(
        "Few",
        [(f"at_{i}", msgspec.Raw, msgspec.Raw()) for i in range(SEQUENCES_MAX)],
        array_like=True,
        forbid_unknown_fields=True,
    )
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """`texts`, or `tokens` in all with the first prompt's `ids` (4 bytes each); of `count` prompts."""

    texts: tuple[str, ...] = ()
    tokens: int | None = None
    ids: bytes = b""
    count: int = 1


class TooManyError(Exception):
    """More prompts than one request may hold."""


def elements(raw: bytes | msgspec.Raw) -> int:
    """How many elements a list has, SEQUENCES_MAX for more; nothing is built of them.

    Raises msgspec.MsgspecError on what is no list.
    """
    try:
        few = _few.decode(raw)
    except msgspec.ValidationError:
        # No list, or too long a one: which of the two costs a second look.
        if bytes(raw)[:1] != b"[":
            raise
        return SEQUENCES_MAX
    return sum(map(bool, msgspec.structs.astuple(few)))


def read_prompts(raw: msgspec.Raw) -> Prompts | None:
    """The prompts of a field; None where it holds none, or is of no shape that we know.

    Raises TooManyError, and msgspec.MsgspecError on what is no JSON.
    """
    data = bytes(raw)
    if data[:1] != b"[":
        text = _any.decode(data)
        return Prompts((text,)) if isinstance(text, str) else None
    # What is left without numbers tells the shape: nothing but brackets is ids, or lists of them.
    shape = data.translate(None, _NUMBERS)
    if shape == b"[]":
        return _flat(data)
    lists = (len(shape) - 2) // 2
    if shape == b"[" + b"[]" * lists + b"]":
        return _nested(data, lists)
    if data.count(b",") >= SEQUENCES_MAX and elements(data) >= SEQUENCES_MAX:
        raise TooManyError
    prompts = _any.decode(data)
    kinds = set(map(type, prompts))
    if kinds == {str}:
        return Prompts(tuple(prompts), count=len(prompts))
    if kinds == {int}:
        return Prompts(tokens=len(prompts), ids=_packed(prompts))
    if kinds == {list}:
        return Prompts(tokens=sum(map(len, prompts)), ids=_packed(prompts[0]), count=len(prompts))
    return None


def _flat(data: bytes) -> Prompts | None:
    inside = data[1:-1]
    if not inside.strip(_BLANKS):
        return None
    return Prompts(tokens=inside.count(b",") + 1, ids=_first(inside))


def _nested(data: bytes, lists: int) -> Prompts:
    if lists > SEQUENCES_MAX:
        raise TooManyError
    bare = data.translate(None, _BLANKS)
    # Each list that is not empty has one id more than commas; between the lists stand the others.
    tokens = bare.count(b",") - (lists - 1) + lists - bare.count(b"[]")
    first = bare[2 : bare.index(b"]")]
    return Prompts(tokens=tokens, ids=_first(first) if first else b"", count=lists)


def _first(numbers: bytes) -> bytes:
    """The first ids of a list's inside; none where one of them cannot be a token's."""
    found = numbers.split(b",", IDS_READ_MAX)[:IDS_READ_MAX]
    if max(map(len, found)) > _ID_DIGITS_MAX:
        found = [each.strip(_BLANKS) for each in found]
        if max(map(len, found)) > _ID_DIGITS_MAX:
            return b""
    return _packed(_ids.decode(b"[" + b",".join(found) + b"]"))


def _packed(prompt: list[Any]) -> bytes:
    """Token ids as 4 bytes each; none where one of them cannot be a token's."""
    hashed = prompt[:IDS_READ_MAX]
    try:
        return struct.pack(f"<{len(hashed)}I", *hashed)
    except struct.error:
        return b""
