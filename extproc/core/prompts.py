"""Prompts of completions as they are sent: a text, texts, token ids, several lists of those, or what a single
engine takes (llama.cpp's mixed lists and objects, vLLM's embeddings).

Owns the counting of token ids without building them: a body of the largest size holds two million, and all
that a decision needs is how many there are and the first of them. Pure.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import msgspec

from extproc.core.prefix import BLOCK_TOKENS, BLOCKS_MAX

#: Sequences one request may ask for (n, best_of or a batch of prompts); above it it is refused.
SEQUENCES_MAX = 1024
#: Token ids that are read, for the prefix; what is beyond is counted alone. A longer id is no token's.
IDS_READ_MAX = min(65_536, BLOCKS_MAX * BLOCK_TOKENS)
_ID_DIGITS_MAX = 10
#: Characters of base64 that a token's embedding has, about: 4,096 dimensions of 2 bytes.
EMBEDDING_CHARACTERS = 10_924
#: So much of JSON that counts as the text that it is is hashed; the rest is counted alone.
UNREAD_TEXT_BYTES = 16_384
#: What a token counts as where prompts are counted in bytes and its own are not text.
TOKEN_BYTES = 4
_BLANKS = b" \t\r\n"
_NUMBERS = b"0123456789," + _BLANKS

_NUMBER_STARTS = frozenset({b"-", *(b"%d" % digit for digit in range(10))})
#: A list whose first or second element is a number.
_BEGINS_WITH_NUMBER = re.compile(rb'\[\s*(?:"(?:[^"\\]|\\.)*"\s*,\s*)?[-0-9]', re.DOTALL)

_text = msgspec.json.Decoder(str)
_raws = msgspec.json.Decoder(list[msgspec.Raw])
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
    """`texts`, or `tokens` in all with the first prompt's `ids` (4 bytes each); of `count` prompts.

    `bytes_beside` is what else counts as text would, `images` how many there are.
    """

    texts: tuple[str, ...] = ()
    tokens: int | None = None
    ids: bytes = b""
    count: int = 1
    bytes_beside: int = 0
    images: int = 0


class _Object(msgspec.Struct):
    prompt_string: msgspec.Raw = msgspec.Raw()
    multimodal_data: msgspec.Raw = msgspec.Raw()


_object = msgspec.json.Decoder(_Object)


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
    """The prompts of a field; None where it holds none.

    Of a shape that no engine takes it is one text, its JSON: the engine will say so. Raises TooManyError, and
    msgspec.MsgspecError on what is no JSON.
    """
    data = bytes(raw)
    if data[:1] != b"[":
        return _of([data]) if data[:1] == b"{" else Prompts((_text_of(data),))
    # What is left without numbers tells the shape: nothing but brackets is ids, or lists of them.
    shape = data.translate(None, _NUMBERS)
    if shape == b"[]":
        return _flat(data)
    lists = (len(shape) - 2) // 2
    if shape == b"[" + b"[]" * lists + b"]":
        return _nested(data, lists)
    if data.count(b",") >= SEQUENCES_MAX and elements(data) >= SEQUENCES_MAX:
        if _BEGINS_WITH_NUMBER.match(data):
            text, beside = as_text(data)
            return Prompts((text,), bytes_beside=beside)
        raise TooManyError
    prompts = [bytes(each) for each in _raws.decode(data)]
    if not _NUMBER_STARTS.isdisjoint(each[:1] for each in prompts):
        # Token ids and texts in one list are one prompt to llama.cpp; ids alone are to everybody.
        return _mixed(prompts)
    return _of(prompts)


def as_text(data: bytes) -> tuple[str, int]:
    """What is read of no further: its beginning as a text, and the size of the rest."""
    return data[:UNREAD_TEXT_BYTES].decode("utf-8", "replace"), max(0, len(data) - UNREAD_TEXT_BYTES)


def embedded(raw: msgspec.Raw) -> Prompts | None:
    """vLLM's prompts as embeddings: a base64 text or a list of such; None where there are none."""
    data = bytes(raw)
    if not data or data == b"null":
        return None
    count = elements(data) if data[:1] == b"[" else 1
    if count >= SEQUENCES_MAX:
        raise TooManyError
    return Prompts(count=max(1, count), bytes_beside=TOKEN_BYTES * (len(data) // EMBEDDING_CHARACTERS + 1))


def _of(prompts: list[bytes]) -> Prompts:
    """Each a prompt of its own: texts, lists (of ids, or mixed), and llama.cpp's objects."""
    texts: list[str] = []
    images = beside = 0
    for each in prompts:
        said = each
        if each[:1] == b"{":
            found = _object.decode(each)
            images += elements(found.multimodal_data) if bytes(found.multimodal_data)[:1] == b"[" else 0
            text = bytes(found.prompt_string)
            said = text if text[:1] == b'"' else each
        text_of, rest = (_text_of(said), 0) if said[:1] == b'"' else as_text(said)
        texts.append(text_of)
        beside += rest
    return Prompts(tuple(texts), count=len(texts), bytes_beside=beside, images=images)


def _mixed(parts: list[bytes]) -> Prompts:
    """One prompt of texts and ids."""
    texts = [_text_of(each) for each in parts if each[:1] == b'"']
    return Prompts(("".join(texts),), bytes_beside=TOKEN_BYTES * (len(parts) - len(texts)))


def _text_of(data: bytes) -> str:
    """A JSON text's own, or the JSON of what is none."""
    return str(_text.decode(data)) if data[:1] == b'"' else data.decode("utf-8", "replace")


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
